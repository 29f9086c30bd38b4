"""A run of stage two without training: a model of one layer, whose folder is as any run's."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from util.checkpoint.file import read_checkpoint
from util.config import Config
from util.data.batches import Batches
from util.evaluate.metrics import ClassTotals, Score
from util.evaluate.scores import Scores
from util.runtime.distributed import Ranks
from util.train.stages import SystemRun

ALONE = Ranks(0, 1, torch.device("cpu"))
STRIP = np.zeros((4, 4, 3), np.uint8)


class SmallTrainer:
    """Stands in for `AdversarialTrainer`: a model of one layer, optimizers of a chosen size."""

    def __init__(self, kilobytes: int):
        self.model, self.state = nn.Linear(2, 2), torch.rand(256 * kilobytes)
        self.areas = ClassTotals(1, torch.device("cpu"))
        self.optimizers = ("optimizer_g", "optimizer_d")

    def state_dict(self) -> dict:
        return {"optimizer_g": {"state": self.state}, "optimizer_d": {}, "scalers": []}

    def load_state_dict(self, state: dict) -> None:
        self.state = state["optimizer_g"]["state"]


def start_run(
    folder: Path,
    *,
    kilobytes: int = 1,
    split: int = 0,
    data: dict[str, object] | None = None,
    **train: object,
) -> tuple[SystemRun, list[str]]:
    """Start a small run; return it and its lines about where it starts."""
    cfg = Config()
    cfg = replace(cfg, Train=replace(cfg.Train, save_path=str(folder), **train))
    cfg = replace(cfg, Data=replace(cfg.Data, split=split, **(data or {})))
    run = SystemRun(SmallTrainer(kilobytes), cfg, ALONE, Batches(10, 2, 2, ALONE))
    return run, run.start()


def save(run: SystemRun, *done: int) -> None:
    """Save the run as it is after these numbers of iterations, one after the other."""
    for count in done:
        run.done = count
        run.save()


def validate(run: SystemRun, done: int, miou: float, strip: np.ndarray = STRIP) -> None:
    """Record a validation after `done` iterations."""
    score, run.done = Score(miou, 0.0, 0.0, {}), done
    run.record_validation(Scores(score, score, 0.0, {}, 0.0, score, "f5", 0.5, 1, {}), [strip])


def iteration(path: Path) -> int:
    return read_checkpoint(path)["iteration"]
