"""Stage one: trains the base learner of a fold and writes the file `Method.pre_weight` names.

sh train.sh split0 pascal 4                  # runs this first when that file is absent
python train_base.py --config config/pascal/pascal_split0_resnet50.yaml --gpus 0 Base.epochs=2

Asked to stop (Ctrl-C), it leaves its state beside that file; `Train.resume=auto` goes on from it.
"""

from util.config import to_dict
from util.config.arguments import arguments, check_first

if __name__ == "__main__":
    check_first(arguments, __doc__)  # before torch, which takes seconds to import

import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

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
from util.checkpoint.file import load_state_dict_strictly, read_checkpoint, write_checkpoint
from util.config import Config
from util.data.base_images import BaseLearnerDataset, open_base_images
from util.data.batches import Batches, FixedBatches
from util.data.loading import loaded, skipped
from util.data.transform import BaseLearnerTransform, EvalTransform
from util.evaluate.metrics import BaseTotals, sum_over_ranks
from util.reproduce.compare import tree_differences
from util.runtime import distributed, speed
from util.runtime.cli import main
from util.runtime.distributed import Ranks
from util.runtime.errors import RunStopped, UserError
from util.runtime.log import log
from util.runtime.progress import Progress
from util.runtime.rng import library_versions, random_state, seed_everything, set_random_state
from util.runtime.stop import Stop, resume_command
from util.train.optimizers import lr_schedule, set_lr


def train_base() -> None:
    cfg, gpus = arguments(__doc__)
    if not cfg.Method.pre_weight:
        raise UserError("Method.pre_weight is empty: name the file that the base learner goes to")
    if Path(cfg.Method.pre_weight).exists():
        read_checkpoint(cfg.Method.pre_weight)  # only a checkpoint is replaced
    ranks = distributed.init(gpus)
    speed.set_kernels(cfg)
    stop, base = Stop(ranks.is_main), cfg.Base
    with distributed.main_first(ranks):  # it makes the lists
        images, report = open_base_images(cfg, "train", transform(cfg, train=True), base.seed)
        tests, more = open_base_images(cfg, "val", transform(cfg, train=False), None)
    schedule = Batches(len(images), base.batch_size, base.epochs, ranks, base.max_iterations)
    seed_everything(base.seed + ranks.rank)
    model = build_model(cfg, ranks)
    unfinished = Unfinished(model, build_optimizer(model, cfg), cfg, ranks)
    report += unfinished.take_up(schedule) + more
    progress = Progress(schedule.total, cfg.Train.print_freq, schedule.start, ranks.is_main)
    for line in report:
        log.info(line)
    log.info(f"base learner: {len(images)} images, {schedule.total} iterations, {ranks.device}")
    miou = None
    with stop:
        if learn(unfinished, images, schedule, progress, stop):
            progress.close()
            distributed.broadcast_parameters(model)  # rank 0's batch norm statistics hold for all
            miou = validate(model, tests, cfg, ranks, stop)
    if lost := skipped(images, ranks):
        log.info(f"{lost} images that could not be read were skipped")
    if miou is None:
        log.info(f"stopped at iteration {unfinished.done}; go on with:\n{resume_command()}")
    elif ranks.is_main:
        state = base_to_published(model.state_dict())
        write_checkpoint(cfg.Method.pre_weight, state_dict=state, base_miou=miou)
        unfinished.path.unlink(missing_ok=True)
        log.info(f"base mIoU {miou:.1f}, written to {cfg.Method.pre_weight}")
    distributed.close()


