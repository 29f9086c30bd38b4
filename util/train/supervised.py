"""Training of a system by the losses that it names: every one but AMFormer."""

import torch

from model import System
from model.system import Truth
from util.config import Config
from util.features import EncodedBatch
from util.runtime import Ranks
from util.train.optimizers import build_optimizer
from util.train.trainer import Losses, Trainer, final_areas


class SupervisedTrainer(Trainer):
    """The trainer of a system with one optimizer, see `System.LOSSES` and `System.GROUPS`."""

    def __init__(
        self, model: System, cfg: Config, total: int, ranks: Ranks, warmup: int = 0
    ) -> None:
        super().__init__(
            model, cfg, total, ranks, warmup, {"optimizer": build_optimizer(model, cfg)}
        )

    def step(self, batch: EncodedBatch, iteration: int, in_epoch: int) -> Losses:
        """Take one step on `loss`, the weighted sum of `System.LOSSES`; see `Trainer.step`."""
        self.set_rates(iteration)
        pixels = self.count_labeled_pixels(batch)
        weights = {n: getattr(self.cfg, key) if key else 1 for n, key in self.model.LOSSES.items()}

        def losses_of(part: EncodedBatch) -> Losses:
            with self.autocast():
                prediction = self.predict(part)
            masks, share = (part.query_mask, part.query_base_mask), self.loss_weight(part, batch)
            truth = Truth(*masks, pixels[0], pixels[1], share)
            terms = self.model.losses(prediction, truth)
            total = torch.stack([weight * terms[name] for name, weight in weights.items()]).sum()
            return terms | {"loss": total, "areas": final_areas(prediction, part)}

        return self._step(self.main_optimizer, batch, "loss", losses_of, iteration, pixels)
