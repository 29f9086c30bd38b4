"""Stage one: the base learner's data, model, training step and validation."""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from model.amformer import losses
from model.backbones import check_size, load_pretrained, pixel_statistics
from model.base_learner import BaseLearner
from model.constants import IGNORE
from model.folding import fold_batch_norms
from model.resize import bilinear_ac
from util.checkpoint import read_checkpoint
from util.config import Config
from util.data import BaseLearnerDataset, BaseLearnerTransform, EvalTransform, load_batches
from util.data.batches import Batches, FixedBatches
from util.evaluate.metrics import BaseTotals, sum_over_ranks
from util.runtime import Ranks, RunStopped, Stop, UserError, distributed
from util.runtime.rng import random_state, set_random_state
from util.train.optimizers import lr_schedule, set_lr

Samples = Iterator[tuple[Tensor, Tensor]]


def check_target(cfg: Config) -> None:
    """Raise `UserError` if `Method.pre_weight` is empty, or a file that is no checkpoint."""
    if not cfg.Method.pre_weight:
        raise UserError("Method.pre_weight is empty: name the file that the base learner goes to")
    if Path(cfg.Method.pre_weight).exists():
        read_checkpoint(cfg.Method.pre_weight)  # only a checkpoint is replaced


def transform(cfg: Config, *, train: bool) -> EvalTransform:
    """Return random crops for training with `Base.augment`, a plain resize to S x S otherwise."""
    base, statistics = cfg.Base, pixel_statistics(cfg.Method.backbone)
    if train and base.augment:
        return BaseLearnerTransform(base.size, base.scale, base.rotate, *statistics)
    return EvalTransform(base.size, *statistics)


def build_base_learner(cfg: Config, ranks: Ranks) -> BaseLearner:
    """Build the base learner in training mode on pretrained weights, the same on every rank.

    Raises `UserError` if `Base.size` or `Data.size` does not suit the backbone.
    """
    base = cfg.Base
    model = BaseLearner(cfg.Method.backbone, cfg.num_base_classes)
    check_size(model.backbone, base.size, "Base.size")
    check_size(model.backbone, cfg.Data.size, "Data.size")  # before stage one takes hours
    load_pretrained(model.backbone, cfg.Method.backbone, cfg.Method.pretrained)
    model.to(ranks.device).train()
    model.backbone.train(not base.freeze_backbone).requires_grad_(not base.freeze_backbone)
    distributed.broadcast_parameters(model)
    if ranks.world > 1 and ranks.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model


