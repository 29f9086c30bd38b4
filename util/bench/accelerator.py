"""Measure one GPU: each option at each size, and whether it computes what the CPU computes.

    python -m util.bench.accelerator                  # prints a section of Markdown
    python -m util.bench.accelerator --write          # and puts it into docs/performance.md
    python -m util.bench.accelerator --gpus 0 --size 129 --work warm --mode fp32     # tries it

Before anything is timed, a collective operation of one rank has to work (NCCL on a GPU), and a
prediction and a step of G in float64 have to equal those of the CPU. The works are those of
`python -m util.bench`; `graphs` records an evaluated episode once as a CUDA graph and replays it.
"""

import argparse
import datetime
import os
import platform
import shlex
import sys
from pathlib import Path

from util import ROOT
from util.bench.__main__ import CONFIG, WORKS
from util.runtime.cli import Parser, main
from util.runtime.errors import UserError

MODES = {
    "fp32": (),
    "tf32": ("Speed.tf32=true",),
    "bf16": ("Train.precision=bf16", "Eval.precision=bf16"),
    "compile": ("Speed.compile=true",),
    "graphs": (),
}
"""Name of an option -> what it changes in the config."""

OF_GPUS = {"tf32", "graphs"}
PAGE, NEXT_SECTION = ROOT / "docs/performance.md", "## Measure your own machine\n"


def bench() -> None:
    """Run the command."""
    parser = Parser(__doc__)
    parser.add_argument("--config", default=CONFIG, metavar="FILE", help="a YAML file of config/")
    parser.add_argument(
        "--size", type=int, nargs="+", default=[473, 633], metavar="PX",
        help="sides of the images (default: 473 633)",
    )  # fmt: skip
    parser.add_argument(
        "--work", nargs="+", default=list(WORKS), choices=WORKS,
        help="kinds of work (default: all four)",
    )  # fmt: skip
    parser.add_argument(
        "--mode", nargs="+", default=list(MODES), choices=list(MODES),
        help="options to measure, each alone (default: all)",
    )  # fmt: skip
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="runs of each work (5)")
    parser.add_argument("--gpus", type=int, default=1, choices=(0, 1), help="0: the CPU (1)")
    parser.add_argument("--write", action="store_true", help="put the section into the page")
    parser.add_argument("--page", type=Path, default=PAGE, help=argparse.SUPPRESS)
    parser.add_overrides()
    args = parser.parse_intermixed_args()
    if args.repeat < 1:
        raise UserError(f"--repeat {args.repeat}: give 1 or more")
    modes = [mode for mode in args.mode if args.gpus or mode not in OF_GPUS]
    if not modes:
        raise UserError(f"--mode {' '.join(args.mode)}: is for a GPU; leave out --gpus 0")

    from util.bench import against_cpu, measure  # torch, which takes seconds to import
    from util.runtime import distributed
    from util.runtime.log import log

    distributed.check_gpus(args.gpus)
    heads = ["work", "px", "option", "per second", "s", "launches", "of the peak rate"]
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    device = against_cpu.check(args.gpus)
    for line in (f"{device}: equals the CPU, and a collective operation works", *lines):
        log.info(line)
    for size in args.size:
        for work in args.work:
            counted = measure.counts(work, measure.config(args, size, shot=1))
            for mode in modes:
                if mode == "graphs" and work in ("G", "D"):
                    continue  # a training step reads its loss, which no graph can
                cells = measure.option_cells(args, work, size, mode, MODES[mode], counted)
                lines.append(f"| {' | '.join(cells)} |")
                log.info(lines[-1])
    if args.write:
        command = shlex.join(["python", "-m", "util.bench.accelerator", *sys.argv[1:]])
        write_section(args.page, device, lines, command)
        log.info(f"written: {args.page}, the section of {device}")


def write_section(page: Path, device: str, lines: list[str], command: str) -> None:
    """Write a section about a device into the page; one that is there is replaced."""
    from util.runtime.files import atomic_write

    heading, text = f"## On {device}\n", page.read_text(encoding="utf-8")
    if NEXT_SECTION not in text:
        raise UserError(f"{page}: has no section {NEXT_SECTION.strip()!r}; name another page")
    if heading in text:
        before, _, after = text.partition(heading)
        text = before + "## " + after.split("\n## ", 1)[1]
    date = datetime.date.today().isoformat()
    from torch import __version__ as version

    machine = f"{device}, {platform.system()}, {os.cpu_count()} CPU cores"
    note = f"# measured {date}, {machine}, torch {version}"
    section = [heading, *lines, "", "```sh", note, command, "```", "", ""]
    atomic_write(page, text.replace(NEXT_SECTION, "\n".join(section) + NEXT_SECTION).encode())


if __name__ == "__main__":
    main(bench)
