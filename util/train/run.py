"""The life of a training run: resume, save, survive a failing disk, stop when asked.

`Run` holds what both stages share. `BaseLearnerRun` (stage one) keeps a file, `AdversarialRun`
(stage two) a folder; it chooses the `best.pth` in `record_validation`.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from model.published import base_to_published
from util.checkpoint import load_checkpoint, resume, serialize_checkpoint, write_checkpoint
from util.config import Config, save_config, to_dict
from util.data import Batches
from util.evaluate.scores import Scores
from util.reproduce.compare import setting_differences
from util.runtime import Ranks, RunStopped, Stop, UserError, distributed
from util.runtime.cost import Cost
from util.runtime.files import atomic_write, sweep
from util.runtime.log import add_log_file, log
from util.runtime.rng import library_versions, random_state, set_random_state
from util.runtime.stop import resume_command
from util.train.adversarial import AdversarialTrainer
from util.train.base_learner import BaseLearnerTrainer
from util.train.curves import Curves

LOG = "log.txt"
Trainer = AdversarialTrainer | BaseLearnerTrainer


class Run(ABC):
    """What both stages share. All ranks call the same methods; rank 0 alone writes.

    `path` is the file or folder of the run, of whose iterations `done` are done.
    """

    key: str  # of the config, that says where the run writes

    def __init__(
        self, trainer: Trainer, cfg: Config, ranks: Ranks, batches: Batches, path: Path
    ) -> None:
        self.trainer, self.cfg, self.ranks, self.batches = trainer, cfg, ranks, batches
        self.path, self.done = path, 0
        self.owes_validation = False  # that of the last iteration is still to come
        # What a resumed run is compared with.
        self.setting: dict[str, Any] = {"config": to_dict(cfg), "versions": library_versions()}
        self._saved, self._saved_at = (0, False), time.monotonic()
        self._failure = ""  # why the last checkpoint could not be written

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
                mistake = f"{error.filename or self.path} cannot be written to ({error.strerror})"
                raise UserError(f"{self.key}: {mistake}; name another place") from None
        return notes

    @abstractmethod
    def _choose(self, restarted: bool) -> tuple[str, list[str]]:
        """Return the checkpoint to resume from ('': none), and lines about the choice."""

    def _resume(self, path: Path) -> list[str]:
        """Restore the state in a checkpoint; return lines about it."""
        state = load_checkpoint(self.trainer.model, path)
        try:  # PyTorch reads what is inside, and can fail anywhere in it
            self._load(state)
            set_random_state(state["random"][self.ranks.rank % len(state["random"])])
        except Exception:
            mistake = "its optimizers or random states do not fit this run"
            raise UserError(f"{path}: {mistake}; name another file") from None
        self._saved, self.batches.start = (self.done, self.owes_validation), self.done
        changed = setting_differences(state, self.setting)
        start = f"resumed from {path}: {self.done} of {self.batches.total} iterations are done"
        return [start, *(f"changed since that checkpoint: {line}" for line in changed)]

    def _load(self, state: dict[str, Any]) -> None:
        """Restore everything but the model and the random state."""
        self.trainer.load_state_dict(state)
        self.done = state["iteration"]

    @abstractmethod
    def _open(self) -> None:
        """Prepare the run's place for writing, on rank 0, and open the log file."""

    def step_done(self) -> None:
        """Count an iteration."""
        self.done += 1

    def save_if_due(self, stop: Stop) -> bool:
        """Save if due or if any rank was asked to stop; return whether it was."""
        period = 60 * self.cfg.Train.save_minutes
        is_due = self.ranks.is_main and 0 < period <= time.monotonic() - self._saved_at
        stopping, saving = distributed.any_rank((stop.requested, is_due), self.ranks)
        if stopping or saving:
            self.save()
        if stopping:
            self.log_stop()
        return stopping

    def log_stop(self) -> None:
        """Log that the run was stopped, and the command that resumes it."""
        log.info(f"stopped at iteration {self.done}; resume with:\n{resume_command()}")

    def save(self) -> None:
        """Write the state, unless it is written already; every rank has to call.

        A disk that fails costs a warning: the run goes on, and earlier files stay complete.
        """
        now = (self.done, self.owes_validation)
        if self._saved == now:
            return
        random = distributed.gather(random_state())
        self._saved, self._saved_at = now, time.monotonic()
        if not self.ranks.is_main:
            return
        content = serialize_checkpoint(**self._state(), random=random)
        try:
            self._write(content)
            self._failure = ""
        except OSError as error:
            self._failure = f"{error.strerror}, at iteration {self.done}"
            rest = "earlier ones are complete, training goes on"
            log.warning(f"{self.path}: the checkpoint cannot be written ({self._failure}); {rest}")

    def _state(self) -> dict[str, Any]:
        """Return what a checkpoint holds, all but the random state."""
        model = {"model": self.trainer.model.state_dict(), "iteration": self.done}
        return {**model, **self.trainer.state_dict(), **self.setting}

    def _write(self, content: bytes) -> None:
        """Write a checkpoint, or raise OSError."""
        atomic_write(self.path, content)

    @contextmanager
    def saved_on_failure(self) -> Iterator[None]:
        """Save if the block of the iterations fails, so that a bad image or step costs no hours.

        With several ranks, one cannot save for all: what the last checkpoint lacks is lost.
        """
        try:
            yield
        except (UserError, RunStopped):
            if self.ranks.world == 1:
                self.save()
            raise

    def close(self) -> None:
        """End the run; raise `RunStopped` if its last checkpoint could not be written."""
        if self._failure:
            raise RunStopped(f"{self.path}: the last checkpoint is not written ({self._failure})")


