"""Rename weights between published checkpoints and ours, both ways.

A published AMNet checkpoint is a flat state dict. Names start with `module.` if it was trained on
several GPUs. A BAM base learner is the encoder's part of it, with another name for its classifier.
"""

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from model.amformer.system import AMFormer
from model.errors import UserError

_BASE = "encoder.base."
_BAM_CLASSIFIER, _CLASSIFIER = "cls.4.", "base_learnear.2."
_MIX = "transformer.mix_transformer."
# Our names -> published ones. The first pattern that matches the start of a name is replaced ...
_STARTS = [
    (r"encoder\.base\.backbone\.", r""),
    (r"encoder\.base\.ppm\.", r"ppm."),
    (r"encoder\.base\.fuse\.", r"cls."),
    (r"encoder\.base\.classifier\.", _CLASSIFIER),
    (r"clue\.supp_merge$", r"supp_merge.0.weight"),
    (r"clue\.", r""),
    (r"ensemble\.kshot\.", r"kshot_rw."),
    (r"ensemble\.", r""),
    (r"object_mining\.pyramid\.(\d)\.embed\.", _MIX + r"down_sample_layers.\1.0."),
    (r"object_mining\.pyramid\.(\d)\.layers\.0\.", _MIX + r"down_sample_layers.\1.1."),
    (r"object_mining\.pyramid\.(\d)\.layers\.1\.", _MIX + r"down_sample_layers.\1.2."),
    (r"object_mining\.pyramid\.(\d)\.norm\.", _MIX + r"down_sample_layers.\1.3."),
    (r"object_mining\.mining\.(\d)\.layer\.", _MIX + r"match_layers1.\1.0."),
    (r"object_mining\.mining\.(\d)\.fuse\.", _MIX + r"match_layers1.\1.1."),
    (r"object_mining\.refine_mining\.0\.layer\.", _MIX + r"match_layers_r1.0.0."),
    (r"object_mining\.refine_mining\.0\.fuse\.", _MIX + r"match_layers_r1.0.1."),
    (r"object_mining\.refine_mining\.1\.layer\.", _MIX + r"match_layers_r2.0.0."),
    (r"object_mining\.refine_mining\.1\.fuse\.", _MIX + r"match_layers_r2.0.1."),
    (r"object_mining\.parse\.", _MIX + r"parse_layers."),
    (r"object_mining\.refine_parse\.0\.", _MIX + r"parse_layer_r1."),
    (r"object_mining\.refine_parse\.1\.", _MIX + r"parse_layer_r2."),
    (r"object_mining\.heads\.0\.", _MIX + r"cls."),
    (r"object_mining\.heads\.(\d)\.", _MIX + r"cls_r\1."),
    (r"detail_mining\.attention\.(\d)\.", r"part.\1."),
    (r"detail_mining\.discriminators\.(\d)\.", r"binary_cls.\1.conv."),
]
# ... and then every pattern inside an encoder layer (_MIX) or a part attention.
_INSIDE = {
    _MIX: [
        (r"\.attention\.reduce\.", ".attn.sr."),
        (r"\.attention\.norm\.", ".attn.norm."),
        (r"\.attention\.([qkvo])\.", r".attn.attn.linear_\1."),
        (r"\.ffn\.expand\.", ".ffn.layers.0."),
        (r"\.ffn\.depthwise\.", ".ffn.layers.1."),
        (r"\.ffn\.project\.", ".ffn.layers.4."),
    ],
    "part.": [
        (r"\.([qkv])\.", r".\1_fc."),
        (r"\.norm\.", ".layer_norms."),
        (r"\.expand\.", ".ffn.layers.0.0."),
        (r"\.contract\.", ".ffn.layers.1."),
    ],
}


def published_name(ours: str) -> str:
    """Return the published name of one of our weights; those of timm backbones keep their names."""
    matching = (rule for rule in _STARTS if re.match(rule[0], ours))
    pattern, replacement = next(matching, ("$", ""))  # an unknown name stays and is refused later
    name = re.sub("^" + pattern, replacement, ours)
    for start, rules in _INSIDE.items():
        if name.startswith(start):
            for old, new in rules:
                name = re.sub(old, new, name)
    return name


def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert the state dict of a published checkpoint (with or without `module.`) to ours.

    Raises `UserError`, which names it, if a name is missing or surplus.
    """
    state = strip_module_prefix(state)
    names = {published_name(name): name for name in _our_names(state)}
    _check(set(state), set(names))
    return {names[key]: value for key, value in state.items()}


def to_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert our state dict to published names.

    Raises `UserError` if a name is missing or surplus (timm backbones have no published names).
    """
    published = {published_name(name): value for name, value in state.items()}
    _check(set(state), _our_names(published))
    return published


def base_from_published(state: dict[str, Tensor], our_names: Iterable[str]) -> dict[str, Tensor]:
    """Convert a base learner as BAM writes it (with or without `module.`) to our names.

    `our_names` are those of a `BaseLearner`'s state dict. An unknown name stays as it is.
    """
    names = {published_name(_BASE + name): name for name in our_names}
    state = strip_module_prefix(state)
    state = {k.replace(_BAM_CLASSIFIER, _CLASSIFIER): v for k, v in state.items()}
    return {names.get(key, key): value for key, value in state.items()}


def base_to_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert the state dict of a `BaseLearner` to BAM's names; timm backbones keep theirs."""
    names = {key: published_name(_BASE + key) for key in state}
    return {names[k].replace(_CLASSIFIER, _BAM_CLASSIFIER): v for k, v in state.items()}


def strip_module_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the `module.` that training on several GPUs puts before each name."""
    return {key.removeprefix("module."): value for key, value in state.items()}


def infer_architecture(published: dict[str, Tensor]) -> tuple[str, int, int, int]:
    """Infer backbone, base classes, shots and `kshot_trans_dim` of an AMFormer or base learner.

    They follow from names and shapes; resnet50, 15, 1 and 2 if unknown.
    """
    if "layer1.0.conv1.weight" in published:
        backbone = "resnet101" if "layer3.22.conv1.weight" in published else "resnet50"
    else:
        backbone = "vgg16" if "layer4.0.weight" in published else "resnet50"
    classifier = published.get(_CLASSIFIER + "bias", published.get(_BAM_CLASSIFIER + "bias"))
    classes = 15 if classifier is None else len(classifier) - 1
    hidden, direct = published.get("kshot_rw.0.weight"), published.get("kshot_rw.weight")
    if direct is not None:
        return backbone, classes, len(direct), 0
    shot, width = (1, 2) if hidden is None else (hidden.shape[1], hidden.shape[0])
    return backbone, classes, shot, width


def _our_names(published: dict[str, Tensor]) -> set[str]:
    """Return all our names for the architecture of a published state dict."""
    with torch.device("meta"):
        backbone, classes, shot, hidden = infer_architecture(published)
        model = AMFormer(backbone, classes, shot, kshot_trans_dim=hidden)
    return set(model.state_dict())


def _check(given: set[str], expected: set[str]) -> None:
    found = (("surplus", sorted(given - expected)), ("missing", sorted(expected - given)))
    problems = [f"{what}: {names[0]} ({len(names)} in all)" for what, names in found if names]
    if problems:
        raise UserError("not the names of a published checkpoint; " + "; ".join(problems))
