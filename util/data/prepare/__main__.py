"""Prepares the data sets from their downloads; docs/data.md says where to get these.

    python -m util.data.prepare voc --voc VOCtrainval_11-May-2012.tar --sbd benchmark.tgz --out data
    python -m util.data.prepare coco --coco DIR --out data
    python -m util.data.prepare custom --images photos --labels labels.json --out data/mine
    python -m util.data.prepare base --dataset pascal --root data

A run that was cut off, killed even, goes on where it was; a finished one finds nothing to do.
"""

import argparse
import os
import sys
from pathlib import Path

from util.data.prepare.base_annotation import prepare_base
from util.data.prepare.coco import prepare_coco
from util.data.prepare.custom import prepare_custom
from util.data.prepare.voc import prepare_voc
from util.folds import FOLDS
from util.runtime.cli import Parser, main
from util.runtime.errors import UserError


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(__doc__)
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="voc|coco|custom|base", help="what to prepare"
    )
    path = {"type": Path, "required": True}
    voc = commands.add_parser("voc", **_about("PASCAL VOC 2012 + SBD"))
    voc.add_argument("--voc", **path, metavar="DIR_OR_TAR", help="VOC 2012 trainval")
    voc.add_argument("--sbd", **path, metavar="DIR_OR_TAR", help="SBD's benchmark_RELEASE")
    coco = commands.add_parser("coco", **_about("COCO 2014"))
    coco.add_argument("--coco", **path, metavar="DIR", help="its folders or zips, also of 2017")
    custom = commands.add_parser("custom", **_about("your own images, labelled in COCO's format"))
    custom.add_argument("--images", **path, metavar="DIR", help="folder of the images")
    custom.add_argument("--labels", **path, metavar="JSON", help="what the labelling tool exports")
    for command in (voc, coco, custom):
        command.add_argument("--out", **path, metavar="DIR", help="the folder to fill")
        command.add_argument(
            "--copy", action="store_true", help="copy pictures of a folder, not link to it"
        )
    base = commands.add_parser(
        "base",
        help="BAM's base_annotation; not needed here",
        description="Writes base_annotation as BAM and HDMNet read it. This repository does not"
        " need it: it derives the same labels while it reads the masks.",
    )
    base.add_argument("--dataset", required=True, choices=("pascal", "coco"), help="which")
    base.add_argument("--root", **path, metavar="DIR", help="the --out of voc or coco")
    base.add_argument(
        "--split", type=int, nargs="+", choices=range(FOLDS), default=range(FOLDS), metavar="N",
        help="folds, 0 to 3; all if not given",
    )  # fmt: skip
    for command in (voc, coco, custom, base):
        command.add_argument(
            "--workers", type=int, default=len(os.sched_getaffinity(0)), metavar="N",
            help="processes; as many as there are cores if not given",
        )  # fmt: skip
    return parser.parse_args(arguments)


def _about(text: str) -> dict[str, str]:
    """What a command is, in the list of commands and on its own."""
    return {"help": text, "description": f"Prepares {text}."}


def prepare(arguments: list[str] | None = None) -> None:
    """Runs the command line.

    Raises:
        UserError: for a user's mistake, in one line.
    """
    args = _parse(sys.argv[1:] if arguments is None else arguments)
    if args.workers < 1:
        raise UserError(f"--workers {args.workers}: is no number of processes; use at least 1")
    try:
        if args.command == "voc":
            prepare_voc(args.voc, args.sbd, args.out, args.copy, args.workers)
        elif args.command == "coco":
            prepare_coco(args.coco, args.out, args.copy, args.workers)
        elif args.command == "custom":
            prepare_custom(args.images, args.labels, args.out, args.copy, args.workers)
        else:
            prepare_base(args.dataset, args.root, list(dict.fromkeys(args.split)), args.workers)
    except OSError as error:  # a folder that may not be entered, a disk that fails
        raise UserError(
            f"{error.filename}: {error.strerror}; check the path and its mode"
        ) from None


if __name__ == "__main__":
    main(prepare)
