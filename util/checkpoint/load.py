"""Weight files -> models: the base learner of stage two, and the checkpoint that is tested."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

from torch import Tensor

from model import AMFormer, build_model
from model.base_learner import BaseLearner
from model.published import base_from_published
from util.checkpoint.file import load_state_dict_strictly, read_checkpoint, state_dict_in
from util.config import Config
from util.config.schema import DataSection
from util.folds import COCO_NAMES, fold_of
from util.runtime.errors import UserError
from util.runtime.progress import timed


@timed("base learner read")
def load_base_learner(base: BaseLearner, cfg: Config) -> None:
    """Fills the encoder from `Method.pre_weight`: our stage one's file, or one from BAM as it is.

    Raises:
        UserError: no such file, a torn one, or one of another architecture.
    """
    path = cfg.Method.pre_weight
    if not Path(path).is_file():
        raise UserError(
            f"Method.pre_weight: there is no file {path!r}; train.sh makes it, or: "
            "python train_base.py --config FILE"
        )
    state = read_checkpoint(path)
    found = state_dict_in(state, "state_dict", path)
    state = base_from_published(found, base.state_dict())
    load_state_dict_strictly(base, state, path)


def checkpoint_path(cfg: Config) -> Path:
    """The file that `Eval.weight` means: `best` or `last` of the run, or a path."""
    weight = cfg.Eval.weight
    return (
        Path(cfg.Train.save_path, f"{weight}.pth") if weight in ("best", "last") else Path(weight)
    )


@timed("checkpoint read")
def load_checkpoint(model: AMFormer, path: Path) -> dict:
    """Fills a model from a checkpoint of train.py; returns all that the file holds.

    Raises:
        UserError: no such file, a torn one, or one of another architecture.
    """
    state = read_checkpoint(path)
    load_state_dict_strictly(model, state_dict_in(state, "model", path), path)
    return state


def trained_model(cfg: Config, state: dict, path: Path) -> AMFormer:
    """The model that a config describes, to predict with, on the CPU.

    Unless `Eval.kshot` is "model", the K-shot weights have no part in a prediction, and a
    checkpoint of any K serves any `Data.shot`.

    Args:
        cfg: the whole config.
        state: what a checkpoint of train.py holds.
        path: the file it came from, for messages.

    Raises:
        UserError: the checkpoint is of another architecture or K.
    """
    weights = state_dict_in(state, "model", path)
    if cfg.Eval.kshot != "model":
        weights = {name: value for name, value in weights.items() if not name.startswith(_KSHOT)}
        cfg = replace(cfg, Data=replace(cfg.Data, shot=1))
    elif "ensemble.gram_merge.weight" in weights and trained_shot(weights) != cfg.Data.shot:
        shot = trained_shot(weights)
        raise UserError(
            f"{path}: trained with {shot} support{'s' * (shot > 1)} per query, and Data.shot is "
            f"{cfg.Data.shot}; set Eval.kshot to ensemble or prototype, or Data.shot to {shot}"
        )
    model = build_model(cfg)
    load_state_dict_strictly(model, weights, path)
    return model


def trained_shot(weights: dict) -> int:
    """K of the model that a state dict is of."""
    kshot = weights.get(f"{_KSHOT}0.weight")
    return kshot.shape[1] if isinstance(kshot, Tensor) and kshot.ndim > 1 else 1


_KSHOT = "ensemble.kshot."


def require_unseen(state: dict, path: Path, cfg: Config) -> None:
    """Makes sure that a checkpoint was not trained on a class that the config tests as novel.

    Args:
        state: what the file holds; one without a config (published weights) is taken as it is.
        path: of the file, for the message.
        cfg: of the test.

    Raises:
        UserError: naming the classes; or that config is none.
    """
    if "config" not in state:
        return
    config, known = state["config"], {field.name for field in fields(DataSection)}
    kept = config.get("Data") if isinstance(config, Mapping) else None
    if not isinstance(kept, Mapping):
        raise UserError(f"{path}: its config does not say what was trained on; name another file")
    trained = fold_of(DataSection(**{k: v for k, v in kept.items() if k in known})).learned
    tested = fold_of(cfg.Data)
    seen = {trained.names[c - 1] for c in trained.base}
    names = [tested.names[c - 1] for c in tested.novel]
    leaked = [n for n in names if not seen.isdisjoint((n, COCO_NAMES.get(n, n)))]
    if leaked:
        raise UserError(
            f"{path}: was trained on {', '.join(leaked)}, which this config tests as novel; give"
            " the config or Eval.weight of the fold that it was trained on"
        )
