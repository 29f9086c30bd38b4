"""Save a training step that was not finite, and repeat it to find where it went wrong.

    python train.py --replay exp/.../nonfinite_1234_0.pth

The step is repeated on one process with the same weights, episodes and random state. Every loss is
printed, and the first module whose output is not finite. The exit status is 1 if the step is not
finite again, and 0 otherwise.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from model import build_model
from model.backbones import pixel_statistics
from util import speed
from util.checkpoint.file import load_state_dict_strictly, read_checkpoint, write_checkpoint
from util.config import Config, to_dict
from util.data import FixedBatches, FoldList, open_episodes
from util.features import EncodedBatch, encoded_batches
from util.reproduce.compare import numeric_keys, tree_differences
from util.reproduce.environment import list_crc
from util.runtime import Ranks, RunStopped, UserError, distributed
from util.runtime.log import log
from util.runtime.rng import library_versions, random_state, set_random_state
from util.train.trainer import NonFiniteStep, Trainer
from util.train.trainers import build_trainer


@contextmanager
def dump_nonfinite_step(
    trainer: Trainer, batch: EncodedBatch, iteration: int, in_epoch: int, cfg: Config,
    fold: FoldList,
) -> Iterator[None]:  # fmt: skip
    """Run the block of one step; write a file into `Train.save_path` if it is not finite.

    `replay` repeats the step if the list of the fold is still the same. Raises `NonFiniteStep`
    after random states were restored as before the step, on the rank whose step it is, with the
    command that repeats the step.
    """
    random, ranks = random_state(), trainer.ranks
    try:
        yield
    except NonFiniteStep as error:
        set_random_state(random)
        if not error.on_this_rank:
            raise
        path = Path(cfg.Train.save_path) / f"nonfinite_{iteration}_{ranks.rank}.pth"
        try:
            write_checkpoint(
                path, model=trainer.model.state_dict(), config=to_dict(cfg), list=list_crc(fold),
                indices=[plan.index for plan in batch.plans], pixels=list(error.pixels),
                iteration=iteration, in_epoch=in_epoch, total=trainer.total, random=random,
                ranks=[ranks.rank, ranks.world], versions=library_versions(),
            )  # fmt: skip
        except OSError as full:
            log.warning(f"{path}: the step cannot be saved ({full.strerror})")
            raise error from None
        error.args = (f"{error}; look at it with: python train.py --replay {path}",)
        raise


def replay(cfg: Config, gpus: int) -> None:
    """Repeat the step of `Train.replay` on the CPU (`gpus` 0) or a GPU; print what is not finite.

    Raises `UserError` if the file holds no step, or one of another config or of other images;
    `RunStopped` if the step is not finite again.
    """
    path = Path(cfg.Train.replay)
    state = read_checkpoint(path)
    if not {"model", "indices", "random", "pixels", "list", "config"} <= state.keys():
        raise UserError(f"Train.replay: {path} holds no step; name a nonfinite_*.pth")
    then, now = numeric_keys(state["config"]), numeric_keys(to_dict(cfg))
    if changed := tree_differences(then, now):
        raise UserError(f"Train.replay: {path} is of another config: {'; '.join(changed)}")
    device = distributed.init(gpus).device
    statistics = pixel_statistics(cfg.Method.backbone)
    episodes, _ = open_episodes(cfg, "train", cfg.Train.seed, *statistics)
    if list_crc(episodes.sampler.fold) != state["list"]:
        raise UserError(f"Train.replay: {path} is of other images than Data.data_root holds")
    model = build_model(cfg)
    load_state_dict_strictly(model, state["model"], path, finite=False)
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
    trainer = build_trainer(model, cfg, state["total"], Ranks(rank, world, device))
    # The other ranks are not here; a step of D counts none.
    trainer.known_pixels = tuple(count.to(device) for count in state["pixels"])
    _repeat(trainer, batch, state)


def _repeat(trainer: Trainer, batch: EncodedBatch, state: dict[str, Any]) -> None:
    """Take the step again, and print the first module and every loss."""
    found: list[str] = []
    names = {module: name for name, module in trainer.model.named_modules() if name}

    def check_output(module: nn.Module, given: tuple, output: object) -> None:
        if not found and not _is_finite(output):
            kind = "finite" if _is_finite(given) else "not finite"
            found.append(f"{names[module]} ({kind} input)")

    for module in names:
        module.register_forward_hook(check_output)
    failure = ""
    try:
        losses = trainer.step(batch, state["iteration"], state["in_epoch"])
    except NonFiniteStep as error:
        failure, losses = f"not finite again: {error}", error.losses
    log.info(f"first module whose output is not finite: {found[0] if found else 'none'}")
    for name, value in losses.items():
        log.info(f"  {name} {value.item():.9g}")
    if failure:
        raise RunStopped(failure)
    log.info("every loss and every gradient is finite here")


def _is_finite(value: object) -> bool:
    if isinstance(value, Tensor):
        return bool(value.isfinite().all())
    if isinstance(value, (tuple, list)):
        return all(map(_is_finite, value))
    return not is_dataclass(value) or all(map(_is_finite, vars(value).values()))
