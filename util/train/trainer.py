"""What the training of every system shares: one step, its rates, its state.

A step takes the gradients of one optimizer's parameters and averages them over the ranks. Learning
rates and frozen parameters are in util/train/optimizers.py. A batch is always this rank's share.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from model import Prediction, System
from model.constants import IGNORE
from model.resize import bilinear_ac
from util import speed
from util.config import Config
from util.evaluate.metrics import ClassTotals, accuracy, label_areas
from util.features import EncodedBatch
from util.runtime import Ranks, RunStopped, distributed
from util.train.optimizers import lr_schedule, set_lr

Losses = dict[str, Tensor]  # by name
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


class Trainer:
    """Model, on its device, optimizers by name, and the step of a run of `total` iterations.

    The learning rate rises in the first `warmup` of them, see `lr_schedule`. `areas` counts the
    pixels of the final masks in training, for background and object, until it is set to 0.
    """

    model: System

    def __init__(
        self, model: System, cfg: Config, total: int, ranks: Ranks, warmup: int,
        optimizers: dict[str, Optimizer],
    ) -> None:  # fmt: skip
        self.model, self.cfg, self.total, self.ranks = model, cfg.Train, total, ranks
        self.warmup, self.areas = warmup, ClassTotals(1, ranks.device)
        self.optimizers, self.main_optimizer = optimizers, next(iter(optimizers.values()))
        half = cfg.Train.precision == "fp16"  # its range is small, so gradients are scaled
        kind = ranks.device.type
        self.known_pixels: Pixels = ()  # what `count_labeled_pixels` returns, if given
        self.scalers = {o: GradScaler(kind, enabled=half) for o in optimizers.values()}

    def step(self, batch: EncodedBatch, iteration: int, in_epoch: int) -> Losses:
        """Take one step and return its losses, detached.

        Iterations count from 0: `iteration` in the run, `in_epoch` in the epoch. `accuracy` is the
        share of labeled pixels that this rank's final masks get right. Raises `NonFiniteStep` if a
        loss or gradient is not finite; no parameter has then changed.
        """
        raise NotImplementedError

    def set_rates(self, iteration: int) -> None:
        """Set the learning rates of an iteration of the run."""
        train = self.cfg
        rate = lr_schedule(train.lr, iteration, self.total, train.power, self.warmup)
        for optimizer in self.optimizers.values():
            set_lr(optimizer, rate)

    @property
    def rate(self) -> float:
        """The learning rate of the last step, before the groups' multipliers."""
        group = self.main_optimizer.param_groups[0]
        return group["lr"] / group["multiplier"]

    def rates(self) -> dict[str, float]:
        """Return the learning rates by name, one for each multiplier."""
        return {f"lr_x{g['multiplier']:g}": g["lr"] for g in self.main_optimizer.param_groups}

    def state_dict(self) -> dict[str, Any]:
        """Return the state of optimizers and gradient scalers; the model's is not in it."""
        state = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        scalers = [scaler.state_dict() for scaler in self.scalers.values()]
        return {**state, "scalers": scalers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; further keys are ignored."""
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state[name])
        for scaler, saved in zip(self.scalers.values(), state.get("scalers", []), strict=False):
            if scaler.is_enabled() and saved:
                scaler.load_state_dict(saved)

    def predict(self, batch: EncodedBatch) -> Prediction:
        """Predict encoded episodes; the base learner leaves out the class of each episode."""
        return self.model.match(batch.query, batch.supports, class_index=batch.class_index)

    def count_labeled_pixels(self, batch: EncodedBatch) -> Pixels:
        """Return the labeled pixels of the masks and of the base labels, mean over the ranks."""
        if self.known_pixels:
            return self.known_pixels
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
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        good = torch.isfinite(sums[name])
        if self.cfg.precision != "fp16":  # with fp16 the scaler looks for such gradients
            good = good & flat.norm().isfinite()
        if distributed.all_reduce_sum((~good).float()):
            reason = "the step of another rank is not finite"
            if not good:
                reason = self._reason(sums[name], parameters, gradients)
                reason += f", episodes: {'; '.join(str(plan) for plan in batch.plans)}"
            raise NonFiniteStep(f"iteration {iteration}: {reason}", not good, sums, pixels)
        for each in self.optimizers.values():
            each.zero_grad()
        if self.ranks.world > 1:
            distributed.all_reduce_sum(flat).div_(self.ranks.world)
        shares = flat.split([parameter.numel() for parameter in parameters])
        for parameter, share in zip(parameters, shares, strict=True):
            parameter.grad = share.view_as(parameter)
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
