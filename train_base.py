"""Stage one: trains the base learner of a fold and writes the file `Method.pre_weight` names.

sh train.sh split0 pascal 4                  # runs this first when that file is absent
python train_base.py --config config/pascal/pascal_split0_resnet50.yaml --gpus 0 Base.epochs=2

Asked to stop (Ctrl-C), it leaves its state beside that file; `Train.resume=auto` goes on from it.
"""

from util.config import arguments, check_first, to_dict

if __name__ == "__main__":
    check_first(arguments, __doc__)  # before torch, which takes seconds to import

import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader

from model import losses
from model.backbones import check_size, load_pretrained, pixel_statistics
from model.base_learner import BaseLearner
from model.folding import fold_batch_norms
from model.published import base_to_published
from model.resize import bilinear_ac
from util import checkpoint, distributed, resume, speed
from util.data.base import BaseDataset, open_base
from util.data.loading import loaded
from util.data.transform import BaseTransform, EvalTransform
from util.distributed import Ranks
from util.logger import Progress, RunStopped, main, warn
from util.metrics import BaseTotals, sum_over_ranks
from util.optimizers import poly, set_rate
from util.stop import Stop, resume_command


def train_base() -> None:
    cfg, gpus = arguments(__doc__)
    if not cfg.Method.pre_weight:
        raise ValueError("Method.pre_weight is empty: name the file that the base learner goes to")
    if Path(cfg.Method.pre_weight).exists():
        checkpoint.load(cfg.Method.pre_weight)  # only a checkpoint is replaced
    ranks = distributed.init(gpus)
    speed.set_kernels(cfg)
    stop, base = Stop(ranks.is_main), cfg.Base
    with distributed.main_first(ranks):  # it makes the lists
        images, report = open_base(cfg, "train", transform(cfg, train=True), base.seed)
        tests, more = open_base(cfg, "val", transform(cfg, train=False), None)
    schedule = distributed.Batches(
        len(images), base.batch_size, base.epochs, ranks, base.max_iterations
    )

    checkpoint.seed(base.seed + ranks.rank)
    model = BaseLearner(cfg.Method.backbone, cfg.num_base_classes)
    check_size(model.backbone, base.size, "Base.size")
    check_size(model.backbone, cfg.Data.size, "Data.size")  # before hours go into stage one
    load_pretrained(model.backbone, cfg.Method.backbone, cfg.Method.pretrained)
    model.to(ranks.device).train()
    model.backbone.train(not base.freeze_backbone).requires_grad_(not base.freeze_backbone)
    distributed.broadcast_parameters(model)
    unfinished = Unfinished(model, cfg, ranks)
    state = unfinished.load(report)
    if ranks.world > 1 and ranks.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    optimizer = build_optimizer(model, cfg)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if state:
        optimizer.load_state_dict(state["optimizer"])
        schedule.start = state["iteration"]
        checkpoint.set_random_state(state["random"][ranks.rank % len(state["random"])])

    progress = Progress(schedule.total, cfg.Train.print_freq, schedule.start, ranks.is_main)
    for line in report + more:
        progress.note(line)
    progress.note(
        f"base learner: {len(images)} images, {schedule.total} iterations, {ranks.device}"
    )
    source = f4_batches if base.freeze_backbone else image_batches
    with stop:
        batches = progress.waiting(source(model, images, schedule, cfg, ranks))
        for iteration, (x, target) in enumerate(batches, schedule.start):
            rate = poly(base.lr, iteration, schedule.total, base.power)
            set_rate(optimizer, rate)
            logits = model.classify(model.context(x)) if base.freeze_backbone else model(x)
            pixels = distributed.mean_over_ranks((target != losses.IGNORE).sum(), ranks)
            loss = losses.cross_entropy(logits, target, pixels.clamp(min=1))
            if not torch.isfinite(loss):
                raise RunStopped(
                    f"iteration {iteration} of the base learner: the loss is {loss.item()}"
                )
            optimizer.zero_grad()
            loss.backward()
            distributed.reduce_gradients(parameters)
            optimizer.step()
            progress.step(iteration + 1, {"loss": loss}, rate)
            stopping, due = distributed.any_rank((stop.requested, unfinished.is_due()), ranks)
            if stopping or due:
                unfinished.save(optimizer, iteration + 1)
            if stopping:
                progress.note(f"stopped at iteration {iteration + 1}; go on with:")
                progress.note(resume_command())
                distributed.close()
                return
        unfinished.save(optimizer, schedule.total)  # a validation can be long
    progress.close()

    distributed.broadcast_parameters(model)  # the batch norms' statistics of rank 0 hold for all
    miou = validate(model, tests, cfg, ranks)
    if ranks.is_main:
        state = base_to_published(model.state_dict())
        checkpoint.save(cfg.Method.pre_weight, state_dict=state, base_miou=miou)
        unfinished.path.unlink(missing_ok=True)
        progress.note(f"base mIoU {miou:.1f}, written to {cfg.Method.pre_weight}")
    distributed.close()


