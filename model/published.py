"""Rename weights between published checkpoints and ours, both ways.

A published checkpoint is a flat state dict. Names start with `module.` if it was trained on several
GPUs. A BAM base learner is the encoder's part of it, with another name for its classifier.
`System.PUBLISHED` says which names a system's checkpoints have.
"""

import re
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from model.build import SYSTEMS, options_of
from model.errors import UserError
from model.naming import BAM_HEAD, CLASSIFIER
from model.system import System

_BASE = "encoder.base."
_BAM_CLASSIFIER = "cls.4."


def published_name(ours: str, system: str = "amformer") -> str:
    """Return the published name of one of our weights; those of timm backbones keep their names."""
    return SYSTEMS[system].PUBLISHED.published(ours)


def from_published(state: dict[str, Tensor], system: str = "amformer") -> dict[str, Tensor]:
    """Convert the state dict of a published checkpoint (with or without `module.`) to ours.

    `system` is a value of `Method.name`. Raises `UserError`, which names it, if a name is missing
    or surplus.
    """
    state = clean_names(state)
    names = {published_name(name, system): name for name in _our_names(state, system)}
    _check(set(state), set(names))
    return {names[key]: value for key, value in state.items()}


def to_published(state: dict[str, Tensor], system: str = "amformer") -> dict[str, Tensor]:
    """Convert our state dict to published names.

    `system` is a value of `Method.name`. Raises `UserError` if a name is missing or surplus (timm
    backbones have no published names).
    """
    published = {published_name(name, system): value for name, value in state.items()}
    _check(set(state), _our_names(published, system))
    return published


def base_from_published(state: dict[str, Tensor], our_names: Iterable[str]) -> dict[str, Tensor]:
    """Convert a base learner as BAM writes it (with or without `module.`) to our names.

    `our_names` are those of a `BaseLearner`'s state dict. An unknown name stays as it is.
    """
    names = {published_name(_BASE + name): name for name in our_names}
    state = clean_names(state)
    state = {k.replace(_BAM_CLASSIFIER, CLASSIFIER): v for k, v in state.items()}
    return {names.get(key, key): value for key, value in state.items()}


def base_to_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert the state dict of a `BaseLearner` to BAM's names; timm backbones keep theirs."""
    names = {key: published_name(_BASE + key) for key in state}
    return {names[k].replace(CLASSIFIER, _BAM_CLASSIFIER): v for k, v in state.items()}


def clean_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove what names have in addition: `module.` of several GPUs, and copies.

    BAM's base learners hold the backbone twice, as `layer0.` and as `encoder.0.`, and so on.
    """
    state = {key.removeprefix("module."): value for key, value in state.items()}
    return {key: value for key, value in state.items() if not re.match(r"encoder\.\d\.", key)}


def infer_architecture(published: dict[str, Tensor]) -> tuple[str, int, int, int]:
    """Infer backbone, base classes, shots and `kshot_trans_dim` of a system or base learner.

    They follow from names and shapes; resnet50, 15, 1 and 2 if unknown.
    """
    if "layer1.0.conv1.weight" in published:
        backbone = "resnet101" if "layer3.22.conv1.weight" in published else "resnet50"
    else:
        backbone = "vgg16" if "layer4.0.weight" in published else "resnet50"
    names = CLASSIFIER, _BAM_CLASSIFIER, BAM_HEAD
    classifier = next((published[n + "bias"] for n in names if n + "bias" in published), None)
    classes = 15 if classifier is None else len(classifier) - 1
    hidden, direct = published.get("kshot_rw.0.weight"), published.get("kshot_rw.weight")
    if direct is not None:
        return backbone, classes, len(direct), 0
    shot, width = (1, 2) if hidden is None else (hidden.shape[1], hidden.shape[0])
    return backbone, classes, shot, width


def _our_names(published: dict[str, Tensor], system: str) -> set[str]:
    """Return all our names for the architecture of a published state dict."""
    with torch.device("meta"):
        return set(build(system, *infer_architecture(published)).state_dict())


def build(system: str, backbone: str, classes: int, shot: int, kshot_trans_dim: int) -> System:
    """Build a system, a value of `Method.name`, of an architecture of `infer_architecture`."""
    constructor: Callable[..., System] = SYSTEMS[system]
    takes = "kshot_trans_dim" in options_of(SYSTEMS[system])
    return constructor(
        backbone, classes, shot, **({"kshot_trans_dim": kshot_trans_dim} if takes else {})
    )


def _check(given: set[str], expected: set[str]) -> None:
    found = (("surplus", sorted(given - expected)), ("missing", sorted(expected - given)))
    problems = [f"{what}: {names[0]} ({len(names)} in all)" for what, names in found if names]
    if problems:
        raise UserError("not the names of a published checkpoint; " + "; ".join(problems))
