"""Stage one: the base learner's data, model, training step and validation."""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD

from model.backbones import check_size, load_pretrained, pixel_statistics
from model.base_learner import BaseLearner
from model.constants import IGNORE
from model.folding import fold_batch_norms
from model.losses import cross_entropy
from model.resize import bilinear_ac
from util.checkpoint import read_checkpoint
from util.config import Config
from util.data import (
    BaseLearnerDataset,
    BaseLearnerTransform,
    EvalTransform,
    KeepTransform,
    load_batches,
)
from util.data.batches import Batches, FixedBatches
from util.evaluate.metrics import (
    ClassTotals,
    LossTotals,
    accuracy,
    label_areas,
    sum_over_ranks,
)
from util.evaluate.scores import BaseScores, percent_by_name
from util.evaluate.visualize import draw_labels
from util.folds import fold_of
from util.runtime import Ranks, RunStopped, Stop, UserError, distributed
from util.runtime.rng import random_state, set_random_state
from util.train.optimizers import lr_schedule, set_lr

Samples = Iterator[tuple[Tensor, Tensor]]


def check_target(cfg: Config) -> None:
    """Check the file that the base learner goes to; its run has the folder of that name.

    Raises `UserError` if `Method.pre_weight` is empty, has no ending such as .pth, is a file that
    stage one did not write, or its folder is that of stage two.
    """
    if not cfg.Method.pre_weight:
        raise UserError("Method.pre_weight is empty: name the file that the base learner goes to")
    path = Path(cfg.Method.pre_weight)
    if not path.suffix:
        raise UserError(f"Method.pre_weight: {path} has no ending; write {path}.pth")
    if path.with_suffix("").resolve() == Path(cfg.Train.save_path).resolve():
        mistake = f"its run's folder would be {path.with_suffix('')}, which is Train.save_path"
        raise UserError(f"Method.pre_weight: {path}: {mistake}; rename one of them")
    if path.exists() and "base_miou" not in read_checkpoint(path):  # stage one writes that
        mistake = "holds weights that stage one did not write, such as BAM's own"
        raise UserError(f"Method.pre_weight: {path}: {mistake}; name another file to train one")


def transform(cfg: Config, *, train: bool) -> EvalTransform:
    """Return random crops for training with `Base.augment`, a resize to S x S otherwise.

    Validation resizes as `Base.val_resize` says.
    """
    base, statistics = cfg.Base, pixel_statistics(cfg.Method.backbone)
    size = cfg.sizes["Base.size"]
    if train and base.augment:
        return BaseLearnerTransform(size, base.scale, base.rotate, *statistics)
    if not train and base.val_resize == "keep":
        return KeepTransform(size, *statistics)
    return EvalTransform(size, *statistics)


def build_base_learner(cfg: Config, ranks: Ranks) -> BaseLearner:
    """Build the base learner in training mode on pretrained weights, the same on every rank.

    Raises `UserError` if a size in the config does not suit the backbone.
    """
    model = BaseLearner(cfg.Method.backbone, cfg.num_base_classes)
    for key, size in cfg.sizes.items():  # those of stage two before stage one takes hours
        check_size(model.backbone, size, key)
    load_pretrained(model.backbone, cfg.Method.backbone, cfg.Method.pretrained)
    set_training_mode(model.to(ranks.device), cfg)
    model.backbone.requires_grad_(not cfg.Base.freeze_backbone)
    distributed.broadcast_parameters(model)
    if ranks.world > 1 and ranks.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model


def set_training_mode(model: BaseLearner, cfg: Config) -> None:
    """Put all of a base learner but a frozen backbone into training mode."""
    model.train()
    model.backbone.train(not cfg.Base.freeze_backbone)


