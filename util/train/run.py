"""The life of a training run: resume, save, validate, survive a failing disk, stop when asked.

`Run` holds what both stages share: a folder of config, log, curves and checkpoints. stages.py holds
what differs.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from util.checkpoint import load_checkpoint, require_unseen, resume, serialize_checkpoint
from util.config import Config, save_config, to_dict
from util.data import Batches
from util.evaluate.metrics import ClassTotals, sum_over_ranks
from util.reproduce.compare import setting_differences
from util.reproduce.environment import describe_source
from util.runtime import Ranks, RunStopped, Stop, UserError, distributed
from util.runtime.cost import Cost
from util.runtime.files import atomic_write, require_alone, require_not_held, sweep
from util.runtime.log import add_log_file, log
from util.runtime.rng import library_versions, random_state, set_random_state
from util.runtime.stop import STOPPED, resume_command
from util.runtime.system import require_no_pipe
from util.train.base_learner import BaseLearnerTrainer
from util.train.curves import Curves
from util.train.trainer import Trainer

LOG, SOURCE = "log.txt", "source.txt"


class Run:
    """What both stages share. All ranks call the same methods; rank 0 alone writes.

    The folder `path` gets `config.yaml`, `log.txt`, `source.txt`, curves and checkpoints:
    `last.pth` after a validation, every `Train.save_minutes` and at a stop request; the one before
    it stays as `last.previous.pth`. `best.pth` is that of the best validation, `epoch_N.pth` one of
    every `save_freq` epochs. `done` iterations are done. Checkpoints of an earlier run in the
    folder are removed at the first one of this run.

    `best` is the highest mIoU so far, in percent, of epoch `best_epoch`.
    """

    key: str  # of the config, that says where the run writes
    section: str  # of the config, that holds the options of this stage
    kinds: resume.Kinds  # what a checkpoint must hold

    def __init__(
        self, trainer: Trainer | BaseLearnerTrainer, cfg: Config, ranks: Ranks,
        batches: Batches, path: Path,
    ) -> None:  # fmt: skip
        self.trainer, self.cfg, self.ranks, self.batches = trainer, cfg, ranks, batches
        self.options = getattr(cfg, self.section)
        self.path, self.done = path, 0
        self.owes_validation = False  # that of the last iteration is still to come
        self.best, self.best_epoch = -1.0, 0
        self.cost = Cost(ranks.device)
        # What a resumed run is compared with.
        self.setting: dict[str, Any] = {"config": to_dict(cfg), "versions": library_versions()}
        self.setting |= {"ranks": ranks.world, "images": batches.samples}
        self._saved, self._saved_at = (0, False), time.monotonic()
        self._failure = ""  # why the last checkpoint could not be written
        self._curves: Curves | None = None
        self._is_best = False  # the next checkpoint is the best so far
        self._unwritten_best = b""  # a best checkpoint that a failing disk has not taken yet
        self._number = 1  # of this run among those that used the folder
        self._foreign_files: set[str] = set()  # checkpoints there of other runs, or unusable

    @property
    def epoch(self) -> int:
        """Number of the epoch of the last iteration, from 1; 0 before the first one."""
        return -(-self.done // self.batches.per_epoch)

    @property
    def stale(self) -> int:
        """Epochs without a better mIoU, at the last validation of whole epochs."""
        period = self.options.val_period
        return self.done // (self.batches.per_epoch * period) * period - self.best_epoch

    def exhausted(self) -> bool:
        """Return whether `stop_interval` epochs have brought no better mIoU."""
        return self.options.evaluate and 0 < self.options.stop_interval <= self.stale

    def start(self) -> list[str]:
        """Resume as `Train.resume` says and open the log file; return lines about the start.

        Raises `UserError` if the checkpoint is missing, torn, of another architecture or holds no
        training state, or if nothing can be written there.
        """
        # A machine may not count a restart of its own when it rejoins the others.
        [restarted] = distributed.any_rank([resume.was_restarted()], self.ranks)
        # Rank 0 chooses for all: a late rank might find another file.
        choice = self._choose(restarted) if self.ranks.is_main else None
        path, notes = distributed.gather(choice)[0]
        if path:
            notes += self._resume(Path(path))
        if self.ranks.is_main:
            try:
                self._open()
            except OSError as error:
                if path and self.batches.start == self.batches.total and not self.owes_validation:
                    return [*notes, f"{self.path} cannot be written to, and nothing has to be"]
                mistake = f"{error.filename or self.path} cannot be written to ({error.strerror})"
                raise UserError(f"{self.key}: {mistake}; name another place") from None
        return notes

    def asked_checkpoint(self) -> str:
        """Return the checkpoint to resume from; 'auto': the newest of the folder."""
        return self.cfg.Train.resume

    def _choose(self, restarted: bool) -> tuple[str, list[str]]:
        """Return the checkpoint to resume from ('': none), and lines about the choice."""
        asked = self.asked_checkpoint()
        auto = asked == "auto"
        good, bad = resume.find_candidates(self.path, self.kinds)
        if not auto and not restarted:
            if asked:
                resume.check_resume_file(Path(asked), self.kinds)
            return asked, self._identify_run(asked, good)
        useless = [*bad, *(f"{one.path}: is for testing" for one in good if not one.complete)]
        if auto and useless and not any(one.complete for one in good):
            raise UserError(f"{useless[0]} (none of {self.path} is good; delete it to start anew)")
        launch = resume.launch_id()
        latest = resume.latest(one for one in good if auto or one.launch == launch)
        notes = [f"passed over: {line}" for line in bad]
        path = str(latest or "")
        if not latest and auto:
            notes = [f"nothing to resume in {self.path}: starts from scratch"]
        elif not latest:
            path, notes = asked, ["restarted by the launcher, before any checkpoint was written"]
        return path, notes + self._identify_run(path, good)

    def _identify_run(self, path: str, good: list[resume.Candidate]) -> list[str]:
        """Number this run, which resumes from `path`; find files of other runs in its folder."""
        resumed = bool(path) and Path(path).resolve().parent == self.path.resolve()
        self._number = 1 + max((one.run for one in good), default=0)
        if resumed:  # also from a numbered checkpoint, which is no candidate
            self._number = resume.training_state(Path(path), self.kinds)["run"]
        own = {one.path.name for one in good if one.run == self._number}
        found = {n for n in resume.CHECKPOINTS if (self.path / n).exists()}
        self._foreign_files = found - own
        if not resumed:
            self._foreign_files |= {file.name for file in self.path.glob("epoch_*.pth")}
        note = f"{self.path} holds an earlier run, which this one replaces"
        return [] if resumed or not self._foreign_files else [note]

    def _resume(self, path: Path) -> list[str]:
        """Restore the state in a checkpoint; return lines about it."""
        state = load_checkpoint(self.trainer.model, path)
        require_unseen(state, path, self.cfg)
        try:  # PyTorch reads what is inside, and can fail anywhere in it
            self._load(state)
            set_random_state(state["random"][self.ranks.rank % len(state["random"])])
        except Exception:
            mistake = "its optimizers or random states do not fit this run"
            raise UserError(f"{path}: {mistake}; name another file") from None
        self._saved, self.batches.start = (self.done, self.owes_validation), self.done
        changed = setting_differences(state, self.setting)
        start = f"resumed from {path}: {self.done} of {self.batches.total} iterations are done"
        notes = [start, *(f"changed since that checkpoint: {line}" for line in changed)]
        if self.owes_validation or not (self.done >= self.batches.total or self.exhausted()):
            return notes
        reason = f"has all {self.done} of {self.batches.total} iterations; raise "
        reason += f"{self.section}.epochs"
        if self.exhausted():
            reason = f"has stopped early at iteration {self.done}; raise "
            reason += f"{self.section}.stop_interval"
        if path == Path(self.cfg.Train.resume):
            raise UserError(f"Train.resume: {path} {reason} to continue")
        self.batches.start = self.batches.total
        return [f"nothing left to do: {path} {reason} to continue"]

    def _load(self, state: dict[str, Any]) -> None:
        """Restore everything but the model and the random state."""
        self.trainer.load_state_dict(state)
        if self.ranks.is_main and "areas" in state:  # the sum over all ranks; older files: none
            self.trainer.areas.totals.copy_(state["areas"])
        self.done, self.best = state["iteration"], state["best"]
        self.best_epoch = self.stale - state["stale"]  # as `best_epoch` is still 0
        self.owes_validation = not state.get("validated", True)

    def _open(self) -> None:
        """Prepare the folder, on rank 0, and open log and curves; refuse one of something else."""
        config = self.path / "config.yaml"
        for name in (config.name, LOG, SOURCE):
            require_no_pipe(self.path / name)
        if config.exists() and "\nTrain:\n" not in config.read_text(errors="replace"):
            raise UserError(f"{config}: is not of a run; name another {self.key}")
        if not config.exists():  # checkpoints alone may be a run that was copied there
            is_ours = bool(resume.find_candidates(self.path, self.kinds)[0])
            require_not_held(self.path, self.key, own_run=is_ours)
        self.path.mkdir(parents=True, exist_ok=True)
        require_alone(self.path, self.key)
        save_config(self.cfg, config)
        sweep(self.path, resume.CHECKPOINTS)
        add_log_file(self.path / LOG)
        keep_source(self.path / SOURCE)
        self._curves = Curves(self.path, self.batches.start, log.warning)

    def step_done(self, values: Mapping[str, Tensor | float]) -> None:
        """Count an iteration; add its losses and learning rates to the curves (`print_freq`).

        A validation may be due then (`val_period`, `sub_epoch_val`). The end of an epoch logs the
        mIoU, mean accuracy and accuracy of its training images.
        """
        self.done += 1
        self.cost.step()
        self.owes_validation = self.options.evaluate and self._is_validation_due()
        if self._curves and self.done % self.cfg.Train.print_freq < 2:  # a step of G and one of D
            points = {f"train/{name}": float(value) for name, value in values.items()}
            self._curves.scalars(points, self.done)
        if self.batches.ends_epoch(self.done, 1):
            self._log_epoch()

    def _is_validation_due(self) -> bool:
        return self.batches.ends_epoch(self.done, self.options.val_period)

    def _log_epoch(self) -> None:
        """Log how well the epoch's training images were segmented; every rank has to call."""
        sum_over_ranks(self.trainer.areas)
        miou, macc, accuracy = (100 * value for value in self.trainer.areas.mean_scores())
        self.trainer.areas.totals.zero_()
        text = f"mIoU {miou:.2f}  mAcc {macc:.2f}  allAcc {accuracy:.2f}"
        log.info(f"epoch {self.epoch}: training images: {text}")
        if self._curves:
            points = {"train_miou": miou, "train_macc": macc, "train_allacc": accuracy}
            self._curves.scalars({f"epoch/{k}": v for k, v in points.items()}, self.done)

    def goes_on(self, validate: Callable[[], None], stop: Stop) -> bool:
        """Validate and save what is due; return whether training continues.

        `validate` records a validation, unless it is asked to stop.
        """
        if self.owes_validation:
            validate()
        if not self.ended():
            return not self.save_if_due(stop)
        if self.exhausted():
            log.info(f"stopped early: {self.stale} epochs without a better mIoU")
        self.save()
        return False

    def ended(self) -> bool:
        """Return whether there is nothing left to do."""
        return not self.owes_validation and (self.done == self.batches.total or self.exhausted())

    def record(self, miou: float, curves: Mapping[str, float], strips: list[np.ndarray]) -> None:
        """Record a validation: `best.pth` if its mIoU is the best, `last.pth`, curves, pictures.

        The `strips` are pictures, uint8 [H,W,3] each.
        """
        self._is_best = miou > self.best
        if self._is_best:
            self.best, self.best_epoch = miou, self.epoch
        self.owes_validation = False
        if self._curves:
            for kind, values in (("val", curves), ("cost", self.cost.taken())):
                self._curves.scalars({f"{kind}/{k}": v for k, v in values.items()}, self.done)
            if strips:
                picture = np.concatenate(strips).transpose(2, 0, 1)
                self._curves.picture("val/pictures", picture, self.done)
        self.save()

    def save_if_due(self, stop: Stop) -> bool:
        """Save if due or if any rank was asked to stop; return whether it was."""
        period = 60 * self.cfg.Train.save_minutes
        is_due = self.ranks.is_main and 0 < period <= time.monotonic() - self._saved_at
        stopping, saving = distributed.any_rank((stop.requested, is_due), self.ranks)
        if stopping or saving or self._snapshot:
            self.save()
        if stopping:
            log.info(f"{STOPPED} {self.done}; resume with:\n{resume_command()}")
        return stopping

    @property
    def _snapshot(self) -> str:
        """Name of the checkpoint that is kept of this iteration; '': none."""
        freq, (epoch, rest) = self.options.save_freq, divmod(self.done, self.batches.per_epoch)
        return f"epoch_{epoch}.pth" if freq and epoch and not rest and epoch % freq == 0 else ""

    def save(self) -> None:
        """Write the state, unless it is written already; every rank has to call.

        A disk that fails costs a warning: the run goes on, and earlier files stay complete.
        """
        now = (self.done, self.owes_validation)
        if self._saved != now:
            areas = self.trainer.areas.copy()
            sum_over_ranks(areas)
            random = distributed.gather(random_state())
            self._saved, self._saved_at = now, time.monotonic()
            if self.ranks.is_main:
                state = self._state(areas)
                content = serialize_checkpoint(**state, random=random)
                if self._is_best:
                    self._unwritten_best = self._of_best(state)
                self._write_or_warn(content, self._is_best)
            self._is_best = False
        if self._curves:
            self._curves.flush()

    def _of_best(self, state: dict[str, Any]) -> bytes:
        """Return a `best.pth`, to be tested: without optimizers, which take most of the bytes."""
        kept = state.keys() - self.trainer.state_dict().keys()
        return serialize_checkpoint(**{key: state[key] for key in state if key in kept})

    def _write_or_warn(self, content: bytes, is_best: bool) -> None:
        try:
            self._write(content, is_best)
            self._failure = ""
        except OSError as error:
            self._failure = f"{error.strerror}, at iteration {self.done}"
            rest = "earlier ones are complete, training goes on"
            log.warning(f"{self.path}: the checkpoint cannot be written ({self._failure}); {rest}")

    def _state(self, areas: ClassTotals) -> dict[str, Any]:
        """Return what a checkpoint holds, all but the random state."""
        return {
            **{"model": self.trainer.model.state_dict(), "iteration": self.done},
            **self.trainer.state_dict(),
            **self.setting,
            **{"areas": areas.totals.cpu(), "validated": not self.owes_validation},
            **{"best": self.best, "stale": self.stale, "run": self._number},
            "launch": resume.launch_id(),
        }

    def _write(self, content: bytes, is_best: bool) -> None:
        """Write a checkpoint, which may be the best so far, or raise OSError."""
        if not self.path.is_dir():
            log.warning(f"{self.path} is gone; it is created again, its earlier files are lost")
            save_config(self.cfg, self.path / "config.yaml")
            add_log_file(self.path / LOG)
            if self._curves:
                self._curves.reopen()
        # First: a `last` is never without the `best` that it speaks of. Without a `last` of this
        # run, `best` is complete for that time: killed in between, the run resumes from it.
        last = self.path / resume.LAST
        alone = is_best and (resume.LAST in self._foreign_files or not last.exists())
        if self._unwritten_best:
            best = content if alone else self._unwritten_best
            atomic_write(self.path / resume.BEST, best)
            self._foreign_files.discard(resume.BEST)
        if self._snapshot and not self.owes_validation:
            atomic_write(self.path / self._snapshot, content)
        keep = None if resume.LAST in self._foreign_files else self.path / resume.PREVIOUS
        atomic_write(last, content, keep=keep)
        if alone:
            atomic_write(self.path / resume.BEST, self._unwritten_best)
        self._unwritten_best = b""
        for name in self._foreign_files - {resume.LAST}:
            (self.path / name).unlink(missing_ok=True)
        self._foreign_files.clear()

    @contextmanager
    def saved_on_failure(self) -> Iterator[None]:
        """Save if the block of the iterations fails, so that a bad image or step costs no hours.

        With several ranks, one cannot save for all: what the last checkpoint lacks is lost.
        """
        try:
            yield
        except (UserError, RunStopped, BrokenPipeError):  # the last: nobody reads the output
            if self.ranks.world == 1:
                self.save()
            raise

    def close(self) -> None:
        """End the run; raise `RunStopped` if its last checkpoint could not be written."""
        if self._curves:
            self._curves.close()
        if self._failure:
            raise RunStopped(f"{self.path}: the last checkpoint is not written ({self._failure})")


def keep_source(path: Path) -> None:
    """Append command, commit and uncommitted changes of the code to a file of the run."""
    try:
        with open(path, "a", encoding="utf-8", errors="replace") as file:
            file.write(describe_source())
    except OSError as error:
        log.warning(f"{path}: cannot be written ({error.strerror})")
