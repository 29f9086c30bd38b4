"""Stage one: the base learner's data, model, training step, validation and run."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from model.amformer import losses
from model.backbones import check_size, load_pretrained, pixel_statistics
from model.base_learner import BaseLearner
from model.constants import IGNORE
from model.folding import fold_batch_norms
from model.published import base_to_published
from model.resize import bilinear_ac
from util.checkpoint import resume
from util.checkpoint.file import read_checkpoint, write_checkpoint
from util.config import Config
from util.data.base_images import BaseLearnerDataset
from util.data.batches import Batches, FixedBatches
from util.data.loading import load_batches
from util.data.transform import BaseLearnerTransform, EvalTransform
from util.evaluate.metrics import BaseTotals, sum_over_ranks
from util.runtime import distributed
from util.runtime.distributed import Ranks
from util.runtime.errors import RunStopped, UserError
from util.runtime.files import atomic_write, sweep
from util.runtime.log import add_log_file, log
from util.runtime.rng import random_state, set_random_state
from util.runtime.stop import Stop
from util.train.optimizers import lr_schedule, set_lr
from util.train.run import Run, Trainer

Samples = Iterator[tuple[Tensor, Tensor]]


def check_target(cfg: Config) -> None:
    """Refuse a `Method.pre_weight` that is empty, or a file that is no checkpoint.

    Raises:
        UserError: naming the file.
    """
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

    Raises:
        UserError: `Base.size` or `Data.size` does not suit the backbone.
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


def build_optimizer(model: BaseLearner, cfg: Config) -> Optimizer:
    """Return SGD; pyramid pooling and classifier learn at a multiple of the backbone's rate."""
    base = cfg.Base
    body = [p for n, p in model.named_parameters() if n.startswith("backbone.") and p.requires_grad]
    head = [p for n, p in model.named_parameters() if not n.startswith("backbone.")]
    groups: list[dict[str, Any]] = [{"params": head, "multiplier": base.head_lr_multiplier}]
    groups += [{"params": body, "multiplier": 1.0}] if body else []
    return SGD(groups, lr=base.lr, momentum=base.momentum, weight_decay=base.weight_decay)


class BaseLearnerTrainer:
    """Model, optimizer and training step.

    Args:
        model: on its device.
        cfg: the whole config.
        total: iterations of the run, for the learning rate.
        ranks: this process.

    Attributes:
        rate: the backbone's learning rate in the last step.
    """

    def __init__(self, model: BaseLearner, cfg: Config, total: int, ranks: Ranks) -> None:
        self.model, self.cfg, self.total, self.ranks = model, cfg, total, ranks
        self.optimizer, self.rate = build_optimizer(model, cfg), cfg.Base.lr
        self._parameters = [p for g in self.optimizer.param_groups for p in g["params"]]

    def step(self, x: Tensor, target: Tensor, iteration: int) -> Tensor:
        """Take one step on the loss of all ranks' batch.

        Args:
            x: images or f4, see `loss_of`.
            target: labels [b,S,S].
            iteration: of the run, from 0.

        Returns:
            The loss, detached.

        Raises:
            RunStopped: the loss is not finite; model and random states are as before the step.
        """
        base = self.cfg.Base
        self.rate = lr_schedule(base.lr, iteration, self.total, base.power)
        set_lr(self.optimizer, self.rate)
        with _undone_on_failure(self.model):
            loss = loss_of(self.model, x, target, self.cfg, self.ranks)
            if not torch.isfinite(loss):
                raise RunStopped(
                    f"iteration {iteration} of the base learner: the loss is {loss.item()}"
                )
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

    Args:
        model: the base learner.
        x: images [b,3,S,S], or f4 [b,C,h,w] with `Base.freeze_backbone`.
        target: labels [b,S,S].
        cfg: the whole config.
        ranks: this process.
    """
    logits = model.classify(model.context(x)) if cfg.Base.freeze_backbone else model(x)
    pixels = distributed.mean_over_ranks((target != IGNORE).sum(), ranks)
    return losses.cross_entropy(logits, target, pixels.clamp(min=1))


@contextmanager
def _undone_on_failure(model: nn.Module) -> Iterator[None]:
    """Undo a failing forward pass: restore random states and the statistics of batch norms."""
    random, buffers = random_state(), [buffer.clone() for buffer in model.buffers()]
    try:
        yield
    except RunStopped:
        set_random_state(random)
        for buffer, old in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(old)
        raise


def training_batches(
    model: BaseLearner, images: BaseLearnerDataset, batches: Batches, cfg: Config, ranks: Ranks
) -> Samples:
    """Yield this rank's (images or f4, labels [b,S,S]) of every iteration, see `loss_of`."""
    if not cfg.Base.freeze_backbone:
        return _image_batches(images, batches, cfg, ranks)
    if cfg.Base.augment:
        return _augmented_f4_batches(model, images, batches, cfg, ranks)
    return _stored_f4_batches(model, images, batches, ranks)


