"""The runs of the two stages: what each records and writes beside what `Run` does."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from model.published import base_to_published
from util.checkpoint import read_checkpoint, resume, validated_alike, write_checkpoint
from util.config import Config
from util.data import Batches
from util.evaluate.metrics import ClassTotals
from util.evaluate.scores import BaseScores, Scores
from util.evaluate.visualize import encode_strips
from util.runtime import Ranks
from util.runtime.files import atomic_write
from util.runtime.log import log
from util.train.base_learner import BaseLearnerTrainer
from util.train.run import Run
from util.train.trainer import Trainer

PREDICTIONS = "predictions.png"


class BaseLearnerRun(Run):
    """Stage one's run in the folder `base` beside `Method.pre_weight` base.pth."""

    key, section, kinds = "Method.pre_weight", "Base", resume.state_with(["optimizer"])

    def __init__(
        self, trainer: BaseLearnerTrainer, cfg: Config, ranks: Ranks, batches: Batches
    ) -> None:
        self.target = Path(cfg.Method.pre_weight)
        super().__init__(trainer, cfg, ranks, batches, self.target.with_suffix(""))
        self.scores: BaseScores | None = None  # of the best validation

    def asked_checkpoint(self) -> str:
        """Return the checkpoint to resume from; a file of another folder is one of stage two."""
        asked = self.cfg.Train.resume
        is_own = asked == "auto" or Path(asked).resolve().parent == self.path.resolve()
        return asked if is_own else ""

    def record_validation(self, scores: BaseScores, strips: list[np.ndarray]) -> None:
        """Record a validation; see `record`."""
        if scores.miou > self.best:
            self.scores = scores
            if self.ranks.is_main and strips:
                self._draw(strips)
        curves = {"miou_base": scores.miou, "loss": scores.loss}
        curves |= {f"iou/{name}": iou for name, iou in scores.classes.items()}
        self.record(scores.miou, curves, strips)

    def _draw(self, strips: list[np.ndarray]) -> None:
        """Write the pictures of the best validation; a disk that fails costs only them."""
        path = self.path / PREDICTIONS
        try:
            atomic_write(path, encode_strips(strips))
        except OSError as error:
            log.warning(f"{path}: cannot be written ({error.strerror})")

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        self.scores = BaseScores(**state["scores"]) if state["scores"] else None

    def _state(self, areas: ClassTotals) -> dict[str, Any]:
        return super()._state(areas) | {"scores": self.scores and vars(self.scores)}

    def finish(self, record: Mapping[str, Any]) -> None:
        """Write the best base learner under published names, and `result.json`; drop the state.

        `record` goes into `result.json`. Raises `OSError` if a file cannot be written.
        """
        if self.ranks.is_main:
            weights = self.trainer.model.state_dict()
            if self._unwritten_best:
                atomic_write(self.path / resume.BEST, self._unwritten_best)
            if self.options.evaluate:
                weights = read_checkpoint(self.path / resume.BEST)["model"]
            scores = vars(self.scores) if self.scores else {}
            if not scores:  # the pictures are those of an earlier run
                (self.path / PREDICTIONS).unlink(missing_ok=True)
            write_checkpoint(
                self.target,
                state_dict=base_to_published(weights),
                base_miou=scores.get("miou"),
                config=self.setting["config"],  # what stage two records of this one
                images=self.setting["images"],
            )
            result = {"base_learner": scores | {"epoch": self.best_epoch or self.epoch}, **record}
            content = json.dumps(result, indent=1, allow_nan=False).encode()
            atomic_write(self.path / "result.json", content)
            for name in resume.CHECKPOINTS:
                (self.path / name).unlink(missing_ok=True)
            text = f"base mIoU {scores['miou']:.1f}" if scores else "not validated"
            log.info(f"{text}, written to {self.target}")
        self._failure = ""


class SystemRun(Run):
    """Stage two's run in the folder `Train.save_path`.

    Its checkpoints hold `base_learner`, what `load_base_learner` told of stage one.
    """

    key, section = "Train.save_path", "Train"

    def __init__(
        self,
        trainer: Trainer,
        cfg: Config,
        ranks: Ranks,
        batches: Batches,
        base_learner: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(trainer, cfg, ranks, batches, Path(cfg.Train.save_path))
        self.kinds = resume.state_with(trainer.optimizers)
        self.threshold: float | None = None  # of presence, at the last validation
        self.base_learner = base_learner

    def _is_validation_due(self) -> bool:
        middle = self.options.sub_epoch_val and self.batches.is_middle(self.done)
        return middle or super()._is_validation_due()

    def record_validation(
        self, scores: Scores, strips: list[np.ndarray], threshold: float | None = None
    ) -> None:
        """Record a validation and the threshold of presence that it has found; see `record`."""
        self.threshold = threshold
        curves = {"miou_final": scores.final.miou, "miou_meta": scores.meta.miou}
        curves["loss"] = scores.loss
        if scores.base_miou is not None:
            curves["miou_base"] = scores.base_miou
        curves |= {"fb_iou": scores.final.fb_iou, "fb_iou_meta": scores.meta.fb_iou}
        curves |= {"p_iou": scores.final.p_iou}
        curves |= {f"iou/{name}": iou for name, iou in scores.final.classes.items()}
        curves |= {f"iou_base/{name}": iou for name, iou in scores.base_classes.items()}
        self.record(scores.final.miou, curves, strips)

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        self.threshold = state.get("presence_threshold")
        if self.best >= 0 and not validated_alike(state, self.path, self.cfg):
            self.best, self.best_epoch = -1.0, self.best_epoch + self.stale
            log.info("the best score so far is of other novel classes, and is not compared")
        self.base_learner = state.get("base_learner")  # its weights are in the checkpoint, too

    def _state(self, areas: ClassTotals) -> dict[str, Any]:
        known = {} if self.threshold is None else {"presence_threshold": self.threshold}
        return super()._state(areas) | known | {"base_learner": self.base_learner}
