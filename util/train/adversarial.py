"""The adversarial game: the two steps and how they alternate (method 6).

G and D see the same encoded episodes. Gradients are taken for the player's own parameters only,
then averaged over the ranks by hand: a step of one player leaves nothing behind in the other.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from model import AMFormer, Prediction
from model.amformer import losses
from model.amformer.detail_mining import CHOSEN, LEVELS, PARTS, Detail
from model.constants import IGNORE
from model.resize import bilinear_ac
from util.config import Config
from util.features import EncodedBatch
from util.runtime import distributed, speed
from util.runtime.distributed import Ranks
from util.runtime.errors import RunStopped
from util.train.optimizers import build_optimizers, lr_schedule, set_lr


class NonFiniteStep(RunStopped):
    """A loss or a gradient is NaN or infinite; the message names iteration and episodes.

    Attributes:
        own: it is this rank's loss or gradient.
        losses: by name, as far as they were computed here.
        pixels: as `Game.pixels` gave them; () in a step of D.
    """

    own = False
    losses: dict[str, Tensor] = {}
    pixels: tuple[Tensor, ...] = ()


def choose_parts(seed: int, iteration: int) -> Tensor:
    """Part maps for the diversity loss, 9 of 14 each; a function of (seed, iteration).

    Returns:
        [levels, 2 (fake, real), 9]
    """
    rng = np.random.default_rng((seed, iteration))
    sets = [rng.permutation(PARTS)[:CHOSEN] for _ in range(2 * LEVELS)]
    return torch.from_numpy(np.stack(sets)).view(LEVELS, 2, CHOSEN)


class AdversarialTrainer:
    """Model, both optimisers and the rules.

    Args:
        model: on its device.
        cfg: the whole config.
        total: iterations of the run, for the schedule.
        ranks: which share of each batch this process has.
    """

    def __init__(self, model: AMFormer, cfg: Config, total: int, ranks: Ranks):
        self.model, self.cfg, self.total, self.ranks = model, cfg.Train, total, ranks
        self.optimizer_g, self.optimizer_d = build_optimizers(model, cfg)
        half = cfg.Train.precision == "fp16"  # whose range is small: gradients are scaled
        self.scalers = {
            player: torch.amp.GradScaler(ranks.device.type, enabled=half)
            for player in (self.optimizer_g, self.optimizer_d)
        }

    def step(self, batch: EncodedBatch, iteration: int, in_epoch: int) -> dict[str, Tensor]:
        """One iteration: G's when it is an even one of its epoch, D's when it is an odd one.

        Without `Train.adversarial` every iteration is G's.

        Args:
            batch: this rank's share.
            iteration: of the run, from 0.
            in_epoch: of the epoch, from 0.

        Returns:
            Its losses by name, detached.

        Raises:
            NonFiniteStep: before any parameter has changed.
        """
        train = self.cfg
        rate = lr_schedule(train.lr, iteration, self.total, train.power)
        set_lr(self.optimizer_g, rate)
        set_lr(self.optimizer_d, rate)
        if not train.adversarial:
            return self.generator_step(batch, weight=0.0, iteration=iteration)
        if in_epoch % 2:
            chosen = choose_parts(train.seed, iteration)
            return self.discriminator_step(batch, chosen, iteration=iteration)
        strong = in_epoch % train.adversarial_period == train.adversarial_period - 1
        weight = train.adversarial_weight if strong else train.adversarial_rest_weight
        return self.generator_step(batch, weight=weight, iteration=iteration)

    def generator_step(
        self, batch: EncodedBatch, *, weight: float, iteration: int = 0
    ) -> dict[str, Tensor]:
        """One step of G on main + aux + aux_weight1 * distillation + weight * adversarial."""
        pixels = self.pixels(batch)

        def losses_of(part: EncodedBatch) -> dict[str, Tensor]:
            with self.autocast():
                prediction = self.predict(part)
            terms = self.segmentation_losses(prediction, part, pixels)
            total = terms["main"] + terms["aux"]
            share = self.loss_weight(part, batch)
            terms["distillation"] = share * terms["distillation"]
            total = total + self.cfg.aux_weight1 * terms["distillation"]
            if self.cfg.adversarial:
                terms["adversarial_g"] = share * losses.generator(
                    self.discriminator_outputs(prediction, part)
                )
                total = total + weight * terms["adversarial_g"]
            return terms | {"loss_g": total}

        return self._step(self.optimizer_g, batch, "loss_g", losses_of, iteration, pixels)

    def discriminator_step(
        self, batch: EncodedBatch, chosen: Tensor, *, iteration: int = 0
    ) -> dict[str, Tensor]:
        """One step of D on its loss + diversity_weight * diversity; no graph through G is built.

        Args:
            batch: this rank's share.
            chosen: see `choose_parts`.
            iteration: of the run, for the message of a loss that is not finite.
        """

        def losses_of(part: EncodedBatch) -> dict[str, Tensor]:
            with torch.no_grad(), self.autocast():
                prediction = self.predict(part)
            details, share = (
                self.discriminator_outputs(prediction, part),
                self.loss_weight(part, batch),
            )
            terms = {
                "adversarial_d": share * losses.discriminator(details),
                "diversity": share
                * losses.diversity(details, chosen.to(details[0].fake_maps.device)),
            }
            total = terms["adversarial_d"] + self.cfg.diversity_weight * terms["diversity"]
            return terms | {"loss_d": total}

        return self._step(self.optimizer_d, batch, "loss_d", losses_of, iteration)

    @property
    def rate(self) -> float:
        """The schedule's learning rate, before the groups' multipliers."""
        group = self.optimizer_g.param_groups[0]
        return group["lr"] / group["multiplier"]

    def rates(self) -> dict[str, float]:
        """The rates of the two kinds of group, by name."""
        groups = self.optimizer_g.param_groups
        return {f"lr_x{g['multiplier']:g}": g["lr"] for g in groups}

    def state_dict(self) -> dict:
        """Both optimisers; the model's own state is not in it."""
        return {
            "optimizer_g": self.optimizer_g.state_dict(),
            "optimizer_d": self.optimizer_d.state_dict(),
            "scalers": [scaler.state_dict() for scaler in self.scalers.values()],
        }

    def load_state_dict(self, state: dict) -> None:
        """Takes what `state_dict` gave, among other things."""
        self.optimizer_g.load_state_dict(state["optimizer_g"])
        self.optimizer_d.load_state_dict(state["optimizer_d"])
        for scaler, saved in zip(self.scalers.values(), state.get("scalers", []), strict=False):
            if scaler.is_enabled() and saved:
                scaler.load_state_dict(saved)

    def predict(self, batch: EncodedBatch) -> Prediction:
        """Forward on encoded episodes; the episode's own class is left out of the base."""
        return self.model.match(batch.query, batch.supports, class_index=batch.class_index)

    def discriminator_outputs(self, prediction: Prediction, batch: EncodedBatch) -> list[Detail]:
        """D's view of a prediction beside the truth."""
        truth = (batch.query_mask == 1)[:, None].to(prediction.foreground.dtype)
        real = bilinear_ac(truth, prediction.foreground.shape[-2:])
        return self.model.detail_mining(prediction.features, prediction.foreground, real)

    def segmentation_losses(
        self, prediction: Prediction, batch: EncodedBatch, pixels: tuple[Tensor, Tensor]
    ) -> dict[str, Tensor]:
        """main, aux, distillation, and base: the base learner's, without gradient, only watched.

        `pixels`: see `pixels`; of the whole batch where this is a part of one.
        """
        mask, base_mask = batch.query_mask, batch.query_base_mask
        labelled, base_labelled = pixels
        levels = [losses.cross_entropy(z, mask, labelled) for z in prediction.logits]
        return {
            "main": losses.cross_entropy(prediction.final, mask, labelled),
            "aux": torch.stack(levels).mean(),
            "distillation": losses.distillation(prediction.correlations, mask),
            "base": losses.cross_entropy(prediction.base_logits, base_mask, base_labelled),
        }

    def pixels(self, batch: EncodedBatch) -> tuple[Tensor, Tensor]:
        """Labelled pixels of the masks and of the base labels, mean over the ranks."""
        masks = batch.query_mask, batch.query_base_mask
        counts = torch.stack([(mask != IGNORE).sum() for mask in masks])
        return tuple(distributed.mean_over_ranks(counts, self.ranks).clamp(min=1))

    def loss_weight(self, part: EncodedBatch, batch: EncodedBatch) -> float:
        """What the mean over a part's episodes weighs in the mean over all ranks' whole batch."""
        if self.ranks.world == 1:
            return len(part) / len(batch)
        return len(part) * self.ranks.world / self.cfg.batch_size

    def autocast(self) -> AbstractContextManager:
        """The block of the forward pass; losses and D stay in float32."""
        return speed.autocast(self.cfg.precision, self.ranks.device)

    def _step(
        self,
        optimizer: Optimizer,
        batch: EncodedBatch,
        name: str,
        losses_of: Callable[[EncodedBatch], dict[str, Tensor]],
        iteration: int,
        pixels: tuple[Tensor, ...] = (),
    ) -> dict[str, Tensor]:
        """One step of a player on the sum of the loss `name` over the parts of a batch."""
        scaler = self.scalers[optimizer]
        parameters: list[nn.Parameter] = [p for g in optimizer.param_groups for p in g["params"]]
        gradients, sums = None, None
        for part in batch.split(self.cfg.accumulate):
            terms = losses_of(part)
            new = torch.autograd.grad(scaler.scale(terms[name]), parameters)
            gradients = (
                new if gradients is None else [a + b for a, b in zip(gradients, new, strict=True)]
            )
            terms = {key: value.detach() for key, value in terms.items()}
            sums = terms if sums is None else {key: sums[key] + terms[key] for key in sums}
        try:
            self._stop_if_not_finite(sums[name], parameters, gradients, batch, iteration)
        except NonFiniteStep as error:
            error.losses, error.pixels = sums, pixels
            raise
        for player in (self.optimizer_g, self.optimizer_d):
            player.zero_grad()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.contiguous()  # the fused optimisers take equal strides only
        distributed.reduce_gradients(parameters)
        scaler.step(optimizer)
        scaler.update()
        return sums

    def _stop_if_not_finite(
        self,
        loss: Tensor,
        parameters: list[nn.Parameter],
        gradients: list[Tensor],
        batch: EncodedBatch,
        iteration: int,
    ) -> None:
        """Also looks at the gradients, where no scaler does: a finite loss may have others."""
        good = torch.isfinite(loss)
        if self.cfg.precision != "fp16":
            good = good & torch.nn.utils.get_total_norm(gradients).isfinite()
        if not distributed.all_reduce_sum((~good).float()):
            return
        error = NonFiniteStep(f"iteration {iteration}: the step of another rank is not finite")
        if not good:
            episodes = "; ".join(str(plan) for plan in batch.plans)
            what = f"the loss is {loss.item()}"
            if torch.isfinite(loss):
                names = {id(p): name for name, p in self.model.named_parameters()}
                bad = [p for p, g in zip(parameters, gradients, strict=True) if not _all_finite(g)]
                what = (
                    f"the gradient of {names[id(bad[0])]} is not finite"
                    if bad
                    else ("the gradients are too large")
                )
            error = NonFiniteStep(f"iteration {iteration}: {what}, episodes: {episodes}")
            error.own = True
        raise error


def _all_finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())
