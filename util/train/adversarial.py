"""Adversarial training: the steps of generator G and discriminator D in turn (method 6).

The losses and their weights are in `generator_step` and `discriminator_step`. A step takes the
gradients of G's or of D's parameters only and averages them over the ranks; the other network stays
unchanged. Learning rates and frozen parameters are in util/train/optimizers.py. A batch is always
this rank's share.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from model import AMFormer, Prediction
from model.amformer import losses
from model.amformer.detail_mining import CHOSEN, LEVELS, PARTS, DiscriminatorOutputs
from model.constants import IGNORE
from model.resize import bilinear_ac
from util import speed
from util.config import Config
from util.evaluate.metrics import ClassTotals, accuracy, label_areas
from util.features import EncodedBatch
from util.runtime import Ranks, RunStopped, distributed
from util.train.optimizers import build_optimizers, lr_schedule, set_lr

Losses = dict[str, Tensor]  # by name
FURTHER = {"dice": losses.dice, "balanced": losses.balanced}
"""Losses of G beside the published ones, by name."""

Pixels = tuple[Tensor, ...]  # numbers of labeled pixels: of the masks, of the base labels


class NonFiniteStep(RunStopped):
    """A loss or a gradient, perhaps of another rank, is NaN or infinite.

    The message names iteration and episodes; `losses` are this rank's, `pixels` is what
    `count_labeled_pixels` returned, () in a step of D.
    """

    def __init__(self, message: str, on_this_rank: bool, losses: Losses, pixels: Pixels) -> None:
        super().__init__(message)
        self.on_this_rank, self.losses, self.pixels = on_this_rank, losses, pixels


@torch.no_grad()
def final_areas(prediction: Prediction, batch: EncodedBatch) -> Tensor:
    """Return `label_areas` of the final masks at S x S: int64 [2 (background, object), 3]."""
    final = bilinear_ac(prediction.final, prediction.size)
    return label_areas((final[:, 1] > final[:, 0]).long(), batch.query_mask, 2)


def choose_parts(seed: int, iteration: int) -> Tensor:
    """Draw 9 of 14 part maps for the diversity loss: their numbers [levels, 2 (fake, real), 9]."""
    rng = np.random.default_rng((seed, iteration))
    sets = [rng.permutation(PARTS)[:CHOSEN] for _ in range(2 * LEVELS)]
    return torch.from_numpy(np.stack(sets)).view(LEVELS, 2, CHOSEN)


class AdversarialTrainer:
    """Model, on its device, both optimizers and the step of a run of `total` iterations.

    The learning rate rises in the first `warmup` of them, see `lr_schedule`. `areas` counts the
    pixels of the final masks in training, for background and object, until it is set to 0.
    """

    def __init__(
        self, model: AMFormer, cfg: Config, total: int, ranks: Ranks, warmup: int = 0
    ) -> None:
        self.model, self.cfg, self.total, self.ranks = model, cfg.Train, total, ranks
        self.warmup, self.areas = warmup, ClassTotals(1, ranks.device)
        self.skip_empty = cfg.Data.absent > 0  # targets that are empty on purpose
        optimizers = self.optimizer_g, self.optimizer_d = build_optimizers(model, cfg)
        half = cfg.Train.precision == "fp16"  # its range is small, so gradients are scaled
        self.scalers = {o: GradScaler(ranks.device.type, enabled=half) for o in optimizers}

    def step(self, batch: EncodedBatch, iteration: int, in_epoch: int) -> Losses:
        """Take one step: of G in an even iteration of an epoch, of D in an odd one.

        Without `Train.adversarial` every step is G's. Iterations count from 0: `iteration` in the
        run, `in_epoch` in the epoch. The losses returned are detached; `accuracy` is the share of
        labeled pixels that this rank's final masks get right. Raises `NonFiniteStep` if a loss or
        gradient is not finite; no parameter has then changed.
        """
        train = self.cfg
        rate = lr_schedule(train.lr, iteration, self.total, train.power, self.warmup)
        set_lr(self.optimizer_g, rate)
        set_lr(self.optimizer_d, rate)
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

    @property
    def rate(self) -> float:
        """The learning rate of the last step, before the groups' multipliers."""
        group = self.optimizer_g.param_groups[0]
        return group["lr"] / group["multiplier"]

    def rates(self) -> dict[str, float]:
        """Return the learning rates by name, one for each multiplier."""
        return {f"lr_x{g['multiplier']:g}": g["lr"] for g in self.optimizer_g.param_groups}

    def state_dict(self) -> dict[str, Any]:
        """Return the state of optimizers and gradient scalers; the model's is not in it."""
        g, d = self.optimizer_g.state_dict(), self.optimizer_d.state_dict()
        scalers = [scaler.state_dict() for scaler in self.scalers.values()]
        return {"optimizer_g": g, "optimizer_d": d, "scalers": scalers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; further keys are ignored."""
        self.optimizer_g.load_state_dict(state["optimizer_g"])
        self.optimizer_d.load_state_dict(state["optimizer_d"])
        for scaler, saved in zip(self.scalers.values(), state.get("scalers", []), strict=False):
            if scaler.is_enabled() and saved:
                scaler.load_state_dict(saved)

    def predict(self, batch: EncodedBatch) -> Prediction:
        """Predict encoded episodes; the base learner leaves out the class of each episode."""
        return self.model.match(batch.query, batch.supports, class_index=batch.class_index)

    def discriminator_outputs(
        self, prediction: Prediction, batch: EncodedBatch
    ) -> list[DiscriminatorOutputs]:
        """Return what D makes of the predicted masks (fake) and of the true ones (real)."""
        truth = (batch.query_mask == 1)[:, None].to(prediction.foreground.dtype)
        real = bilinear_ac(truth, prediction.foreground.shape[-2:])
        return self.model.detail_mining(prediction.features, prediction.foreground, real)

    def segmentation_losses(
        self, prediction: Prediction, batch: EncodedBatch, pixels: Pixels
    ) -> Losses:
        """Return the losses `main`, `aux`, `distillation` and `base` of a batch or a part of one.

        `pixels` is `count_labeled_pixels` of the whole batch. `base` is the loss of the base
        learner, which is frozen: it is shown, not trained on.
        """
        mask, base_mask = batch.query_mask, batch.query_base_mask
        labeled, base_labeled = pixels
        levels = [losses.cross_entropy(z, mask, labeled) for z in prediction.logits]
        return {
            "main": losses.cross_entropy(prediction.final, mask, labeled),
            "aux": torch.stack(levels).mean(),
            "distillation": losses.distillation(
                prediction.correlations, mask, skip_empty=self.skip_empty
            ),
            "base": losses.cross_entropy(prediction.base_logits, base_mask, base_labeled),
        }

    def count_labeled_pixels(self, batch: EncodedBatch) -> Pixels:
        """Return the labeled pixels of the masks and of the base labels, mean over the ranks."""
        masks = batch.query_mask, batch.query_base_mask
        counts = torch.stack([(mask != IGNORE).sum() for mask in masks])
        return tuple(distributed.mean_over_ranks(counts, self.ranks).clamp(min=1))

    def loss_weight(self, part: EncodedBatch, batch: EncodedBatch) -> float:
        """Return the weight of a part's mean loss in the mean over all ranks' whole batch."""
        if self.ranks.world == 1:
            return len(part) / len(batch)
        return len(part) * self.ranks.world / self.cfg.batch_size

    def autocast(self) -> AbstractContextManager:
        """Return the context of the forward pass; losses and D stay in float32."""
        return speed.autocast(self.cfg.precision, self.ranks.device)

    def _step(
        self, optimizer: Optimizer, batch: EncodedBatch, name: str,
        losses_of: Callable[[EncodedBatch], Losses], iteration: int, pixels: Pixels = (),
    ) -> Losses:  # fmt: skip
        """Take a step of one optimizer on the loss `name`, summed over the parts of a batch."""
        scaler = self.scalers[optimizer]
        parameters: list[nn.Parameter] = [p for g in optimizer.param_groups for p in g["params"]]
        gradients: list[Tensor] = []
        sums: Losses = {}
        for part in batch.split(self.cfg.accumulate):
            terms = losses_of(part)
            new = list(torch.autograd.grad(scaler.scale(terms[name]), parameters))
            gradients = [a + b for a, b in zip(gradients, new, strict=True)] if gradients else new
            terms = {key: value.detach() for key, value in terms.items()}
            sums = {key: sums[key] + terms[key] for key in sums} if sums else terms
        areas = sums.pop("areas")
        good = torch.isfinite(sums[name])
        if self.cfg.precision != "fp16":  # with fp16 the scaler looks for such gradients
            good = good & torch.nn.utils.get_total_norm(gradients).isfinite()
        if distributed.all_reduce_sum((~good).float()):
            reason = "the step of another rank is not finite"
            if not good:
                reason = self._reason(sums[name], parameters, gradients)
                reason += f", episodes: {'; '.join(str(plan) for plan in batch.plans)}"
            raise NonFiniteStep(f"iteration {iteration}: {reason}", not good, sums, pixels)
        for each in (self.optimizer_g, self.optimizer_d):
            each.zero_grad()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.contiguous()  # fused optimizers accept equal strides only
        distributed.reduce_gradients(parameters)
        scaler.step(optimizer)
        scaler.update()
        self.areas.totals += areas
        return sums | {"accuracy": accuracy(areas)}

    def _reason(self, loss: Tensor, parameters: list[nn.Parameter], gradients: list[Tensor]) -> str:
        """Return what is not finite; a finite loss may have gradients that are not."""
        if not torch.isfinite(loss):
            return f"the loss is {loss.item()}"
        names = {id(p): name for name, p in self.model.named_parameters()}
        pairs = zip(parameters, gradients, strict=True)
        bad = [names[id(p)] for p, gradient in pairs if not gradient.isfinite().all()]
        return f"the gradient of {bad[0]} is not finite" if bad else "the gradients are too large"