class Unfinished:
    """The state of a stage one that is not at its end, beside the file that it will write."""

    def __init__(self, model: BaseLearner, cfg, ranks: Ranks):
        self.model, self.cfg, self.ranks = model, cfg, ranks
        self.path = Path(cfg.Method.pre_weight).with_suffix(".unfinished.pth")
        self.setting = {"config": to_dict(cfg), "versions": checkpoint.versions()}
        self.saved_at = time.monotonic()

    def load(self, report: list[str]) -> dict | None:
        """Fills the model when the run is to go on; adds lines about it to a report."""
        there = distributed.gather(self.path.exists())[0]
        [again] = distributed.any_rank([resume.restarted()], self.ranks)
        if self.cfg.Train.resume != "auto" and not again:
            return None
        if not there:
            report.append(f"nothing to resume beside {self.cfg.Method.pre_weight}")
            return None
        state = checkpoint.load(self.path)
        checkpoint.load_into(self.model, state["model"], self.path)
        report.append(f"goes on from {self.path}: {state['iteration']} iterations are done")
        changed = resume.differences(state, self.setting)
        report += [f"no longer the run that was stopped: {line}" for line in changed]
        return state

    def is_due(self) -> bool:
        """Whether `Train.save_minutes` have passed, by rank 0's clock."""
        period = 60 * self.cfg.Train.save_minutes
        return self.ranks.is_main and 0 < period <= time.monotonic() - self.saved_at

    def save(self, optimizer: Optimizer, done: int) -> None:
        """Writes the state after `done` iterations; every rank has to call."""
        state = {"model": self.model.state_dict(), "optimizer": optimizer.state_dict()}
        state |= {"iteration": done, "random": distributed.gather(checkpoint.random_state())}
        self.saved_at = time.monotonic()
        if self.ranks.is_main:
            try:
                checkpoint.save(self.path, **state, **self.setting)
            except OSError as error:
                warn(f"{self.path}: cannot be written ({error.strerror}); training goes on")


def transform(cfg, *, train: bool) -> EvalTransform:
    """Random crops for training, a plain resize to S x S otherwise."""
    base, statistics = cfg.Base, pixel_statistics(cfg.Method.backbone)
    if train and base.augment:
        return BaseTransform(base.size, base.scale, base.rotate, *statistics)
    return EvalTransform(base.size, *statistics)


def build_optimizer(model: BaseLearner, cfg) -> Optimizer:
    """SGD; pyramid pooling and classifier at a multiple of the backbone's rate."""
    base = cfg.Base
    body = [p for n, p in model.named_parameters() if n.startswith("backbone.") and p.requires_grad]
    head = [p for n, p in model.named_parameters() if not n.startswith("backbone.")]
    groups = [{"params": head, "multiplier": base.head_lr_multiplier}]
    groups += [{"params": body, "multiplier": 1.0}] if body else []
    return SGD(groups, lr=base.lr, momentum=base.momentum, weight_decay=base.weight_decay)


Samples = Iterator[tuple[Tensor, Tensor]]


def image_batches(
    model: BaseLearner, images: BaseDataset, schedule: distributed.Batches, cfg, ranks: Ranks
) -> Samples:
    """(images [b,3,S,S], labels [b,S,S]) of this rank, one batch an iteration."""
    for image, target in loaded(images, schedule, cfg):
        yield image.to(ranks.device), target.to(ranks.device)


def f4_batches(
    model: BaseLearner, images: BaseDataset, schedule: distributed.Batches, cfg, ranks: Ranks
) -> Samples:
    """(f4 [b,C,h,w], labels [b,S,S]) of this rank; un-augmented images are encoded once."""
    if cfg.Base.augment:
        for image, target in image_batches(model, images, schedule, cfg, ranks):
            with torch.no_grad():  # the caller, too, would be in it at a `yield`
                f4 = model.backbone(image)[-1]
            yield f4, target
        return
    frozen = fold_batch_norms(deepcopy(model).eval()).backbone
    known: dict[str, tuple[Tensor, Tensor]] = {}
    for indices in schedule:
        for index in indices:
            if (name := images.name(index)) not in known:
                image, target = (x[None].to(ranks.device) for x in images[index])
                with torch.no_grad():
                    known[name] = frozen(image)[-1], target
        pairs = [known[images.name(index)] for index in indices]
        f4, target = zip(*pairs, strict=True)
        yield torch.cat(f4), torch.cat(target)


@torch.no_grad()
def validate(model: BaseLearner, tests: BaseDataset, cfg, ranks: Ranks) -> float:
    """mIoU in percent over the base classes, on the validation images at S x S."""
    folded = fold_batch_norms(model.eval())
    totals = BaseTotals(cfg.num_base_classes, ranks.device)
    count = min(cfg.Base.val_images or len(tests), len(tests))  # past that the set starts anew
    mine = range(ranks.rank, count, ranks.world)
    for image, target in DataLoader(tests, sampler=mine, num_workers=cfg.workers):
        scores = bilinear_ac(folded(image.to(ranks.device)), tuple(target.shape[-2:]))
        totals.add(scores.argmax(1), target.to(ranks.device))
    sum_over_ranks(totals)
    return 100 * totals.miou()


if __name__ == "__main__":
    main(train_base)
