"""Prepare the data sets from their downloads; docs/data.md says where to get them.

    python -m util.data.prepare voc --voc VOCtrainval_11-May-2012.tar --sbd benchmark.tgz --out data
    python -m util.data.prepare coco --coco DIR --out data
    python -m util.data.prepare custom --images photos --labels labels.json --out data/mine
    python -m util.data.prepare base --dataset pascal --root data

Run the same command again after an interruption, even a kill: it continues where it stopped.
"""

import argparse
from pathlib import Path

from util.data import prepare
from util.folds import FOLDS
from util.runtime.cli import Parser, main
from util.runtime.errors import UserError
from util.runtime.parallel import cores


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="voc|coco|custom|base", help="what to prepare"
    )
    text = "PASCAL VOC 2012 + SBD"
    voc = commands.add_parser("voc", help=text, description=f"Prepare {text}.")
    _add_path(voc, "--voc", "DIR_OR_TAR", "VOC 2012 trainval")
    _add_path(voc, "--sbd", "DIR_OR_TAR", "SBD's benchmark_RELEASE")
    text = "COCO 2014"
    coco = commands.add_parser("coco", help=text, description=f"Prepare {text}.")
    _add_path(coco, "--coco", "DIR", "its folders or zips; pictures may be those of 2017")
    text = "your own images, labeled in COCO's format"
    custom = commands.add_parser("custom", help=text, description=f"Prepare {text}.")
    _add_path(custom, "--images", "DIR", "folder of the images")
    _add_path(custom, "--labels", "JSON", "what the labeling tool exports")
    for command in (voc, coco, custom):
        _add_path(command, "--out", "DIR", "the folder to create")
        command.add_argument(
            "--copy", action="store_true", help="copy pictures of a folder instead of linking to it"
        )
    base = commands.add_parser(
        "base",
        help="BAM's base_annotation; not needed here",
        description="Write base_annotation as BAM and HDMNet read it. This repository does not"
        " need it: it derives the same labels while it reads the masks.",
    )
    base.add_argument("--dataset", required=True, choices=("pascal", "coco"), help="the data set")
    _add_path(base, "--root", "DIR", "the --out of voc or coco")
    base.add_argument(
        "--split", type=int, nargs="+", choices=range(FOLDS), default=range(FOLDS), metavar="N",
        help="folds, 0 to 3; default: all",
    )  # fmt: skip
    for command in (voc, coco, custom, base):
        command.add_argument(
            "--workers", type=int, default=cores(), metavar="N",
            help="processes; default: one per CPU core",
        )  # fmt: skip
    return parser.parse_args(arguments)


def _add_path(command: argparse.ArgumentParser, option: str, metavar: str, text: str) -> None:
    command.add_argument(option, type=Path, required=True, metavar=metavar, help=text)


def run_prepare(arguments: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        arguments: its words; those of this process if not given.

    Raises:
        UserError: the user made a mistake.
    """
    args = _parse(arguments)
    if args.workers < 1:
        raise UserError(f"--workers {args.workers}: not a number of processes; use at least 1")
    try:
        if args.command == "voc":
            prepare.prepare_voc(args.voc, args.sbd, args.out, args.copy, args.workers)
        elif args.command == "coco":
            prepare.prepare_coco(args.coco, args.out, args.copy, args.workers)
        elif args.command == "custom":
            prepare.prepare_custom(args.images, args.labels, args.out, args.copy, args.workers)
        else:
            splits = list(dict.fromkeys(args.split))
            prepare.prepare_base_annotation(args.dataset, args.root, splits, args.workers)
    except OSError as error:  # no permission for a folder, a failing disk
        raise UserError(
            f"{error.filename}: {error.strerror}; check the path and its permissions"
        ) from None


if __name__ == "__main__":
    main(run_prepare)
