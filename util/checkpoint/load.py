"""Weight files -> models: the base learner for stage two, and the checkpoint for a test."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model import System, build_model
from model.backbones import load_pretrained
from model.base_learner import BaseLearner, FrozenBackbone
from model.published import base_from_published
from util.checkpoint.file import (
    load_state_dict_strictly,
    read_checkpoint_once,
    require_same_weights,
    state_dict_in,
)
from util.checkpoint.origin import require_base_classes, trained_config
from util.config import Config
from util.runtime import UserError, timed

_KSHOT = "ensemble.kshot."

MAX_PRESENCE = 100.0
"""No presence is so high: it is a difference of two mixtures of probabilities, plus a cosine."""


@timed("base learner read")
def load_base_learner(base: FrozenBackbone, cfg: Config) -> dict[str, Any] | None:
    """Load the base learner from `Method.pre_weight`: a file of our stage one, or one of BAM.

    Where the system has none, its backbone is taken from that file, or, if no file is named, from
    the ImageNet weights of `Method.pretrained`. Returns what the file says of its training, for
    `origin.training_of_stages`; None if nothing. Raises `UserError` if the file is missing, torn,
    of another architecture, or was trained on other classes.
    """
    path, whole = cfg.Method.pre_weight, base
    if not isinstance(base, BaseLearner):
        if not path:
            load_pretrained(base.backbone, cfg.Method.backbone, cfg.Method.pretrained)
            return None
        whole = BaseLearner(cfg.Method.backbone, cfg.num_base_classes)
    elif not path:
        raise UserError("Method.pre_weight is empty; name the base learner's file")
    if not Path(path).is_file():
        remedy = "train.sh makes it, or: python train_base.py --config FILE"
        raise UserError(f"Method.pre_weight: there is no file {path!r}; {remedy}")
    content, _ = read_checkpoint_once(path)
    weights = state_dict_in(content, "state_dict", path)
    load_state_dict_strictly(whole, base_from_published(weights, whole.state_dict()), path)
    if whole is not base:
        base.backbone.load_state_dict(whole.backbone.state_dict())
    trained = trained_config(content, path)
    if trained is None:
        return None
    require_base_classes(trained, cfg, f"Method.pre_weight: {path}")
    return {name: content.get(name) for name in ("config", "images")}


def checkpoint_path(cfg: Config) -> Path:
    """Return the file that `Eval.weight` names: the run's `best` or `last`, or any path."""
    weight = cfg.Eval.weight
    of_run = weight in ("best", "last")
    return Path(cfg.Train.save_path, f"{weight}.pth") if of_run else Path(weight)


@timed("checkpoint read")
def load_checkpoint(model: nn.Module, path: Path) -> dict[str, Any]:
    """Load a model from a checkpoint of training; return the whole content of the file.

    Every rank has to call this. Raises `UserError` if the file is missing, torn, of another
    architecture, or has values that are not finite.
    """
    state, _ = read_checkpoint_once(path)
    load_state_dict_strictly(model, state_dict_in(state, "model", path), path)
    return state


def trained_model(cfg: Config, state: dict[str, Any], path: Path) -> System:
    """Build the model that a config describes, with the weights of a checkpoint, on the CPU.

    Only with `Eval.kshot: model` do the trained K-shot weights take part in a prediction. Otherwise
    they are dropped, and a checkpoint of any K works with any `Data.shot`. Raises `UserError` if
    the checkpoint is of another architecture or K.
    """
    weights = state_dict_in(state, "model", path)
    if cfg.Eval.kshot != "model":
        weights = {name: value for name, value in weights.items() if not name.startswith(_KSHOT)}
        cfg = replace(cfg, Data=replace(cfg.Data, shot=1))
    elif "ensemble.gram_merge.weight" in weights:
        kshot = weights.get(f"{_KSHOT}0.weight", weights.get(f"{_KSHOT}weight"))
        shot = kshot.shape[1] if isinstance(kshot, Tensor) and kshot.ndim > 1 else 1
        if shot != cfg.Data.shot:
            mistake = f"trained with {shot} support{'s' * (shot > 1)} per query"
            remedy = f"set Eval.kshot to ensemble or prototype, or Data.shot to {shot}"
            raise UserError(f"{path}: {mistake}, and Data.shot is {cfg.Data.shot}; {remedy}")
    with torch.device("meta"):  # takes no memory, whatever sizes a stranger's config asks for
        expected = build_model(cfg).state_dict()
    require_same_weights(expected, weights, path)
    model = build_model(cfg)
    load_state_dict_strictly(model, weights, path)
    return model


def presence_threshold(state: dict[str, Any], path: Path) -> float | None:
    """Return the presence below which an object is not there (docs/protocol.md), None if unknown.

    Training stores it with `Eval.absent`. Raises `UserError` if the value is no number, or so far
    from the scores that it would call every object absent, or none.
    """
    threshold = state.get("presence_threshold")
    if threshold is not None and not (isinstance(threshold, float) and math.isfinite(threshold)):
        raise UserError(f"{path}: its presence_threshold is no number; name another file")
    if threshold is not None and abs(threshold) > MAX_PRESENCE:
        what = f"{path}: its presence_threshold is {threshold:g}"
        raise UserError(f"{what}, and scores of presence are near 1; name another file")
    return threshold