class BaseLearnerTrainer:
    """Model, on its device, and training step with SGD.

    The learning rate decreases over `total` iterations, after it has risen in the first `warmup` of
    them; `rate` is the backbone's in the last step. Pyramid pooling and classifier learn at a
    multiple of it. `areas` counts the pixels of the training images until it is set to 0.
    """

    def __init__(
        self, model: BaseLearner, cfg: Config, total: int, ranks: Ranks, warmup: int = 0
    ) -> None:
        self.model, self.cfg, self.total, self.ranks = model, cfg, total, ranks
        self.warmup, self.areas = warmup, ClassTotals(cfg.num_base_classes, ranks.device)
        base, self.rate = cfg.Base, cfg.Base.lr
        body = [p for p in model.backbone.parameters() if p.requires_grad]
        head = [p for n, p in model.named_parameters() if not n.startswith("backbone.")]
        groups: list[dict[str, Any]] = [{"params": head, "multiplier": base.head_lr_multiplier}]
        groups += [{"params": body, "multiplier": 1.0}] if body else []
        self.optimizer = SGD(groups, base.lr, base.momentum, weight_decay=base.weight_decay)
        self._parameters = head + body

    def step(self, x: Tensor, target: Tensor, iteration: int) -> dict[str, Tensor]:
        """Take one step on `loss_of` images or f4 and labels; return its values, detached.

        These are `loss` and `accuracy`, the share of this rank's labeled pixels that are right.
        Raises `RunStopped` if the loss is not finite; model and random states are then as before
        the step.
        """
        base = self.cfg.Base
        self.rate = lr_schedule(base.lr, iteration, self.total, base.power, self.warmup)
        set_lr(self.optimizer, self.rate)
        random, buffers = random_state(), [buffer.clone() for buffer in self.model.buffers()]
        loss, areas = loss_of(self.model, x, target, self.cfg, self.ranks)
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
        self.areas.totals += areas
        return {"loss": loss.detach(), "accuracy": accuracy(areas)}

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state; the model's is not in it."""
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; further keys are ignored."""
        self.optimizer.load_state_dict(state["optimizer"])


def loss_of(
    model: BaseLearner, x: Tensor, target: Tensor, cfg: Config, ranks: Ranks
) -> tuple[Tensor, Tensor]:
    """Return the mean cross-entropy over the labeled pixels of all ranks' batch, and `label_areas`.

    `x`: images [b,3,S,S], or f4 [b,C,h,w] with `Base.freeze_backbone`; `target`: labels [b,S,S].
    """
    logits = model.classify(model.context(x)) if cfg.Base.freeze_backbone else model(x)
    pixels = distributed.mean_over_ranks((target != IGNORE).sum(), ranks)
    scores = bilinear_ac(logits, tuple(target.shape[-2:]))
    loss = cross_entropy(scores, target, pixels.clamp(min=1))
    return loss, label_areas(scores.argmax(1), target, scores.shape[1])


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
    model: BaseLearner, images: BaseLearnerDataset, batches: Batches | FixedBatches, ranks: Ranks
) -> Samples:
    """Encode each image once: without augmentation it is the same in every epoch."""
    frozen = fold_batch_norms(deepcopy(model).eval()).get_submodule("backbone")
    store: dict[str, tuple[Tensor, Tensor]] = {}
    for indices in batches:
        for index in indices:
            if (name := images.name(index)) not in store:
                image, label = (x[None].to(ranks.device) for x in images[index])
                with torch.no_grad():
                    store[name] = frozen(image)[-1], label.short()
        pairs = [store[images.name(index)] for index in indices]
        yield torch.cat([f4 for f4, _ in pairs]), torch.cat([label for _, label in pairs]).long()


class Validation:
    """Scores a base learner on the first validation images; a frozen backbone's f4 are kept.

    As in BAM, S x S predictions are compared with labels of that size.
    """

    STRIPS, BATCH = 4, 4  # images that are drawn; that run at a time

    def __init__(self, tests: BaseLearnerDataset, cfg: Config, ranks: Ranks) -> None:
        self.tests, self.cfg, self.ranks = tests, cfg, ranks
        self.names = [fold_of(cfg.Data).names[c - 1] for c in fold_of(cfg.Data).channels]
        count = min(cfg.Base.val_images or len(tests), len(tests))  # beyond, the images repeat
        self.indices = list(range(ranks.rank, count, ranks.world))
        self.count = count
        self._f4: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def run(self, model: BaseLearner, stop: Stop) -> tuple[BaseScores, list[np.ndarray]] | None:
        """Return the scores and some pictures; None if any rank was asked to stop.

        The model, in training mode before, is in it again.
        """
        distributed.broadcast_parameters(model)  # every rank takes rank 0's batch norm statistics
        folded = fold_batch_norms(model.eval())
        totals = ClassTotals(len(self.names), self.ranks.device)
        loss = LossTotals(self.ranks.device)
        strips: list[np.ndarray] = []
        drawn = self.indices[:: max(1, len(self.indices) // self.STRIPS)][: self.STRIPS]
        for indices, (logits, target) in zip(self._batches(), self._logits(folded), strict=False):
            scores = bilinear_ac(logits, tuple(target.shape[-2:]))
            prediction = scores.argmax(1)
            totals.add(prediction, target)
            for row, index in enumerate(indices):
                loss.add(scores[row], target[row])
                if index in drawn:
                    strips.append(self._draw(index, target[row], prediction[row]))
            if stop.requested:
                break
        set_training_mode(model, self.cfg)
        if distributed.any_rank([stop.requested], self.ranks)[0]:
            return None
        sum_over_ranks(totals, loss)
        classes = percent_by_name(totals, self.names)
        return BaseScores(100 * totals.miou(), loss.mean(), self.count, classes), strips

    def _draw(self, index: int, target: Tensor, prediction: Tensor) -> np.ndarray:
        """Draw image `index`, its label and its prediction, both [S,S]."""
        normal, to_bytes = self.tests[index][0].permute(1, 2, 0).numpy(), self.tests.transform
        image = (normal * to_bytes.std + to_bytes.mean).round().clip(0, 255).astype(np.uint8)
        labels = {"truth": target, "prediction": prediction}
        return draw_labels(image, {k: v.short().cpu().numpy() for k, v in labels.items()})

    def _batches(self) -> list[list[int]]:
        """Return the numbers of this rank's images, batch by batch."""
        starts = range(0, len(self.indices), self.BATCH)
        return [self.indices[start : start + self.BATCH] for start in starts]

    def _logits(self, model: BaseLearner) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the logits [b,N+1,h,w] and the labels [b,S,S] of each batch of this rank."""
        keep = self.cfg.Base.freeze_backbone and not self.cfg.Base.augment
        batches = FixedBatches(self._batches())
        if keep and not self._f4:
            self._f4 = list(_stored_f4_batches(model, self.tests, batches, self.ranks))
        if keep:
            yield from ((model.classify(model.context(f4)), label) for f4, label in self._f4)
            return
        loaded = load_batches(self.tests, batches, self.cfg.workers)
        for image, target in _on_device(loaded, self.ranks.device):
            yield model(image), target
