"""Save a training step that was not finite, and repeat it to find where it went wrong.

    python train.py --replay exp/.../nonfinite_1234_0.pth

The step is repeated on one process with the same weights, episodes and random state. Every loss is
printed, and the first module whose output is not finite. The exit status is 1 if the step is not
finite again, and 0 otherwise.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from model import AMFormer, build_model
from model.backbones import pixel_statistics
from util import speed
from util.checkpoint.file import load_state_dict_strictly, read_checkpoint, write_checkpoint
from util.config import Config, to_dict
from util.data.batches import FixedBatches
from util.data.dataset import open_episodes
from util.data.lists import FoldList
from util.features import EncodedBatch, encoded_batches
from util.reproduce.compare import numeric_keys, tree_differences
from util.reproduce.environment import list_crc
from util.runtime import distributed
from util.runtime.distributed import Ranks
from util.runtime.errors import RunStopped, UserError
from util.runtime.log import log
from util.runtime.rng import library_versions, random_state, set_random_state
from util.train.adversarial import AdversarialTrainer, NonFiniteStep


@contextmanager
def dump_nonfinite_step(
    trainer: AdversarialTrainer,
    batch: EncodedBatch,
    iteration: int,
    in_epoch: int,
    cfg: Config,
    fold: FoldList,
) -> Iterator[None]:
    """Run the block of one step; if the step is not finite, write a file that can repeat it.

    Args:
        trainer: takes the step.
        batch: see `AdversarialTrainer.step`.
        iteration: see `AdversarialTrainer.step`.
        in_epoch: see `AdversarialTrainer.step`.
        cfg: the whole config; the file goes into `Train.save_path`.
        fold: the list that the episodes are drawn from.

    Raises:
        NonFiniteStep: after random states were restored as before the step; on the rank whose step
            it is, with the command that repeats the step.
    """
    random, ranks = random_state(), trainer.ranks
    try:
        yield
    except NonFiniteStep as error:
        set_random_state(random)
        if not error.on_this_rank:
            raise
        path = Path(cfg.Train.save_path) / f"nonfinite_{iteration}_{ranks.rank}.pth"
        state = {
            "model": trainer.model.state_dict(),
            "indices": [plan.index for plan in batch.plans],
            "random": random,
            "iteration": iteration,
            "in_epoch": in_epoch,
            "total": trainer.total,
            "ranks": [ranks.rank, ranks.world],
            "pixels": list(error.pixels),
            "config": to_dict(cfg),
            "list": list_crc(fold),
            "versions": library_versions(),
        }
        try:
            write_checkpoint(path, **state)
        except OSError as full:
            log.warning(f"{path}: the step cannot be saved ({full.strerror})")
            raise error from None
        raise NonFiniteStep(f"{error}; look at it with: python train.py --replay {path}") from None


def replay(cfg: Config, gpus: int) -> None:
    """Repeat the step of `Train.replay` and print what is not finite.

    Args:
        cfg: the whole config, which must be that of the run.
        gpus: 0 for the CPU, else a GPU is used.

    Raises:
        UserError: the file holds no step, or one of another config or of other images.
        RunStopped: the step is not finite again.
    """
    path = Path(cfg.Train.replay)
    state = read_checkpoint(path)
    if not {"model", "indices", "random", "pixels", "list", "config"} <= state.keys():
        raise UserError(f"Train.replay: {path} holds no step; name a nonfinite_*.pth")
    then, now = numeric_keys(state["config"]), numeric_keys(to_dict(cfg))
    if changed := tree_differences(then, now):
        raise UserError(f"Train.replay: {path} is of another config: {'; '.join(changed)}")
    device = distributed.init(gpus).device
    episodes, _ = open_episodes(
        cfg, "train", cfg.Train.seed, *pixel_statistics(cfg.Method.backbone)
    )
    if list_crc(episodes.sampler.fold) != state["list"]:
        raise UserError(f"Train.replay: {path} is of other images than Data.data_root holds")
    model = build_model(cfg)
    load_state_dict_strictly(model, state["model"], path)
    speed.set_up(model.to(device), cfg, device)
    model.train()
    for line in tree_differences(state["versions"], library_versions()):
        log.info(f"another version: {line}")
    log.info(f"iteration {state['iteration']} of {path}, on {device}")
    bad = [name for name, value in model.state_dict().items() if not _is_finite(value)]
    log.info(f"weights: {f'{len(bad)} not finite, {bad[0]} first' if bad else 'finite'}")
    [batch] = encoded_batches(model.encoder, episodes, FixedBatches([state["indices"]]), cfg)
    for plan in batch.plans:
        log.info(f"  {plan}")
    finite = all(map(_is_finite, batch.query.tensors()))
    log.info(f"encoded queries: {'finite' if finite else 'not finite'}")
    set_random_state(state["random"])
    rank, world = state["ranks"]
    ranks = Ranks(rank, world, device)
    _repeat(_ReplayTrainer(model, cfg, state["total"], ranks, state["pixels"]), batch, state)


class _ReplayTrainer(AdversarialTrainer):
    """Repeats one rank's step without the other ranks, with the pixel counts from the file."""

    def __init__(
        self, model: AMFormer, cfg: Config, total: int, ranks: Ranks, pixels: list[Tensor]
    ):
        super().__init__(model, cfg, total, ranks)
        self.pixels = [count.to(ranks.device) for count in pixels]

    def count_labeled_pixels(self, batch: EncodedBatch) -> tuple[Tensor, Tensor]:
        if not self.pixels:
            return super().count_labeled_pixels(batch)
        of_masks, of_base_labels = self.pixels
        return of_masks, of_base_labels


def _repeat(trainer: AdversarialTrainer, batch: EncodedBatch, state: dict[str, Any]) -> None:
    """Take the step again, and print the first module and every loss."""
    found: list[str] = []
    named = [(name, module) for name, module in trainer.model.named_modules() if name]
    hooks = [module.register_forward_hook(_first_nonfinite(name, found)) for name, module in named]
    error: NonFiniteStep | None = None
    try:
        losses = trainer.step(batch, state["iteration"], state["in_epoch"])
    except NonFiniteStep as again:
        error, losses = again, again.losses
    for hook in hooks:
        hook.remove()
    log.info(f"first module whose output is not finite: {found[0] if found else 'none'}")
    for name, value in losses.items():
        log.info(f"  {name} {value.item():.9g}")
    if error:
        raise RunStopped(f"not finite again: {error}")
    log.info("every loss and every gradient is finite here")


def _first_nonfinite(name: str, found: list[str]) -> Callable[[nn.Module, tuple, object], None]:
    """Return a forward hook that puts the module's name into `found` if that is empty."""

    def hook(module: nn.Module, given: tuple, output: object) -> None:
        if not found and not _is_finite(output):
            found.append(f"{name} ({'finite' if _is_finite(given) else 'not finite'} input)")

    return hook


def _is_finite(value: object) -> bool:
    if isinstance(value, Tensor):
        return bool(value.isfinite().all())
    if isinstance(value, (tuple, list)):
        return all(map(_is_finite, value))
    return not is_dataclass(value) or all(map(_is_finite, vars(value).values()))
