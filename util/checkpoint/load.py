"""Weight files -> models: the base learner for stage two, and the checkpoint for a test."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

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
    """Load the base learner from `Method.pre_weight`: a file of our stage one, or one of BAM.

    Args:
        base: the encoder's base learner.
        cfg: the whole config.

    Raises:
        UserError: the file is missing, torn, or of another architecture.
    """
    path = cfg.Method.pre_weight
    if not Path(path).is_file():
        raise UserError(
            f"Method.pre_weight: there is no file {path!r}; train.sh makes it, or: "
            "python train_base.py --config FILE"
        )
    state = read_checkpoint(path)
    weights = state_dict_in(state, "state_dict", path)
    load_state_dict_strictly(base, base_from_published(weights, base.state_dict()), path)


def checkpoint_path(cfg: Config) -> Path:
    """Return the file that `Eval.weight` names: the run's `best` or `last`, or any path."""
    weight = cfg.Eval.weight
    if weight in ("best", "last"):
        return Path(cfg.Train.save_path, f"{weight}.pth")
    return Path(weight)


@timed("checkpoint read")
def load_checkpoint(model: nn.Module, path: Path) -> dict[str, Any]:
    """Load a model from a checkpoint of training; return the whole content of the file.

    Raises:
        UserError: the file is missing, torn, or of another architecture.
    """
    state = read_checkpoint(path)
    load_state_dict_strictly(model, state_dict_in(state, "model", path), path)
    return state


def trained_model(cfg: Config, state: dict[str, Any], path: Path) -> AMFormer:
    """Build the model that a config describes, with trained weights, on the CPU.

    Only with `Eval.kshot: model` do the trained K-shot weights take part in a prediction. Otherwise
    they are dropped, and a checkpoint of any K works with any `Data.shot`.

    Args:
        cfg: the whole config.
        state: the content of a checkpoint of train.py.
        path: the file that it came from, for messages.

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


def trained_shot(weights: dict[str, Tensor]) -> int:
    """Return K, the supports per query that a system's state dict was trained with."""
    kshot = weights.get(f"{_KSHOT}0.weight")
    return kshot.shape[1] if isinstance(kshot, Tensor) and kshot.ndim > 1 else 1


_KSHOT = "ensemble.kshot."


def require_unseen(state: dict[str, Any], path: Path, cfg: Config) -> None:
    """Refuse a checkpoint that was trained on a class that the config tests as novel.

    Args:
        state: the content of the file; without a config (published weights) it is accepted.
        path: the file, for the message.
        cfg: the config of the test.

    Raises:
        UserError: naming the classes; or the checkpoint's config cannot be read.
    """
    if "config" not in state:
        return
    config, known = state["config"], {field.name for field in fields(DataSection)}
    data = config.get("Data") if isinstance(config, Mapping) else None
    if not isinstance(data, Mapping):
        raise UserError(f"{path}: its config does not say what was trained on; name another file")
    trained = fold_of(DataSection(**{k: v for k, v in data.items() if k in known})).learned
    tested = fold_of(cfg.Data)
    seen = {trained.names[c - 1] for c in trained.base}
    names = [tested.names[c - 1] for c in tested.novel]
    leaked = [n for n in names if not seen.isdisjoint((n, COCO_NAMES.get(n, n)))]
    if leaked:
        raise UserError(
            f"{path}: was trained on {', '.join(leaked)}, which this config tests as novel; give"
            " the config or Eval.weight of the fold that it was trained on"
        )