def learn(
    unfinished: "Unfinished",
    images: BaseLearnerDataset,
    schedule: Batches,
    progress: Progress,
    stop: Stop,
) -> bool:
    """Trains to the end and saves; False when asked to stop, after saving, too."""
    model, cfg, ranks = unfinished.model, unfinished.cfg, unfinished.ranks
    source = f4_batches if cfg.Base.freeze_backbone else image_batches
    with unfinished.saved_on_a_fault():
        for x, target in progress.waiting(source(model, images, schedule, cfg, ranks)):
            rate = lr_schedule(cfg.Base.lr, unfinished.done, schedule.total, cfg.Base.power)
            set_lr(unfinished.optimizer, rate)
            with unfinished.undone_on_a_fault():
                loss = loss_of(model, x, target, cfg, ranks)
                if not torch.isfinite(loss):
                    raise RunStopped(
                        f"iteration {unfinished.done} of the base learner: the loss is"
                        f" {loss.item()}"
                    )
            unfinished.step(loss)
            progress.step(unfinished.done, {"loss": loss}, rate)
            asked = distributed.any_rank((stop.requested, unfinished.is_due()), ranks)
            if any(asked):
                unfinished.save()
            if asked[0]:
                return False
    unfinished.save()  # a validation can be long
    return True


def loss_of(model: BaseLearner, x: Tensor, target: Tensor, cfg: Config, ranks: Ranks) -> Tensor:
    """Mean cross-entropy over the labelled pixels of all ranks' batch.

    Args:
        x: images, or f4 where the backbone is frozen.
        target: labels [b,S,S].
    """
    logits = model.classify(model.context(x)) if cfg.Base.freeze_backbone else model(x)
    pixels = distributed.mean_over_ranks((target != IGNORE).sum(), ranks)
    return losses.cross_entropy(logits, target, pixels.clamp(min=1))


class Unfinished:
    """A stage one that is not at its end, and its state beside the file that it will write.

    Attributes:
        done: iterations.
    """

    def __init__(self, model: BaseLearner, optimizer: Optimizer, cfg: Config, ranks: Ranks):
        self.model, self.optimizer, self.cfg, self.ranks = model, optimizer, cfg, ranks
        self.path = Path(cfg.Method.pre_weight).with_suffix(".unfinished.pth")
        self.setting = {"config": to_dict(cfg), "versions": library_versions()}
        self.done, self._saved, self._saved_at = 0, 0, time.monotonic()
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def take_up(self, schedule: Batches) -> list[str]:
        """Goes on from the saved state when the run is to do so; lines about it."""
        there = distributed.gather(self.path.exists())[0]
        [again] = distributed.any_rank([resume.restarted()], self.ranks)
        if self.cfg.Train.resume != "auto" and not again:
            return []
        if not there:
            return [f"nothing to resume beside {self.cfg.Method.pre_weight}"]
        state = read_checkpoint(self.path)
        load_state_dict_strictly(self.model, state["model"], self.path)
        self.optimizer.load_state_dict(state["optimizer"])
        self.done = self._saved = schedule.start = state["iteration"]
        set_random_state(state["random"][self.ranks.rank % len(state["random"])])
        changed = tree_differences(state, self.setting)
        return [
            f"goes on from {self.path}: {self.done} iterations are done",
            *(f"no longer the run that was stopped: {line}" for line in changed),
        ]

    def step(self, loss: Tensor) -> None:
        """One step of the optimiser on the loss of all ranks."""
        self.optimizer.zero_grad()
        loss.backward()
        distributed.reduce_gradients(self._parameters)
        self.optimizer.step()
        self.done += 1

    def is_due(self) -> bool:
        """Whether `Train.save_minutes` have passed, by rank 0's clock."""
        period = 60 * self.cfg.Train.save_minutes
        return self.ranks.is_main and 0 < period <= time.monotonic() - self._saved_at

    def save(self) -> None:
        """Writes the state, unless it is there; every rank has to call."""
        if self._saved == self.done:
            return
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"iteration": self.done, "random": distributed.gather(random_state())}
        self._saved, self._saved_at = self.done, time.monotonic()
        if self.ranks.is_main:
            try:
                write_checkpoint(self.path, **state, **self.setting)
            except OSError as error:
                log.warning(f"{self.path}: cannot be written ({error.strerror}); training goes on")

    @contextmanager
    def undone_on_a_fault(self) -> Iterator[None]:
        """The block of a forward pass: where it fails, all that it changes is as before.

        That is random states and the statistics of batch norms.
        """
        random, buffers = random_state(), [b.clone() for b in self.model.buffers()]
        try:
            yield
        except RunStopped:
            set_random_state(random)
            for buffer, old in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(old)
            raise

    @contextmanager
    def saved_on_a_fault(self) -> Iterator[None]:
        """The block of the iterations, as `Run.saved_on_a_fault`: one rank cannot save for all."""
        try:
            yield
        except (ValueError, RunStopped):
            if self.ranks.world == 1:
                self.save()
            raise


