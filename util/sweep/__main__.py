"""Train and test settings x folds x seeds, and compare them in one table; see docs/sweeps.md.

python -m util.sweep config/sweeps/demo.yaml                            # one run on each core
python -m util.sweep config/sweeps/oddities.yaml --jobs 4
python -m util.sweep SWEEP.yaml --gpus 4                                # one run on each GPU
python -m util.sweep SWEEP.yaml --slurm partition=gpu time=720 gpus=1   # a Slurm job for each run

The same command goes on after a stop: what is finished is not repeated. SIGINT (Ctrl-C) and SIGTERM
let the runs save, and end the sweep.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from util.runtime.cli import Parser, main
from util.runtime.errors import UserError
from util.runtime.files import atomic_write
from util.runtime.log import log
from util.runtime.stop import Stop
from util.runtime.system import cores, locked
from util.sweep.spec import SlurmOptions, Sweep, read_sweep, validated

if TYPE_CHECKING:
    from util.sweep.plan import Run
    from util.sweep.pools import Pool


def sweep() -> None:
    """Run the command."""
    parser = Parser(__doc__)
    parser.add_argument("sweep", type=Path, metavar="SWEEP", help="a YAML file, docs/sweeps.md")
    about = "runs at once (default: one on each core; Slurm: no limit)"
    parser.add_argument("--jobs", type=int, metavar="N", help=about)
    where = parser.add_mutually_exclusive_group()
    about = "use so many GPUs of this machine, one for each run (default: 0, the CPU)"
    where.add_argument("--gpus", type=int, metavar="N", default=0, help=about)
    about = """send each run to Slurm; options of docs/sweeps.md win over those of the file"""
    where.add_argument("--slurm", nargs="*", metavar="KEY=VALUE", help=about)
    args = parser.parse_args()
    if args.jobs is not None and (args.jobs < 1 or args.gpus):
        parser.error("--jobs wants at least 1, and no --gpus, whose runs have a GPU each")
    spec = read_sweep(args.sweep)
    options = _slurm_options(spec, args)
    from util.sweep.plan import plan  # imports torch: not for a refused file
    from util.sweep.schedule import Schedule

    runs = plan(spec, args.sweep)
    folder = Path(spec.out)
    folder.mkdir(parents=True, exist_ok=True)
    # Runs inherit the lock: those that a killed sweep leaves behind keep others out.
    with locked(folder, inherited=True) as free, Stop() as stop:
        if not free:
            mistake = "another sweep, or a run that it left behind, is at work there"
            raise UserError(f"{folder}: {mistake}; wait for it, or stop it")
        schedule = Schedule(runs, _pool(spec, args, options), stop)
        schedule.run()
    if stop.requested:
        done = f"{len(schedule.finished)} of {len(runs)} runs are finished"
        again = shlex.join(["python", "-m", "util.sweep", *sys.argv[1:]])
        log.info(f"stopped; {done}. The same command goes on:\n{again}")
        return
    _write_table(spec, [run for run in runs if run in schedule.finished])
    if failed := schedule.failed:
        names = ", ".join(unit.name for unit in failed)
        raise UserError(f"{len(failed)} failed: {names}; the same command tries them again")


def _write_table(spec: Sweep, runs: "Sequence[Run]") -> None:
    """Write the table of the finished runs, if there are any."""
    from util.report.table import as_csv, as_markdown
    from util.sweep.table import sweep_rows

    if not runs:
        return
    folder, folds = Path(spec.out), spec.folds
    rows = sweep_rows(runs, folds, next(iter(spec.settings)))
    log.info(as_markdown(rows, folds))
    for suffix, text in (("md", as_markdown(rows, folds)), ("csv", as_csv(rows, folds))):
        atomic_write(folder / f"sweep.{suffix}", text.encode())
    log.info("written: %s/sweep.md, sweep.csv", folder)


def _slurm_options(spec: Sweep, args: argparse.Namespace) -> SlurmOptions:
    """Return the options of the file, with those of the command line over them."""
    options = validated(SlurmOptions, spec.slurm, f"{args.sweep}: slurm")
    words: dict[str, Any] = {}
    for word in args.slurm or []:
        name, equals, text = word.partition("=")
        if not equals:
            raise UserError(f"command line: --slurm: {word!r} is no option; write KEY=VALUE")
        words[name] = int(text) if text.isdecimal() else text
    return validated(SlurmOptions, options.model_dump() | words, "command line: --slurm")


def _pool(spec: Sweep, args: argparse.Namespace, options: SlurmOptions) -> "Pool":
    from util.runtime.distributed import check_gpus
    from util.sweep.pools import Local, Slurm

    if args.slurm is not None:
        return Slurm(options, Path(spec.out, "slurm"), args.jobs or sys.maxsize)
    if args.gpus:
        check_gpus(args.gpus)
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = visible.split(",") if visible else [str(n) for n in range(args.gpus)]
        return Local(devices[: args.gpus], max(1, cores() // args.gpus))
    jobs = args.jobs or cores()
    return Local([""] * jobs, max(1, cores() // jobs))


if __name__ == "__main__":
    main(sweep)
