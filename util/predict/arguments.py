"""Arguments that the command and the page have in common, checked before torch is imported."""

import argparse
import re
from pathlib import Path

from util.runtime.cli import Parser
from util.runtime.errors import UserError


def add_model_arguments(parser: Parser, default: Path | None = None) -> None:
    """Add `--checkpoint`, which is required if there is no default, and `--device`."""
    about = "best.pth or last.pth of train.py" + (" (the demo's)" if default else "")
    parser.add_argument(
        "--checkpoint", type=Path, default=default, required=default is None, metavar="FILE",
        help=about,
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:1")


def check_model_arguments(args: argparse.Namespace) -> None:
    """Check what can be known without torch: the file exists, the device is written correctly.

    Raises `UserError` if one of the two is wrong.
    """
    if not args.checkpoint.is_file():
        raise UserError(
            f"--checkpoint {args.checkpoint}: no such checkpoint; train it first, or name another "
            "file"
        )
    if not re.fullmatch(r"cpu|cuda(:\d+)?", args.device):
        raise UserError(f"--device {args.device}: unknown; write cpu, cuda or cuda:0")
