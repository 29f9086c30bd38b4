"""A training run's folder: config, curves, checkpoints, and what early stopping counts."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter
from torch import Tensor

from model import AMFormer
from util import checkpoint, distributed
from util.config import save_config, to_dict
from util.cost import Cost
from util.distributed import Batches, Ranks
from util.evaluate import Scores
from util.game import Game
from util.weights import load_checkpoint


class Run:
    """Writes `config.yaml`, tensorboard curves, `last.pth` and `best.pth`; rank 0 alone writes.

    Attributes:
        best: the highest validation mIoU so far. stale: epochs since.
    """

    def __init__(self, model: AMFormer, game: Game, cfg, ranks: Ranks):
        self.model, self.game, self.cfg, self.ranks = model, game, cfg, ranks
        self.folder = Path(cfg.Train.save_path)
        self.best, self.stale = -1.0, 0
        self.writer = None
        self.cost = Cost(ranks.device)

    def start(self, schedule: Batches) -> None:
        """Takes up `Train.resume` if there is one; opens the folder.

        Raises:
            ValueError: the checkpoint is missing, torn, of another architecture or of no training.
        """
        if path := self.cfg.Train.resume:
            state = load_checkpoint(self.model, Path(path))
            if "optimizer_g" not in state:
                raise ValueError(
                    f"Train.resume: {path} holds weights only; name a last.pth or best.pth"
                )
            if state["iteration"] >= schedule.total:
                raise ValueError(
                    f"Train.resume: {path} has all {state['iteration']} of {schedule.total} "
                    "iterations; raise Train.epochs or Train.max_iterations"
                )
            self.game.load_state_dict(state)
            schedule.start = state["iteration"]
            self.best, self.stale = state["best"], state["stale"]
            checkpoint.set_random_state(state["random"][self.ranks.rank % len(state["random"])])
        if self.ranks.is_main:
            save_config(self.cfg, self.folder / "config.yaml")
            self.writer = SummaryWriter(str(self.folder))

    def log_step(self, done: int, losses: Mapping[str, Tensor]) -> None:
        """Curves of every loss and both learning rates, every `Train.print_freq` iterations."""
        self.cost.step()
        if self.writer and done % self.cfg.Train.print_freq < 2:  # a G and a D step
            for name, value in {**losses, **self.game.rates()}.items():
                self.writer.add_scalar(f"train/{name}", float(value), done)

    def validated(self, scores: Scores, strips: list[np.ndarray], done: int) -> None:
        """Curves, pictures and checkpoints after a validation; counts towards early stopping."""
        better = scores.final.miou > self.best
        self.stale = 0 if better else self.stale + self.cfg.Train.val_period
        self.best = max(self.best, scores.final.miou)
        random = distributed.gather(checkpoint.random_state())
        if not self.writer:
            return
        curves = {"miou_final": scores.final.miou, "miou_meta": scores.meta.miou}
        curves |= {"miou_base": scores.base_miou, "fb_iou": scores.final.fb_iou}
        for kind, values in (("val", curves), ("cost", self.cost.taken())):
            for name, value in values.items():
                self.writer.add_scalar(f"{kind}/{name}", value, done)
        self.writer.add_image("val/episodes", np.concatenate(strips), done, dataformats="HWC")
        self.writer.flush()
        state = {"model": self.model.state_dict(), **self.game.state_dict()}
        state |= {"iteration": done, "best": self.best, "stale": self.stale, "random": random}
        state["config"] = to_dict(self.cfg)
        checkpoint.save(self.folder / "last.pth", **state)
        if better:
            checkpoint.save(self.folder / "best.pth", **state)

    def exhausted(self) -> bool:
        """Whether `Train.stop_interval` epochs have brought no better mIoU."""
        return 0 < self.cfg.Train.stop_interval <= self.stale

    def close(self) -> None:
        if self.writer:
            self.writer.close()
