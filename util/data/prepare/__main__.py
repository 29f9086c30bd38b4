"""Prepare the data sets from their downloads; docs/data.md says where to get them.

    python -m util.data.prepare voc --voc VOCtrainval_11-May-2012.tar --sbd benchmark.tgz --out data
    python -m util.data.prepare coco --coco DIR --out data
    python -m util.data.prepare custom --images photos --labels labels.json --out data/mine
    python -m util.data.prepare fss1000 --from FSS-1000 --out data/fss1000
    python -m util.data.prepare base --dataset pascal --root data

docs/data_sets.md has the layouts of fss1000, lvis, pascal_part, isic, deepglobe and chestx. Run the
same command again after an interruption, even a kill: it continues where it stopped.
"""

import argparse
from pathlib import Path

from util.data import prepare
from util.folds import FOLDS
from util.runtime.cli import Parser, main
from util.runtime.errors import UserError
from util.runtime.system import cores

_OUT = ("--out", "DIR", "the folder to create")
_COMMANDS: dict[str, tuple[str, tuple[tuple[str, str, str], ...]]] = {
    "voc": ("PASCAL VOC 2012 + SBD", (
        ("--voc", "DIR_OR_TAR", "VOC 2012 trainval"),
        ("--sbd", "DIR_OR_TAR", "SBD's benchmark_RELEASE"), _OUT)),
    "coco": ("COCO 2014", (
        ("--coco", "DIR", "its folders or zips; pictures may be those of 2017"), _OUT)),
    "custom": ("your own images, labeled in COCO's format", (
        ("--images", "DIR", "folder of the images"),
        ("--labels", "JSON", "what the labeling tool exports"), _OUT)),
    **{name: (text, (("--from", "DIR", "its folder, unpacked"), _OUT)) for name, text in {
        "fss1000": "FSS-1000", "lvis": "LVIS-92i", "pascal_part": "PASCAL-Part",
        "isic": "ISIC 2018", "deepglobe": "DeepGlobe", "chestx": "Chest X-ray"}.items()},
    "base": ("BAM's base_annotation; not needed here", (
        ("--root", "DIR", "the --out of voc or coco"),)),
}  # fmt: skip
_BASE = """Write base_annotation as BAM and HDMNet read it. This repository does not need it: it
derives the same labels while it reads the masks."""


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="|".join(_COMMANDS), help="what to prepare"
    )
    for name, (text, paths) in _COMMANDS.items():
        about = _BASE if name == "base" else f"Prepare {text}."
        command = commands.add_parser(name, help=text, description=about)
        add = command.add_argument
        for option, metavar, meaning in paths:
            add(option, type=Path, required=True, metavar=metavar, help=meaning)
        if name == "base":
            add("--dataset", required=True, choices=("pascal", "coco"), help="the data set")
            add("--split", type=int, nargs="+", choices=range(FOLDS), default=range(FOLDS),
                metavar="N", help="folds, 0 to 3; default: all")  # fmt: skip
        else:
            if name == "custom":
                text = "classes may overlap: keep all pixels of each (docs/custom_data.md)"
                add("--overlap", action="store_true", help=text)
                text = "remove what earlier runs made, and nobody changed, that the labels lack"
                add("--prune", action="store_true", help=text)
            text = "copy pictures of a folder instead of linking to it"
            add("--copy", action="store_true", help=text)
            command.add_overwrite()
        text = "processes; default: one per CPU core"
        add("--workers", type=int, default=cores(), metavar="N", help=text)
    return parser.parse_args(arguments)


def run_prepare(arguments: list[str] | None = None) -> None:
    """Run the command line: these words, or those of this process."""
    args = _parse(arguments)
    if args.workers < 1:
        raise UserError(f"--workers {args.workers}: not a number of processes; use at least 1")
    try:
        if args.command == "base":
            prepare.prepare_base_annotation(args.dataset, args.root, args.split, args.workers)
            return
        how = args.copy, args.workers, args.overwrite
        if args.command == "voc":
            prepare.prepare_voc(args.voc, args.sbd, args.out, *how)
        elif args.command == "coco":
            prepare.prepare_coco(args.coco, args.out, *how)
        elif args.command == "custom":
            more = args.overlap, args.prune
            prepare.prepare_custom(args.images, args.labels, args.out, *how, *more)
        else:
            call = getattr(prepare, f"prepare_{args.command}")
            call(getattr(args, "from"), args.out, *how)
    except OSError as error:  # no permission for a folder, a failing disk
        what = f"{error.filename}: {error.strerror}"
        raise UserError(f"{what}; check the path and its permissions") from None


if __name__ == "__main__":
    main(run_prepare)