class BaseLearnerRun(Run):
    """Stage one: keeps `base.unfinished.pth` and `base.log` beside `Method.pre_weight` base.pth."""

    key = "Method.pre_weight"

    def __init__(self, trainer: Trainer, cfg: Config, ranks: Ranks, batches: Batches) -> None:
        self.target = Path(cfg.Method.pre_weight)
        path = self.target.with_suffix(".unfinished.pth")
        super().__init__(trainer, cfg, ranks, batches, path)

    def _choose(self, restarted: bool) -> tuple[str, list[str]]:
        if self.cfg.Train.resume != "auto" and not restarted:
            return "", []
        if not self.path.exists():
            return "", [f"nothing to resume beside {self.target}: starts from scratch"]
        try:
            resume.training_state(self.path, resume.BASE_LEARNER_STATE)
        except UserError as error:
            raise UserError(f"{error} (or delete it to start from scratch)") from None
        return str(self.path), []

    def _open(self) -> None:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        sweep(self.path)
        add_log_file(self.target.with_suffix(".log"))

    def finish(self, miou: float) -> None:
        """Write the base learner with its mIoU in percent under published names; drop the state.

        Raises `OSError` if it cannot be written.
        """
        if self.ranks.is_main:
            state = base_to_published(self.trainer.model.state_dict())
            write_checkpoint(self.target, state_dict=state, base_miou=miou)
            self.path.unlink(missing_ok=True)
            log.info(f"base mIoU {miou:.1f}, written to {self.target}")
        self._failure = ""


