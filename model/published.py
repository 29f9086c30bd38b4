"""Names of published checkpoints <-> ours, both ways.

A published AMNet checkpoint is a flat state dict, each name behind `module.` when it was trained
on several GPUs. A BAM base learner is the encoder's part of it, its classifier under another name.
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
# Our names -> published ones: the first pattern that matches the start of a name replaces it ...
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
# ... and these rename what is inside an encoder layer or a part attention.
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
    """The published name of one of our state dict's names; a backbone of timm's keeps its own."""
    rules = (rule for rule in _STARTS if re.match(rule[0], ours))
    pattern, replacement = next(rules, ("$", ""))  # a name that is not ours stays, to be refused
    name = re.sub("^" + pattern, replacement, ours)
    for start, rules in _INSIDE.items():
        if name.startswith(start):
            for old, new in rules:
                name = re.sub(old, new, name)
    return name


def from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict of a published checkpoint (with or without `module.`) -> ours.

    Raises:
        UserError: a name is missing or surplus; the message names it.
    """
    state = bare(state)
    names = {published_name(name): name for name in _our_names(state)}
    _check(set(state), set(names))
    return {names[key]: value for key, value in state.items()}


def to_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict -> published names.

    Raises:
        UserError: a name is missing or surplus (backbones of timm's have no published form).
    """
    _check(set(state), _our_names({published_name(k): v for k, v in state.items()}))
    return {published_name(name): value for name, value in state.items()}


def base_from_published(state: dict[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """A base learner as BAM writes it (with or without `module.`) -> the names of a `BaseLearner`.

    Args:
        state: its state dict; a name without counterpart stays as it is.
        own: the names of the `BaseLearner`'s state dict.
    """
    names = {published_name(_BASE + name): name for name in own}
    state = {k.replace(_BAM_CLASSIFIER, _CLASSIFIER): v for k, v in bare(state).items()}
    return {names.get(key, key): value for key, value in state.items()}


def base_to_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict of a `BaseLearner` -> names as BAM writes them (a timm backbone keeps its own)."""
    names = {key: published_name(_BASE + key) for key in state}
    return {names[k].replace(_CLASSIFIER, _BAM_CLASSIFIER): v for k, v in state.items()}


def bare(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names without the `module.` of a run on several GPUs."""
    return {key.removeprefix("module."): value for key, value in state.items()}


def architecture(published: dict[str, Tensor]) -> tuple[str, int, int]:
    """What a published state dict's names and shapes tell, for an AMFormer or a base learner.

    Returns:
        (backbone, base classes, shots); where nothing tells, resnet50, 15 and 1.
    """
    if "layer1.0.conv1.weight" in published:
        backbone = "resnet101" if "layer3.22.conv1.weight" in published else "resnet50"
    else:
        backbone = "vgg16" if "layer4.0.weight" in published else "resnet50"
    biases = (published.get(start + "bias") for start in (_CLASSIFIER, _BAM_CLASSIFIER))
    classifier = next((bias for bias in biases if bias is not None), None)
    kshot = published.get("kshot_rw.0.weight")
    classes = 15 if classifier is None else len(classifier) - 1
    return backbone, classes, 1 if kshot is None else kshot.shape[1]


def _our_names(published: dict[str, Tensor]) -> set[str]:
    """All our names of the architecture that a published state dict's names and shapes tell."""
    with torch.device("meta"):
        model = AMFormer(*architecture(published))
    return set(model.state_dict())


def _check(given: set[str], expected: set[str]) -> None:
    found = (("surplus", sorted(given - expected)), ("missing", sorted(expected - given)))
    problems = [f"{what}: {names[0]} ({len(names)} in all)" for what, names in found if names]
    if problems:
        raise UserError("not the names of a published checkpoint; " + "; ".join(problems))
