"""Weight files under published names -> ours, and back: the same tensors, nothing computed.

    python -m util.checkpoint.convert amnet.pth ours.pth              # then Eval.weight=ours.pth
    python -m util.checkpoint.convert bam.pth base.pth                # then Method.pre_weight=base.pth
    python -m util.checkpoint.convert exp/pascal/split0_resnet50/best.pth published.pth

The names in the file tell which way it goes, and backbone, classes and shots. docs/weights.md.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.amformer.system import AMFormer
from model.base_learner import BaseLearner
from model.published import (
    architecture,
    bare,
    base_from_published,
    base_to_published,
    from_published,
    published_name,
    to_published,
)
from util.checkpoint.file import read_checkpoint, state_dict_differences, write_checkpoint
from util.config import Config, load_config, to_dict
from util.runtime.cli import Parser, main
from util.runtime.errors import UserError

State = dict[str, Tensor]
OURS, PUBLISHED = "ours", "published"


def convert(
    source: str | Path, to: str | None = None, cfg: Config | None = None
) -> tuple[dict[str, Any], str]:
    """Reads a weight file and gives its weights their other names.

    Args:
        source: a checkpoint of train.py, of AMNet or HDMNet's layout, or a base learner of either.
        to: 'ours' or 'published'; None: the one that the file is not.
        cfg: the config that the file has to fit; None: what its names and shapes tell.

    Returns:
        What `checkpoint.save` is to write, and one line about it.

    Raises:
        UserError: the file is torn, holds no such weights, or its names or shapes do not fit.
    """
    state = bare(_weights(source))
    kind, base = _kind(source, state)
    target = to or (PUBLISHED if kind == OURS else OURS)
    if target == kind:
        raise UserError(f"{source}: its names are {kind} already; leave out --to {to}")
    published = state if kind == PUBLISHED else {_theirs(n, base): v for n, v in state.items()}
    backbone, classes, shot = architecture(published)
    if cfg:
        backbone, classes, shot = cfg.Method.backbone, cfg.num_base_classes, cfg.Data.shot
    if not base and backbone.startswith("timm/"):
        raise UserError(f"{source}: a system on {backbone} has no published form; use it as it is")
    with torch.device("meta"):
        model = BaseLearner(backbone, classes) if base else AMFormer(backbone, classes, shot)
    own = model.state_dict()
    told = f"a base learner of {classes} classes on {backbone}"
    if not base:
        told = f"an AMFormer of {classes} base classes and {shot} shots on {backbone}"
    expected = own if kind == OURS else {_theirs(name, base): v for name, v in own.items()}
    if fault := state_dict_differences(expected, _one_classifier(state, expected)):
        remedy = "name the config it was made for" if cfg else "a backbone of timm wants --config"
        raise UserError(f"{source}: does not fit {told}: {fault}; {remedy}")
    if base:
        names = base_from_published(state, own) if target == OURS else base_to_published(state)
        content: dict[str, Any] = {"state_dict": names}
    elif target == OURS:
        content = {"model": from_published(state)} | ({"config": to_dict(cfg)} if cfg else {})
    else:
        content = dict(to_published(state))
    return content, f"{told}, {len(state)} tensors under {target} names"


def _weights(source: str | Path) -> State:
    """The state dict in a file, whatever it lies under."""
    content = read_checkpoint(source)
    for key in ("model", "state_dict"):
        content = content.get(key, content)
    strange = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if strange or not content:
        found = f"{strange[0]!r} is no tensor" if strange else "it is empty"
        raise UserError(f"{source}: holds no weights ({found}); name another file")
    return content


def _kind(source: str | Path, state: State) -> tuple[str, bool]:
    """(Whose names they are, whether it is a base learner alone.)"""
    parts = {name.partition(".")[0] for name in state}
    for part, found in (
        ("encoder", (OURS, False)),
        ("transformer", (PUBLISHED, False)),
        ("classifier", (OURS, True)),
        ("ppm", (PUBLISHED, True)),
    ):
        if part in parts:
            return found
    shown = ", ".join(list(state)[:3])
    raise UserError(
        f"{source}: neither AMFormer's names nor published ones ({shown}, ...); it takes a system "
        "or a base learner"
    )


def _theirs(name: str, base: bool) -> str:
    """The published name of one of our names."""
    return next(iter(base_to_published({name: None}))) if base else published_name(name)


def _one_classifier(state: State, expected: State) -> State:
    """A base learner's state with BAM's name for the classifier, which has two."""
    names = {name.replace("cls.4.", "base_learnear.2."): name for name in expected}
    return {names.get(name, name): value for name, value in state.items()}


def _main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("source", metavar="IN", type=Path, help="the weight file to read")
    parser.add_argument("target", metavar="OUT", type=Path, help="the file to write")
    parser.add_argument("--to", choices=(OURS, PUBLISHED), help="refuse to go the other way")
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="the config that IN has to fit; needed on a backbone of timm",
    )
    args = parser.parse_args()
    if args.target.resolve() == args.source.resolve():
        raise UserError(f"{args.target}: IN and OUT are the same file; name another OUT")
    cfg = load_config(args.config) if args.config else None
    content, told = convert(args.source, args.to, cfg)
    write_checkpoint(args.target, **content)
    print(f"written: {args.target}, {told}")


if __name__ == "__main__":
    main(_main)
