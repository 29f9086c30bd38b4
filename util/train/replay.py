"""A training step that was not finite: kept in a file, and repeated to see where it went wrong.

    python train.py --replay exp/.../nonfinite_1234_0.pth

Same weights, same episodes, same random state, on one process. Prints every loss, and the first
module whose output is not finite; exit status 1 when it is so again, 0 when all is finite here.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from model import AMFormer, build_model
from model.backbones import pixel_statistics
from util.checkpoint.file import load_state_dict_strictly, read_checkpoint, write_checkpoint
from util.config import Config, to_dict
from util.data.batches import FixedBatches
from util.data.dataset import open_episodes
from util.data.lists import FoldList
from util.features import EncodedBatch, encoded_batches
from util.reproduce.compare import numeric_keys, tree_differences
from util.reproduce.environment import list_crc
from util.runtime import distributed, speed
from util.runtime.errors import RunStopped, UserError
from util.runtime.log import log
from util.runtime.rng import library_versions, random_state, set_random_state
from util.train.adversarial import AdversarialTrainer, NonFiniteStep


@contextmanager
def dump_nonfinite_step(
    game: AdversarialTrainer,
    batch: EncodedBatch,
    iteration: int,
    in_epoch: int,
    cfg: Config,
    fold: FoldList,
) -> Iterator[None]:
    """The block of one step; where it is not finite, what repeats it is written to a file.

    Args:
        game: plays the step.
        batch, iteration, in_epoch: as `Game.step` takes them.
        cfg: the whole config; the file goes into `Train.save_path`.
        fold: the list that the episodes come from.
    """
    random, ranks = random_state(), game.ranks
    try:
        yield
    except NonFiniteStep as error:
        set_random_state(random)  # as before the step: nothing of it has happened
        if not error.own:
            raise
        path = Path(cfg.Train.save_path) / f"nonfinite_{iteration}_{ranks.rank}.pth"
        state = {
            "model": game.model.state_dict(),
            "indices": [plan.index for plan in batch.plans],
            "random": random,
            "iteration": iteration,
            "in_epoch": in_epoch,
            "total": game.total,
            "ranks": [ranks.rank, ranks.world],
            "pixels": list(error.pixels),
            "config": to_dict(cfg),
            "list": list_crc(fold),
            "versions": library_versions(),
        }
        try:
            write_checkpoint(path, **state)
        except OSError as full:
            log.warning(f"{path}: the step cannot be kept ({full.strerror})")
            raise error from None
        raise NonFiniteStep(f"{error}; look at it with: python train.py --replay {path}") from None


def replay(cfg: Config, gpus: int) -> None:
    """Repeats the step of `Train.replay` and says what is not finite.

    Raises:
        UserError: the file holds no step, or one of another config or of other images.
        RunStopped: it is not finite again.
    """
    path = Path(cfg.Train.replay)
    state = read_checkpoint(path)
    if not {"model", "indices", "random", "pixels", "list", "config"} <= state.keys():
        raise UserError(f"Train.replay: {path} holds no step; name a nonfinite_*.pth")
    then, now = numeric_keys(state["config"]), numeric_keys(to_dict(cfg))
    if changed := tree_differences(then, now):
        raise UserError(f"Train.replay: {path} is of another config: {'; '.join(changed)}")
    device = distributed.init(gpus).device
    ranks = distributed.Ranks(*state["ranks"], device)
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
        print(f"another version: {line}")
    print(f"iteration {state['iteration']} of {path}, on {device}")
    _say_weights(model)
    [batch] = encoded_batches(model.encoder, episodes, FixedBatches([state["indices"]]), cfg)
    for plan in batch.plans:
        print(f"  {plan}")
    bad = [i for i, tensor in enumerate(batch.query.tensors()) if not tensor.isfinite().all()]
    print(f"encoded queries: {'not finite' if bad else 'finite'}")
    set_random_state(state["random"])
    _repeat(_Alone(model, cfg, state["total"], ranks, state["pixels"]), batch, state)


class _Alone(AdversarialTrainer):
    """One rank's share of a step, without the others: their part of the mean is in the file."""

    def __init__(self, model: AMFormer, cfg: Config, total: int, ranks: Any, pixels: list[Tensor]):
        super().__init__(model, cfg, total, ranks)
        self.known = tuple(p.to(ranks.device) for p in pixels)

    def pixels(self, batch: EncodedBatch) -> tuple[Tensor, ...]:
        return self.known or super().pixels(batch)


def _say_weights(model: nn.Module) -> None:
    bad = [name for name, value in model.state_dict().items() if not value.isfinite().all()]
    text = f"{len(bad)} not finite, {bad[0]} first" if bad else "finite"
    print(f"weights: {text}")


def _repeat(game: AdversarialTrainer, batch: EncodedBatch, state: dict[str, Any]) -> None:
    """The step itself, watched."""
    told: list[str] = []
    named = [(name, module) for name, module in game.model.named_modules() if name]
    hooks = [module.register_forward_hook(_watch(name, told)) for name, module in named]
    try:
        error, losses = None, game.step(batch, state["iteration"], state["in_epoch"])
    except NonFiniteStep as again:
        error, losses = again, again.losses
    for hook in hooks:
        hook.remove()
    print(f"first module whose output is not finite: {told[0] if told else 'none'}")
    for name, value in losses.items():
        print(f"  {name} {value.item():.9g}")
    if error:
        raise RunStopped(f"not finite again: {error}")
    print("every loss and every gradient is finite here")


def _watch(name: str, told: list[str]) -> Callable:
    def look(module: nn.Module, given: tuple, out: object) -> None:
        if not told and not _finite(out):
            told.append(f"{name} ({'finite' if _finite(given) else 'not finite'} input)")

    return look


def _finite(value: object) -> bool:
    if isinstance(value, Tensor):
        return bool(value.isfinite().all())
    if isinstance(value, (tuple, list)):
        return all(map(_finite, value))
    return not is_dataclass(value) or all(map(_finite, vars(value).values()))