class BaseLearnerTrainer:
    """Model, on its device, and training step with SGD.

    The learning rate decreases over `total` iterations; `rate` is the backbone's in the last step.
    Pyramid pooling and classifier learn at a multiple of it.
    """

    def __init__(self, model: BaseLearner, cfg: Config, total: int, ranks: Ranks) -> None:
        self.model, self.cfg, self.total, self.ranks = model, cfg, total, ranks
        base, self.rate = cfg.Base, cfg.Base.lr
        body = [p for p in model.backbone.parameters() if p.requires_grad]
        head = [p for n, p in model.named_parameters() if not n.startswith("backbone.")]
        groups: list[dict[str, Any]] = [{"params": head, "multiplier": base.head_lr_multiplier}]
        groups += [{"params": body, "multiplier": 1.0}] if body else []
        self.optimizer = SGD(groups, base.lr, base.momentum, weight_decay=base.weight_decay)
        self._parameters = head + body

    def step(self, x: Tensor, target: Tensor, iteration: int) -> Tensor:
        """Take one step on `loss_of` images or f4 and labels; return the loss, detached.

        Raises `RunStopped` if the loss is not finite; model and random states are then as before
        the step.
        """
        base = self.cfg.Base
        self.rate = lr_schedule(base.lr, iteration, self.total, base.power)
        set_lr(self.optimizer, self.rate)
        random, buffers = random_state(), [buffer.clone() for buffer in self.model.buffers()]
        loss = loss_of(self.model, x, target, self.cfg, self.ranks)
        if not torch.isfinite(loss):
            set_random_state(random)
            for buffer, old in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(old)  # the statistics of batch norms
            reason = f"the loss is {loss.item()}"
            raise RunStopped(f"iteration {iteration} of the base learner: {reason}")
        self.optimizer.zero_grad()
        loss.backward()
        distributed.reduce_gradients(self._parameters)
        self.optimizer.step()
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state; the model's is not in it."""
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; further keys are ignored."""
        self.optimizer.load_state_dict(state["optimizer"])


def loss_of(model: BaseLearner, x: Tensor, target: Tensor, cfg: Config, ranks: Ranks) -> Tensor:
    """Return the mean cross-entropy over the labeled pixels of all ranks' batch.

    `x`: images [b,3,S,S], or f4 [b,C,h,w] with `Base.freeze_backbone`; `target`: labels [b,S,S].
    """
    logits = model.classify(model.context(x)) if cfg.Base.freeze_backbone else model(x)
    pixels = distributed.mean_over_ranks((target != IGNORE).sum(), ranks)
    return losses.cross_entropy(logits, target, pixels.clamp(min=1))


def training_batches(
    model: BaseLearner, images: BaseLearnerDataset, batches: Batches, cfg: Config, ranks: Ranks
) -> Samples:
    """Yield this rank's (images or f4, labels [b,S,S]) of every iteration, see `loss_of`."""
    frozen = cfg.Base.freeze_backbone
    if frozen and not cfg.Base.augment:
        return _stored_f4_batches(model, images, batches, ranks)
    loaded = load_batches(images, batches, cfg.workers)
    return _on_device(loaded, ranks.device, model.backbone if frozen else None)


def _on_device(loaded: Samples, device: torch.device, backbone: nn.Module | None = None) -> Samples:
    """Yield (images, labels), or (f4, labels) if there is a backbone to encode with."""
    for image, target in loaded:
        x = image.to(device)
        if backbone is not None:
            with torch.no_grad():  # closed before `yield`: the caller needs gradients
                x = backbone(x)[-1]
        yield x, target.to(device)


def _stored_f4_batches(
    model: BaseLearner, images: BaseLearnerDataset, batches: Batches, ranks: Ranks
) -> Samples:
    """Encode each image once: without augmentation it is the same in every epoch."""
    frozen = fold_batch_norms(deepcopy(model).eval()).get_submodule("backbone")
    store: dict[str, tuple[Tensor, Tensor]] = {}
    for indices in batches:
        for index in indices:
            if (name := images.name(index)) not in store:
                image, label = (x[None].to(ranks.device) for x in images[index])
                with torch.no_grad():
                    store[name] = frozen(image)[-1], label
        pairs = [store[images.name(index)] for index in indices]
        yield torch.cat([f4 for f4, _ in pairs]), torch.cat([label for _, label in pairs])


@torch.no_grad()
def validate(
    model: BaseLearner, tests: BaseLearnerDataset, cfg: Config, ranks: Ranks, stop: Stop
) -> float | None:
    """Return the mIoU of the validation images at S x S, in percent over the base classes.

    None if any rank was asked to stop. The model stays in eval mode.
    """
    distributed.broadcast_parameters(model)  # every rank takes rank 0's batch norm statistics
    folded = fold_batch_norms(model.eval())
    totals = BaseTotals(cfg.num_base_classes, ranks.device)
    count = min(cfg.Base.val_images or len(tests), len(tests))  # beyond, the images repeat
    batches = FixedBatches([[index] for index in range(ranks.rank, count, ranks.world)])
    for image, target in _on_device(load_batches(tests, batches, cfg.workers), ranks.device):
        scores = bilinear_ac(folded(image), tuple(target.shape[-2:]))
        totals.add(scores.argmax(1), target)
        if stop.requested:
            break
    if distributed.any_rank([stop.requested], ranks)[0]:
        return None
    sum_over_ranks(totals)
    return 100 * totals.miou()
