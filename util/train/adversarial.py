"""Adversarial training: the steps of generator G and discriminator D in turn (method 6).

The losses and their weights are in `generator_step` and `discriminator_step`. A step takes the
gradients of G's or of D's parameters only and averages them over the ranks; the other network stays
unchanged. Learning rates and frozen parameters are in util/train/optimizers.py. A batch is always
this rank's share.
"""

import numpy as np
import torch
from torch import Tensor

from model import AMFormer
from model.amformer import MiningPrediction, losses
from model.amformer.detail_mining import CHOSEN, LEVELS, PARTS, DiscriminatorOutputs
from model.losses import cross_entropy
from model.resize import bilinear_ac
from util.config import Config
from util.features import EncodedBatch
from util.runtime import Ranks
from util.train.optimizers import build_optimizers
from util.train.trainer import Losses, Pixels, Trainer, final_areas

FURTHER = {"dice": losses.dice, "balanced": losses.balanced}
"""Losses of G beside the published ones, by name."""


def choose_parts(seed: int, iteration: int) -> Tensor:
    """Draw 9 of 14 part maps for the diversity loss: their numbers [levels, 2 (fake, real), 9]."""
    rng = np.random.default_rng((seed, iteration))
    sets = [rng.permutation(PARTS)[:CHOSEN] for _ in range(2 * LEVELS)]
    return torch.from_numpy(np.stack(sets)).view(LEVELS, 2, CHOSEN)


class AdversarialTrainer(Trainer):
    """The trainer of AMFormer."""

    model: AMFormer

    def __init__(
        self, model: AMFormer, cfg: Config, total: int, ranks: Ranks, warmup: int = 0
    ) -> None:
        self.optimizer_g, self.optimizer_d = build_optimizers(model, cfg)
        named = {"optimizer_g": self.optimizer_g, "optimizer_d": self.optimizer_d}
        super().__init__(model, cfg, total, ranks, warmup, named)
        self.skip_empty = cfg.Data.absent > 0  # targets that are empty on purpose

    def step(self, batch: EncodedBatch, iteration: int, in_epoch: int) -> Losses:
        """Take one step: of G in an even iteration of an epoch, of D in an odd one.

        Without `Train.adversarial` every step is G's. Otherwise as `Trainer.step`.
        """
        train = self.cfg
        self.set_rates(iteration)
        if not train.adversarial:
            return self.generator_step(batch, weight=0.0, iteration=iteration)
        if in_epoch % 2:
            chosen = choose_parts(train.seed, iteration)
            return self.discriminator_step(batch, chosen, iteration=iteration)
        weighted = in_epoch % train.adversarial_period == train.adversarial_period - 1
        weight = train.adversarial_weight if weighted else train.adversarial_rest_weight
        return self.generator_step(batch, weight=weight, iteration=iteration)

    def generator_step(self, batch: EncodedBatch, *, weight: float, iteration: int = 0) -> Losses:
        """Take a step of G on main + aux + aux_weight1 * distillation + weight * adversarial.

        `loss_g` is this weighted sum; with their weights, dice and balanced are in it, too. Returns
        and raises as `step`.
        """
        pixels = self.count_labeled_pixels(batch)

        def losses_of(part: EncodedBatch) -> Losses:
            with self.autocast():
                prediction = self.predict(part)
            terms = self.segmentation_losses(prediction, part, pixels)
            mean_weight = self.loss_weight(part, batch)
            terms["distillation"] = mean_weight * terms["distillation"]
            total = terms["main"] + terms["aux"] + self.cfg.aux_weight1 * terms["distillation"]
            for name, factor in self.further_losses().items():
                of_levels = [FURTHER[name](z, part.query_mask) for z in prediction.logits]
                terms[name] = mean_weight * torch.stack(of_levels).mean()
                total = total + factor * terms[name]
            if self.cfg.adversarial:
                outputs = self.discriminator_outputs(prediction, part)
                terms["adversarial_g"] = mean_weight * losses.generator(outputs)
                total = total + weight * terms["adversarial_g"]
            return terms | {"loss_g": total, "areas": final_areas(prediction, part)}

        return self._step(self.optimizer_g, batch, "loss_g", losses_of, iteration, pixels)

    def discriminator_step(
        self, batch: EncodedBatch, chosen: Tensor, *, iteration: int = 0
    ) -> Losses:
        """Take a step of D on its adversarial loss + diversity_weight * diversity.

        `loss_d` is this weighted sum; G runs without gradients. `choose_parts` gives `chosen`.
        Returns and raises as `step`.
        """

        def losses_of(part: EncodedBatch) -> Losses:
            with torch.no_grad(), self.autocast():
                prediction = self.predict(part)
            outputs = self.discriminator_outputs(prediction, part)
            diversity = losses.diversity(outputs, chosen.to(self.ranks.device))
            mean_weight = self.loss_weight(part, batch)
            terms = {"adversarial_d": mean_weight * losses.discriminator(outputs)}
            terms["diversity"] = mean_weight * diversity
            total = terms["adversarial_d"] + self.cfg.diversity_weight * terms["diversity"]
            return terms | {"loss_d": total, "areas": final_areas(prediction, part)}

        return self._step(self.optimizer_d, batch, "loss_d", losses_of, iteration)

    def further_losses(self) -> dict[str, float]:
        """Return the weights above 0 of the losses of `FURTHER`, on each of G's three masks."""
        weights = {"dice": self.cfg.dice_weight, "balanced": self.cfg.balanced_weight}
        return {name: weight for name, weight in weights.items() if weight}

    def predict(self, batch: EncodedBatch) -> MiningPrediction:
        """Predict encoded episodes; see `Trainer.predict`."""
        prediction = super().predict(batch)
        assert isinstance(prediction, MiningPrediction)
        return prediction

    def discriminator_outputs(
        self, prediction: MiningPrediction, batch: EncodedBatch
    ) -> list[DiscriminatorOutputs]:
        """Return what D makes of the predicted masks (fake) and of the true ones (real)."""
        truth = (batch.query_mask == 1)[:, None].to(prediction.foreground.dtype)
        real = bilinear_ac(truth, prediction.foreground.shape[-2:])
        return self.model.detail_mining(prediction.features, prediction.foreground, real)

    def segmentation_losses(
        self, prediction: MiningPrediction, batch: EncodedBatch, pixels: Pixels
    ) -> Losses:
        """Return the losses `main`, `aux`, `distillation` and `base` of a batch or a part of one.

        `pixels` is `count_labeled_pixels` of the whole batch. `base` is the loss of the base
        learner, which is frozen: it is shown, not trained on.
        """
        mask, base_mask = batch.query_mask, batch.query_base_mask
        labeled, base_labeled = pixels
        levels = [cross_entropy(z, mask, labeled) for z in prediction.logits]
        return {
            "main": cross_entropy(prediction.final, mask, labeled),
            "aux": torch.stack(levels).mean(),
            "distillation": losses.distillation(
                prediction.correlations, mask, skip_empty=self.skip_empty
            ),
            "base": cross_entropy(prediction.base_logits, base_mask, base_labeled),
        }