class AdversarialRun(Run):
    """Stage two's folder `Train.save_path`: `config.yaml`, `log.txt`, curves and checkpoints.

    `last.pth` is written after a validation, every `Train.save_minutes` and at a stop request; the
    one before it stays as `last.previous.pth`. `best.pth` is that of the best validation.
    Files of an earlier run in the folder are removed at the first checkpoint of this run.
    """

    key = "Train.save_path"

    def __init__(self, trainer: Trainer, cfg: Config, ranks: Ranks, batches: Batches) -> None:
        super().__init__(trainer, cfg, ranks, batches, Path(cfg.Train.save_path))
        self.setting |= {"ranks": ranks.world, "images": batches.samples}
        self.best, self.stale = -1.0, 0  # highest mIoU so far, in percent; epochs since then
        self.cost = Cost(ranks.device)
        self._curves: Curves | None = None
        self._is_best = False  # the next checkpoint is the best so far
        self._unwritten_best = b""  # a best checkpoint that a failing disk has not taken yet
        self._number = 1  # of this run among those that used the folder
        self._foreign_files: set[str] = set()  # checkpoints there of other runs, or unusable

    def _choose(self, restarted: bool) -> tuple[str, list[str]]:
        asked, auto = self.cfg.Train.resume, self.cfg.Train.resume == "auto"
        good, bad = resume.find_candidates(self.path)
        if not auto and not restarted:
            if asked:
                resume.check_resume_file(Path(asked))
            return asked, self._identify_run(asked, good)
        if auto and bad and not good:
            raise UserError(f"{bad[0]} (none of {self.path} is good; delete it to start anew)")
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
        resumed = [one.run for one in good if one.path.resolve() == Path(path).resolve()]
        self._number = resumed[0] if resumed else 1 + max((one.run for one in good), default=0)
        own = {one.path.name for one in good if one.run == self._number}
        self._foreign_files = {n for n in resume.CHECKPOINTS if (self.path / n).exists()} - own
        note = f"{self.path} holds an earlier run, which this one replaces"
        return [] if resumed or not self._foreign_files else [note]

    def _resume(self, path: Path) -> list[str]:
        notes = super()._resume(path)
        if self.owes_validation or not (self.done >= self.batches.total or self.exhausted()):
            return notes
        reason = f"has all {self.done} of {self.batches.total} iterations; raise Train.epochs"
        if self.exhausted():
            reason = f"has stopped early at iteration {self.done}; raise Train.stop_interval"
        if path == Path(self.cfg.Train.resume):
            raise UserError(f"Train.resume: {path} {reason} to continue")
        self.batches.start = self.batches.total
        return [f"nothing left to do: {path} {reason} to continue"]

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        self.best, self.stale = state["best"], state["stale"]
        self.owes_validation = not state.get("validated", True)

    def _open(self) -> None:
        """Write the config; refuse a folder of something else."""
        config = self.path / "config.yaml"
        if config.exists() and "\nTrain:\n" not in config.read_text(errors="replace"):
            raise UserError(f"{config}: is not of a run; name another Train.save_path")
        save_config(self.cfg, config)
        for name in resume.CHECKPOINTS:
            sweep(self.path / name)
        add_log_file(self.path / LOG)
        self._curves = Curves(self.path, self.batches.start, log.warning)

    def step_done(self) -> None:
        """Count an iteration; at the end of an epoch its validation is due (`Train.val_period`)."""
        super().step_done()
        self.owes_validation = self.batches.ends_epoch(self.done, self.cfg.Train.val_period)
        self.cost.step()

    def log_step(self, values: Mapping[str, Tensor | float]) -> None:
        """Add losses and learning rates to the curves, every `Train.print_freq` iterations."""
        if self._curves and self.done % self.cfg.Train.print_freq < 2:  # a step of G and one of D
            points = {f"train/{name}": float(value) for name, value in values.items()}
            self._curves.scalars(points, self.done)

    def record_validation(self, scores: Scores, strips: list[np.ndarray]) -> None:
        """Record a validation: `best.pth` if its mIoU is the best, `last.pth`, curves, pictures.

        Also counts the epochs without a better mIoU, for early stopping. The `strips` are pictures
        of episodes, uint8 [H,W,3] each.
        """
        miou = scores.final.miou
        self._is_best = miou > self.best
        self.stale = 0 if self._is_best else self.stale + self.cfg.Train.val_period
        self.best, self.owes_validation = max(self.best, miou), False
        if self._curves:
            curves = {"miou_final": miou, "miou_meta": scores.meta.miou}
            curves |= {"miou_base": scores.base_miou, "fb_iou": scores.final.fb_iou}
            curves |= {f"iou/{name}": iou for name, iou in scores.final.classes.items()}
            for kind, values in (("val", curves), ("cost", self.cost.taken())):
                self._curves.scalars({f"{kind}/{k}": v for k, v in values.items()}, self.done)
            picture = np.concatenate(strips).transpose(2, 0, 1)
            self._curves.picture("val/episodes", picture, self.done)
        self.save()

    def exhausted(self) -> bool:
        """Return whether `Train.stop_interval` epochs have brought no better mIoU."""
        return 0 < self.cfg.Train.stop_interval <= self.stale

    def save(self) -> None:
        """Write `last.pth`, and `best.pth` after the best validation; see `Run.save`."""
        super().save()
        if self._curves:
            self._curves.flush()

    def _state(self) -> dict[str, Any]:
        validated = {"validated": not self.owes_validation, "best": self.best, "stale": self.stale}
        return {**super()._state(), **validated, "run": self._number, "launch": resume.launch_id()}

    def _write(self, content: bytes) -> None:
        if self._is_best:
            self._unwritten_best, self._is_best = content, False
        if not self.path.is_dir():
            log.warning(f"{self.path} is gone; it is created again, its earlier files are lost")
            save_config(self.cfg, self.path / "config.yaml")
            add_log_file(self.path / LOG)
            if self._curves:
                self._curves.reopen()
        if self._unwritten_best:  # first: a `last` is never without the `best` that it speaks of
            atomic_write(self.path / resume.BEST, self._unwritten_best)
            self._unwritten_best = b""
            self._foreign_files.discard(resume.BEST)
        keep = None if resume.LAST in self._foreign_files else self.path / resume.PREVIOUS
        atomic_write(self.path / resume.LAST, content, keep=keep)
        for name in self._foreign_files - {resume.LAST}:
            (self.path / name).unlink(missing_ok=True)
        self._foreign_files.clear()

    def close(self) -> None:
        """End the run and its curves; see `Run.close`."""
        if self._curves:
            self._curves.close()
        super().close()