def _image_batches(
    images: BaseLearnerDataset, batches: Batches | FixedBatches, cfg: Config, ranks: Ranks
) -> Samples:
    for image, target in load_batches(images, batches, cfg.workers):
        yield image.to(ranks.device), target.to(ranks.device)


def _augmented_f4_batches(
    model: BaseLearner, images: BaseLearnerDataset, batches: Batches, cfg: Config, ranks: Ranks
) -> Samples:
    for image, target in _image_batches(images, batches, cfg, ranks):
        with torch.no_grad():  # closed before `yield`: the caller needs gradients
            f4 = model.backbone(image)[-1]
        yield f4, target


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
    """Score the validation images, at S x S; the model then stays in eval mode.

    Returns:
        mIoU in percent over the base classes; None if any rank was asked to stop.
    """
    distributed.broadcast_parameters(model)  # every rank takes rank 0's batch norm statistics
    folded = fold_batch_norms(model.eval())
    totals = BaseTotals(cfg.num_base_classes, ranks.device)
    count = min(cfg.Base.val_images or len(tests), len(tests))  # beyond, the images repeat
    batches = FixedBatches([[index] for index in range(ranks.rank, count, ranks.world)])
    for image, target in _image_batches(tests, batches, cfg, ranks):
        scores = bilinear_ac(folded(image), tuple(target.shape[-2:]))
        totals.add(scores.argmax(1), target)
        if stop.requested:
            break
    if distributed.any_rank([stop.requested], ranks)[0]:
        return None
    sum_over_ranks(totals)
    return 100 * totals.miou()


class BaseLearnerRun(Run):
    """Stage one: keeps `base.unfinished.pth` and `base.log` beside `Method.pre_weight` base.pth."""

    def __init__(self, trainer: Trainer, cfg: Config, ranks: Ranks, batches: Batches) -> None:
        self.target = Path(cfg.Method.pre_weight)
        path = self.target.with_suffix(".unfinished.pth")
        super().__init__(trainer, cfg, ranks, batches, path)

    def _choose(self, restarted: bool) -> tuple[str, list[str]]:
        if self.cfg.Train.resume != "auto" and not restarted:
            return "", []
        if not self.path.exists():
            return "", [f"nothing to resume beside {self.target}: starts from scratch"]
        try:
            resume.training_state(self.path, resume.BASE_LEARNER_STATE)
        except UserError as error:
            raise UserError(f"{error} (or delete it to start from scratch)") from None
        return str(self.path), []

    def _open(self) -> None:
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"Method.pre_weight: {self.target.parent} cannot be created ({error.strerror}); "
                "name another file"
            ) from None
        sweep(self.path)
        add_log_file(self.target.with_suffix(".log"))

    def _write(self, content: bytes) -> None:
        atomic_write(self.path, content)

    def finish(self, miou: float) -> None:
        """Write the base learner under published names; drop the state, which has become useless.

        Args:
            miou: of its validation, in percent.

        Raises:
            OSError: it cannot be written.
        """
        if self.ranks.is_main:
            state = base_to_published(self.trainer.model.state_dict())
            write_checkpoint(self.target, state_dict=state, base_miou=miou)
            self.path.unlink(missing_ok=True)
            log.info(f"base mIoU {miou:.1f}, written to {self.target}")
        self._failure = ""