def transform(cfg: Config, *, train: bool) -> EvalTransform:
    """Random crops for training, a plain resize to S x S otherwise."""
    base, statistics = cfg.Base, pixel_statistics(cfg.Method.backbone)
    if train and base.augment:
        return BaseLearnerTransform(base.size, base.scale, base.rotate, *statistics)
    return EvalTransform(base.size, *statistics)


def build_model(cfg: Config, ranks: Ranks) -> BaseLearner:
    """The base learner in training mode, the same on every rank, on a published backbone."""
    base = cfg.Base
    model = BaseLearner(cfg.Method.backbone, cfg.num_base_classes)
    check_size(model.backbone, base.size, "Base.size")
    check_size(model.backbone, cfg.Data.size, "Data.size")  # before hours go into stage one
    load_pretrained(model.backbone, cfg.Method.backbone, cfg.Method.pretrained)
    model.to(ranks.device).train()
    model.backbone.train(not base.freeze_backbone).requires_grad_(not base.freeze_backbone)
    distributed.broadcast_parameters(model)
    if ranks.world > 1 and ranks.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model


def build_optimizer(model: BaseLearner, cfg: Config) -> Optimizer:
    """SGD; pyramid pooling and classifier at a multiple of the backbone's rate."""
    base = cfg.Base
    body = [p for n, p in model.named_parameters() if n.startswith("backbone.") and p.requires_grad]
    head = [p for n, p in model.named_parameters() if not n.startswith("backbone.")]
    groups = [{"params": head, "multiplier": base.head_lr_multiplier}]
    groups += [{"params": body, "multiplier": 1.0}] if body else []
    return SGD(groups, lr=base.lr, momentum=base.momentum, weight_decay=base.weight_decay)


Samples = Iterator[tuple[Tensor, Tensor]]


def image_batches(
    model: BaseLearner, images: BaseLearnerDataset, schedule: Batches, cfg: Config, ranks: Ranks
) -> Samples:
    """(images [b,3,S,S], labels [b,S,S]) of this rank, one batch an iteration."""
    for image, target in loaded(images, schedule, cfg):
        yield image.to(ranks.device), target.to(ranks.device)


def f4_batches(
    model: BaseLearner, images: BaseLearnerDataset, schedule: Batches, cfg: Config, ranks: Ranks
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
def validate(
    model: BaseLearner, tests: BaseLearnerDataset, cfg: Config, ranks: Ranks, stop: Stop
) -> float | None:
    """mIoU in percent over the base classes, on the validation images at S x S.

    None when any rank was asked to stop.
    """
    folded = fold_batch_norms(model.eval())
    totals = BaseTotals(cfg.num_base_classes, ranks.device)
    count = min(cfg.Base.val_images or len(tests), len(tests))  # past that the set starts anew
    mine = FixedBatches([[index] for index in range(ranks.rank, count, ranks.world)])
    for image, target in loaded(tests, mine, cfg):
        scores = bilinear_ac(folded(image.to(ranks.device)), tuple(target.shape[-2:]))
        totals.add(scores.argmax(1), target.to(ranks.device))
        if stop.requested:
            break
    if distributed.any_rank([stop.requested], ranks)[0]:
        return None
    sum_over_ranks(totals)
    return 100 * totals.miou()


if __name__ == "__main__":
    main(train_base)
