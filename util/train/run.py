"""A training run's folder: config, curves, checkpoints, and what early stopping counts."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from torch import Tensor

from model import AMFormer
from util.checkpoint import resume
from util.checkpoint.file import serialize_checkpoint
from util.checkpoint.load import load_checkpoint
from util.config import Config, save_config, to_dict
from util.data.batches import Batches
from util.evaluate.evaluator import Scores
from util.reproduce.compare import tree_differences
from util.runtime import distributed
from util.runtime.cost import Cost
from util.runtime.distributed import Ranks
from util.runtime.errors import RunStopped, UserError
from util.runtime.files import atomic_write, sweep
from util.runtime.log import log
from util.runtime.rng import library_versions, random_state, set_random_state
from util.train.adversarial import AdversarialTrainer
from util.train.curves import Curves


class Run:
    """Writes `config.yaml`, tensorboard curves and checkpoints; rank 0 alone writes.

    `last.pth` is written after a validation, every `Train.save_minutes` and when the run is asked
    to stop; the one before it stays as `last.previous.pth`. `best.pth` is the one of the best
    validation. Files of an earlier run in the folder go once there is one of this run.

    Attributes:
        best: the highest validation mIoU so far. stale: epochs since.
        owes_validation: the checkpoint that the run goes on from was written before its validation.
    """

    def __init__(self, model: AMFormer, game: AdversarialTrainer, cfg: Config, ranks: Ranks):
        self.model, self.game, self.cfg, self.ranks = model, game, cfg, ranks
        self.folder = Path(cfg.Train.save_path)
        self.best, self.stale, self.owes_validation = -1.0, 0, False
        self.curves: Curves | None = None
        self.setting = {"config": to_dict(cfg), "versions": library_versions()}
        self._saved, self._saved_at, self._failed = (0, True), time.monotonic(), ""
        self._best = b""  # a best checkpoint that is still to be written
        self._number = 1  # of this run among those that had the folder
        self._strangers: set[str] = set()  # checkpoints there that are not this run's, or bad
        self.cost = Cost(ranks.device)

    def start(self, schedule: Batches) -> list[str]:
        """Takes up what `Train.resume` says; opens the folder.

        Returns:
            Lines about where the run starts.

        Raises:
            UserError: the checkpoint is missing, torn, of another architecture or of no training;
                the folder cannot be written to.
        """
        self.setting |= {"ranks": self.ranks.world, "images": schedule.samples}
        # A machine may count no restart of its own when it joins those of another.
        [again] = distributed.any_rank([resume.restarted()], self.ranks)
        # The same file on all ranks, also when one of them is late and finds another.
        path, notes = distributed.gather(self._chosen(again) if self.ranks.is_main else None)[0]
        if path:
            notes = notes + self._take_up(Path(path), schedule)
        if self.ranks.is_main:
            self._open_folder()
            for name in (resume.LAST, resume.PREVIOUS, resume.BEST):
                sweep(self.folder / name)
            self.curves = Curves(self.folder, schedule.start, log.warning)
        return notes

    def _open_folder(self) -> None:
        """Writes the config; refuses a folder that is not a run's, or cannot be written to."""
        config = self.folder / "config.yaml"
        try:
            if config.exists() and "\nTrain:\n" not in config.read_text(errors="replace"):
                raise UserError(f"{config}: is not of a run; name another Train.save_path")
            save_config(self.cfg, config)
        except OSError as error:
            raise UserError(
                f"Train.save_path: {self.folder} cannot be written to ({error.strerror}); name "
                "another folder"
            ) from None

    def _chosen(self, again: bool) -> tuple[str, list[str]]:
        """The checkpoint to go on from ('': none), and lines about it."""
        asked, auto = self.cfg.Train.resume, self.cfg.Train.resume == "auto"
        good, bad = resume.found(self.folder)
        if not auto and not again:
            if asked:
                resume.explicit(Path(asked))
            return asked, self._tell_apart(asked, good)
        if auto and bad and not good:
            raise UserError(f"{bad[0]} (none of {self.folder} is good; delete it to start anew)")
        launch = resume.launch_id()
        path = resume.newest(one for one in good if auto or one.launch == launch)
        notes = [f"passed over: {line}" for line in bad]
        if path is None and auto:
            path, notes = "", [f"nothing to resume in {self.folder}: starts from scratch"]
        elif path is None:
            path = asked
            notes = ["started again by the launcher, before any checkpoint was written"]
        return str(path), notes + self._tell_apart(str(path), good)

    def _tell_apart(self, path: str, good: list[resume.Found]) -> list[str]:
        """Numbers the run, which goes on from `path`, and finds what is not its own; a line."""
        own = [one.run for one in good if one.path.resolve() == Path(path).resolve()]
        self._number = own[0] if own else 1 + max((one.run for one in good), default=0)
        kept = {one.path.name for one in good if one.run == self._number}
        names = (resume.LAST, resume.PREVIOUS, resume.BEST)
        self._strangers = {n for n in names if n not in kept and (self.folder / n).exists()}
        if own or not self._strangers:
            return []
        return [f"{self.folder} holds an earlier run, which this one replaces"]

    def _take_up(self, path: Path, schedule: Batches) -> list[str]:
        state = load_checkpoint(self.model, path)
        place = self.ranks.rank % max(1, len(state["random"]))
        try:  # what is inside is PyTorch's to read, and can fail anywhere in it
            self.game.load_state_dict(state)
            set_random_state(state["random"][place])
        except Exception:
            raise UserError(
                f"{path}: its optimisers or random states are not those of such a run; name another"
                " file"
            ) from None
        done, self.best, self.stale = state["iteration"], state["best"], state["stale"]
        validated = state.get("validated", True)
        notes = [f"goes on from {path}: {done} of {schedule.total} iterations are done"]
        if validated and (done >= schedule.total or self.exhausted()):
            limit = "Train.stop_interval" if self.exhausted() else "Train.epochs"
            told = f"{path} has all {done} of {schedule.total} iterations; raise {limit}"
            if self.exhausted():
                told = f"{path} has stopped early at iteration {done}; raise {limit}"
            if path == Path(self.cfg.Train.resume):
                raise UserError(f"Train.resume: {told} to go on")
            schedule.start = schedule.total
            return [f"nothing left to do: {told} to go on"]
        schedule.start, self._saved = done, (done, validated)
        self.owes_validation = not validated
        changed = tree_differences(state, self.setting)
        return notes + [f"no longer the run that was stopped: {line}" for line in changed]

    def log_step(self, done: int, losses: Mapping[str, Tensor]) -> None:
        """Curves of every loss and both learning rates, every `Train.print_freq` iterations."""
        self.cost.step()
        if self.curves and done % self.cfg.Train.print_freq < 2:  # a G and a D step
            values = {**losses, **self.game.rates()}
            self.curves.scalars({f"train/{k}": float(v) for k, v in values.items()}, done)

    def validated(self, scores: Scores, strips: list[np.ndarray], done: int) -> None:
        """Curves, pictures and checkpoints after a validation; counts towards early stopping."""
        better = scores.final.miou > self.best
        self.stale = 0 if better else self.stale + self.cfg.Train.val_period
        self.best, self.owes_validation = max(self.best, scores.final.miou), False
        if self.curves:
            curves = {"miou_final": scores.final.miou, "miou_meta": scores.meta.miou}
            curves |= {"miou_base": scores.base_miou, "fb_iou": scores.final.fb_iou}
            curves |= {f"iou/{name}": iou for name, iou in scores.final.classes.items()}
            for kind, values in (("val", curves), ("cost", self.cost.taken())):
                self.curves.scalars({f"{kind}/{name}": v for name, v in values.items()}, done)
            picture = np.concatenate(strips).transpose(2, 0, 1)
            self.curves.picture("val/episodes", picture, done)
        self.save(done, better=better)

    def save_is_due(self) -> bool:
        """Whether `Train.save_minutes` have passed since the last checkpoint, by rank 0's clock."""
        period = 60 * self.cfg.Train.save_minutes
        return self.ranks.is_main and 0 < period <= time.monotonic() - self._saved_at

    def save(self, done: int, *, validated: bool = True, better: bool = False) -> None:
        """Writes `last.pth` and, for a better one, `best.pth`; every rank has to call.

        A disk that fails is told, and the run goes on: earlier files are whole.

        Args:
            done: iterations.
            validated: no validation of this iteration is owed.
            better: this is the best so far.
        """
        if self._saved == (done, validated) and not better:
            return
        random = distributed.gather(random_state())
        self._saved, self._saved_at = (done, validated), time.monotonic()
        if not self.curves:
            return
        state = {"model": self.model.state_dict(), **self.game.state_dict(), **self.setting}
        state |= {"iteration": done, "validated": validated, "best": self.best, "stale": self.stale}
        state |= {"random": random, "run": self._number, "launch": resume.launch_id()}
        content = serialize_checkpoint(**state)
        if better:
            self._best = content
        try:
            if not self.folder.is_dir():
                log.warning(f"{self.folder} is gone; made anew, what it held is lost")
                save_config(self.cfg, self.folder / "config.yaml")
                self.curves.reopen()
            self._write(content)
            self._failed = ""
        except OSError as error:
            self._failed = f"{error.strerror}, at iteration {done}"
            log.warning(
                f"{self.folder}: the checkpoint cannot be written ({self._failed}); earlier ones "
                "are whole, training goes on"
            )
        self.curves.flush()

    def _write(self, content: bytes) -> None:
        """Writes `last.pth` and a best checkpoint that waits, then drops what is not this run's."""
        if self._best:  # first: whoever finds this `last` finds its `best`
            atomic_write(self.folder / resume.BEST, self._best)
            self._best = b""
            self._strangers.discard(resume.BEST)
        replaces = resume.LAST in self._strangers
        keep = None if replaces else self.folder / resume.PREVIOUS
        atomic_write(self.folder / resume.LAST, content, keep=keep)
        for name in self._strangers - {resume.LAST}:
            (self.folder / name).unlink(missing_ok=True)
        self._strangers.clear()

    @contextmanager
    def saved_on_a_fault(self, done: Callable[[], int], schedule: Batches) -> Iterator[None]:
        """The block of the iterations: an image that cannot be read at hour 9 costs no hour.

        So does a step that is not finite. One rank alone cannot save for all: with several, what
        `Train.save_minutes` has not saved is lost.

        Args:
            done: gives the iterations that are done.
            schedule: of the run.
        """
        try:
            yield
        except (ValueError, RunStopped):
            if self.ranks.world == 1 and self._saved[0] < done():
                due = schedule.ends_epoch(done(), self.cfg.Train.val_period)
                self.save(done(), validated=not due)
            raise

    def exhausted(self) -> bool:
        """Whether `Train.stop_interval` epochs have brought no better mIoU."""
        return 0 < self.cfg.Train.stop_interval <= self.stale

    def close(self) -> None:
        """Ends the curves.

        Raises:
            RunStopped: the last checkpoint could not be written.
        """
        if self.curves:
            self.curves.close()
        if self._failed:
            raise RunStopped(f"{self.folder}: the last checkpoint is not written ({self._failed})")
