"""The adversarial game: the two steps and how they alternate (method 6).

G and D see the same encoded episodes. Gradients are taken for the player's own parameters only,
then averaged over the ranks by hand: a step of one player leaves nothing behind in the other.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from model import AMFormer, Prediction, losses
from model.detail_mining import CHOSEN, LEVELS, PARTS, Detail
from model.resize import bilinear_ac
from util import distributed
from util.distributed import Ranks
from util.encoded import EncodedBatch
from util.logger import RunStopped
from util.optimizers import build_optimizers, poly, set_rate


@dataclass
class StepResult:
    """One step's losses by name, detached, and the prediction they were computed on."""

    losses: dict[str, Tensor]
    prediction: Prediction


class NonFiniteLoss(RunStopped):
    """A loss is NaN or infinite; the message names iteration and episodes."""


def choose_parts(seed: int, iteration: int) -> Tensor:
    """Part maps for the diversity loss, 9 of 14 each; a function of (seed, iteration).

    Returns:
        [levels, 2 (fake, real), 9]
    """
    rng = np.random.default_rng((seed, iteration))
    sets = [rng.permutation(PARTS)[:CHOSEN] for _ in range(2 * LEVELS)]
    return torch.from_numpy(np.stack(sets)).view(LEVELS, 2, CHOSEN)


class Game:
    """Model, both optimisers and the rules.

    Args:
        model: on its device.
        cfg: the whole config.
        total: iterations of the run, for the schedule.
        ranks: which share of each batch this process has.
    """

    def __init__(self, model: AMFormer, cfg, total: int, ranks: Ranks):
        self.model, self.cfg, self.total, self.ranks = model, cfg.Train, total, ranks
        self.optimizer_g, self.optimizer_d = build_optimizers(model, cfg)

    def step(self, batch: EncodedBatch, iteration: int, in_epoch: int) -> StepResult:
        """One iteration: G's when it is an even one of its epoch, D's when it is an odd one.

        Without `Train.adversarial` every iteration is G's.

        Args:
            batch: this rank's share.
            iteration: of the run, from 0.
            in_epoch: of the epoch, from 0.

        Raises:
            NonFiniteLoss: before any parameter has changed.
        """
        train = self.cfg
        rate = poly(train.lr, iteration, self.total, train.power)
        set_rate(self.optimizer_g, rate)
        set_rate(self.optimizer_d, rate)
        if not train.adversarial:
            return self.g_step(batch, weight=0.0, iteration=iteration)
        if in_epoch % 2:
            chosen = choose_parts(train.seed, iteration)
            return self.d_step(batch, chosen, iteration=iteration)
        strong = in_epoch % train.adversarial_period == train.adversarial_period - 1
        weight = train.adversarial_weight if strong else train.adversarial_rest_weight
        return self.g_step(batch, weight=weight, iteration=iteration)

    def g_step(self, batch: EncodedBatch, *, weight: float, iteration: int = 0) -> StepResult:
        """One step of G on main + aux + aux_weight1 * distillation + weight * adversarial."""
        prediction = self.predict(batch)
        terms = self.segmentation_losses(prediction, batch)
        share = self.share(batch)
        total = terms["main"] + terms["aux"] + self.cfg.aux_weight1 * share * terms["distillation"]
        if self.cfg.adversarial:
            terms["adversarial_g"] = losses.generator(self.inspect(prediction, batch))
            total = total + weight * share * terms["adversarial_g"]
        terms["loss_g"] = total
        self._update(self.optimizer_g, total, batch, iteration)
        return self._result(terms, prediction)

    def d_step(self, batch: EncodedBatch, chosen: Tensor, *, iteration: int = 0) -> StepResult:
        """One step of D on its loss + diversity_weight * diversity; no graph through G is built.

        Args:
            batch: this rank's share.
            chosen: see `choose_parts`.
            iteration: of the run, for the message of a loss that is not finite.
        """
        with torch.no_grad():
            prediction = self.predict(batch)
        details = self.inspect(prediction, batch)
        terms = {
            "adversarial_d": losses.discriminator(details),
            "diversity": losses.diversity(details, chosen.to(details[0].fake_maps.device)),
        }
        total = terms["adversarial_d"] + self.cfg.diversity_weight * terms["diversity"]
        total = self.share(batch) * total
        terms["loss_d"] = total
        self._update(self.optimizer_d, total, batch, iteration)
        return self._result(terms, prediction)

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
        }

    def load_state_dict(self, state: dict) -> None:
        """Takes what `state_dict` gave, among other things."""
        self.optimizer_g.load_state_dict(state["optimizer_g"])
        self.optimizer_d.load_state_dict(state["optimizer_d"])

    def predict(self, batch: EncodedBatch) -> Prediction:
        """Forward on encoded episodes; the episode's own class is left out of the base."""
        return self.model.match(batch.query, batch.supports, class_index=batch.class_index)

    def inspect(self, prediction: Prediction, batch: EncodedBatch) -> list[Detail]:
        """D's view of a prediction beside the truth."""
        truth = (batch.query_mask == 1)[:, None].to(prediction.foreground.dtype)
        real = bilinear_ac(truth, prediction.foreground.shape[-2:])
        return self.model.detail_mining(prediction.features, prediction.foreground, real)

    def segmentation_losses(self, prediction: Prediction, batch: EncodedBatch) -> dict[str, Tensor]:
        """main, aux, distillation, and base: the base learner's, without gradient, only watched."""
        mask, base_mask = batch.query_mask, batch.query_base_mask
        counts = torch.stack([(m != losses.IGNORE).sum() for m in (mask, base_mask)])
        pixels, base_pixels = distributed.mean_over_ranks(counts, self.ranks).clamp(min=1)
        levels = [losses.cross_entropy(z, mask, pixels) for z in prediction.logits]
        return {
            "main": losses.cross_entropy(prediction.final, mask, pixels),
            "aux": torch.stack(levels).mean(),
            "distillation": losses.distillation(prediction.correlations, mask),
            "base": losses.cross_entropy(prediction.base_logits, base_mask, base_pixels),
        }

    def share(self, batch: EncodedBatch) -> float:
        """What this rank's mean over episodes weighs in the mean over ranks of the whole batch."""
        return len(batch) * self.ranks.world / self.cfg.batch_size if self.ranks.world > 1 else 1.0

    def _update(
        self, optimizer: Optimizer, loss: Tensor, batch: EncodedBatch, iteration: int
    ) -> None:
        self._stop_if_not_finite(loss.detach(), batch, iteration)
        parameters: list[nn.Parameter] = [p for g in optimizer.param_groups for p in g["params"]]
        gradients = torch.autograd.grad(loss, parameters)
        for player in (self.optimizer_g, self.optimizer_d):
            player.zero_grad()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.contiguous()  # the fused optimisers take equal strides only
        distributed.reduce_gradients(parameters)
        optimizer.step()

    def _stop_if_not_finite(self, loss: Tensor, batch: EncodedBatch, iteration: int) -> None:
        bad = distributed.all_reduce_sum((~torch.isfinite(loss)).float())
        if not bad:
            return
        if torch.isfinite(loss):
            raise NonFiniteLoss(f"iteration {iteration}: the loss of another rank is not finite")
        episodes = "; ".join(str(plan) for plan in batch.plans)
        raise NonFiniteLoss(
            f"iteration {iteration}: the loss is {loss.item()}, episodes: {episodes}"
        )

    def _result(self, terms: dict[str, Tensor], prediction: Prediction) -> StepResult:
        return StepResult({name: value.detach() for name, value in terms.items()}, prediction)
