"""The renaming behind `python -m util.checkpoint.convert`: published names -> ours, and back."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model import published
from model.base_learner import BaseLearner
from model.build import SYSTEMS
from util.checkpoint.file import read_checkpoint, state_dict_differences
from util.checkpoint.origin import require_base_classes, trained_config
from util.config import Config, to_dict
from util.runtime.errors import UserError

State = dict[str, Tensor]
OURS, PUBLISHED = "ours", "published"
_RECORD = ("config", "images", "base_learner")
"""What a checkpoint says of the training of its stages."""


def convert(
    source: str | Path, to: str | None = None, cfg: Config | None = None
) -> tuple[dict[str, Any], str]:
    """Read a weight file; return it renamed for `write_checkpoint`, and a line that describes it.

    `source` is a checkpoint of train.py, a published one of any system, or a base learner of
    either; `to` is 'ours' or 'published', by default the names that the file does not have. It must
    fit `cfg`, or else the architecture that its names and shapes tell. Raises `UserError` if it
    does not, was trained on other classes, is torn, or holds no such weights.
    """
    content = read_checkpoint(source)
    state = published.clean_names(_weights(content, source))
    # What says which classes it has seen stays with it.
    record = {name: content[name] for name in _RECORD if name in content}
    if cfg and (trained := trained_config(content, source)):
        require_base_classes(trained, cfg, str(source))
    kind, system = _kind(source, state)
    base = not system
    target = to or (PUBLISHED if kind == OURS else OURS)
    if target == kind:
        raise UserError(f"{source}: its names are {kind} already; leave out --to {to}")

    def to_theirs(ours: State) -> State:
        if base:
            return published.base_to_published(ours)
        return {published.published_name(name, system): value for name, value in ours.items()}

    theirs = state if kind == PUBLISHED else to_theirs(state)
    backbone, classes, shot, hidden = published.infer_architecture(theirs)
    if cfg:
        backbone, classes, shot = cfg.Method.backbone, cfg.num_base_classes, cfg.Data.shot
        hidden = cfg.Method.kshot_trans_dim
        if not base and cfg.Method.name != system:
            mistake = (
                f"is {SYSTEMS[system].__name__}, and Method.name of the config {cfg.Method.name}"
            )
            raise UserError(f"{source}: {mistake}; name a config of {system}")
    if not base and backbone.startswith("timm/"):
        raise UserError(f"{source}: a system on {backbone} has no published form; use it as it is")
    with torch.device("meta"):
        if base:
            model: nn.Module = BaseLearner(backbone, classes)
            description = f"a base learner of {classes} classes on {backbone}"
        else:
            model = published.build(system, backbone, classes, shot, hidden)
            of = f" of {classes} base classes and {shot} shots" * model.has_base_learner
            description = f"{SYSTEMS[system].__name__}{of} on {backbone}"
    ours = model.state_dict()
    expected = ours if kind == OURS else to_theirs(ours)
    # BAM's files use two names for the classifier.
    names = {name.replace("cls.4.", "base_learnear.2."): name for name in expected}
    given = {names.get(name, name): value for name, value in state.items()}
    if fault := state_dict_differences(expected, given):
        remedy = "name the config it was made for" if cfg else "a backbone of timm wants --config"
        raise UserError(f"{source}: does not fit {description}: {fault}; {remedy}")
    if cfg and not base:
        record.setdefault("config", to_dict(cfg))
    if base:
        to_ours = published.base_from_published
        content = {"state_dict": to_ours(state, ours) if target == OURS else theirs, **record}
    elif target == OURS:
        content = {"model": published.from_published(state, system), **record}
    else:  # bare: the published code takes nothing else
        content = dict(published.to_published(state, system))
    return content, f"{description}, {len(state)} tensors under {target} names"


def _weights(content: dict[str, Any], source: str | Path) -> State:
    """Return the state dict of a file, under `model`, under `state_dict` or bare."""
    for key in ("model", "state_dict"):
        content = content.get(key, content)
    other = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if other or not content:
        reason = f"{other[0]!r} is no tensor" if other else "it is empty"
        raise UserError(f"{source}: holds no weights ({reason}); name another file")
    return content


def _kind(source: str | Path, state: State) -> tuple[str, str]:
    """Return whose names the tensors have, and the system; '': a base learner alone."""
    starts = [
        (mark, (kind, name))
        for name, system in SYSTEMS.items()
        for mark, kind in zip(system.PUBLISHED.marks, (OURS, PUBLISHED), strict=True)
    ]
    for start, found in (*starts, ("classifier.", (OURS, "")), ("ppm.", (PUBLISHED, ""))):
        if any(name.startswith(start) for name in state):
            return found
    shown = ", ".join(list(state)[:3])
    mistake = f"neither our names nor published ones ({shown}, ...)"
    raise UserError(f"{source}: {mistake}; it takes a system or a base learner")
