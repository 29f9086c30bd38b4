"""Measure what the system costs: counted operations, time and memory, one row per kind of work.

    python -m util.bench --plain                  # 1- and 5-shot, 473 and 633 px, all kinds of work
    python -m util.bench --size 473 --shot 1 --work warm G D --plain --repeat 5
    python -m util.bench --count                  # operations only, nothing is timed
    python -m util.bench --launches --size 473    # what a GPU waits for, counted without one
    python -m util.bench Speed.tf32=true Train.precision=bf16 --gpus 1 --size 473

`cold` evaluates an episode from its images, `warm` from the stored features of the encoder. `G` and
`D` are training steps of the generator and the discriminator on a batch of two, encoder included;
of another system than AMFormer, `G` is its training step, and there is no `D`.
`--plain` also measures the plain formulation of the same model (model/amformer/plain.py). Images
are noise. The object covers a fifth of a support (0.13 to 0.22 on average in PASCAL's validation
lists). The mining attention keeps every key, which is the most it can cost.
"""

import argparse

from util import ROOT
from util.runtime.cli import Parser, main
from util.runtime.errors import UserError

CONFIG = ROOT / "config/pascal/pascal_split0_resnet50.yaml"
WORKS = ("cold", "warm", "G", "D")


def bench() -> None:
    """Run the command."""
    parser = Parser(__doc__)
    parser.add_argument("--config", default=CONFIG, metavar="FILE", help="a YAML file of config/")
    parser.add_argument(
        "--size", type=int, nargs="+", default=[473, 633], metavar="PX",
        help="sides of the images (default: 473 633)",
    )  # fmt: skip
    parser.add_argument(
        "--shot", type=int, nargs="+", default=[1, 5], metavar="K",
        help="numbers of supports (default: 1 5)",
    )  # fmt: skip
    parser.add_argument(
        "--work", nargs="+", default=list(WORKS), choices=WORKS,
        help="kinds of work (default: all four)",
    )  # fmt: skip
    parser.add_argument("--plain", action="store_true", help="also the plain formulation")
    parser.add_argument("--count", action="store_true", help="operations only")
    parser.add_argument(
        "--launches", action="store_true",
        help="kernels that a GPU is told to run, and values read back from it; no GPU is needed",
    )  # fmt: skip
    parser.add_argument(
        "--repeat", type=int, default=3, metavar="N",
        help="runs of each work; the median time counts (default: 3)",
    )  # fmt: skip
    parser.add_argument("--gpus", type=int, default=0, choices=(0, 1), help="0 (default): the CPU")
    parser.add_argument("--row", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--graphs", action="store_true", help=argparse.SUPPRESS)
    parser.add_overrides()
    args = parser.parse_intermixed_args()
    if args.repeat < 1:
        raise UserError(f"--repeat {args.repeat}: give 1 or more")
    if args.launches and (args.count or args.plain or args.gpus):
        raise UserError("--launches counts alone: leave out --count, --plain and --gpus")

    from util.bench import measure  # torch, which takes seconds to import: not for --help

    measure.row(args) if args.row else measure.table(args)


if __name__ == "__main__":
    main(bench)
