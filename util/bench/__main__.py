"""What the system costs: counted operations, time and memory, one row a kind of work.

    python -m util.bench --plain                  # 1- and 5-shot, 473 and 633 px, all four works
    python -m util.bench --size 473 --shot 1 --work warm G D --plain --repeat 5
    python -m util.bench --count                  # operations only, in seconds
    python -m util.bench Speed.tf32=true Train.precision=bf16 --gpus 1 --size 473

Works: `cold` evaluates an episode from its images, `warm` from what the encoder saw in them; `G`
and `D` are training steps on a batch of two, encoding included. `--plain` puts the plain form of
the same model (model/amformer/plain.py) beside each number. Images are noise; a support's object covers a
fifth of it (PASCAL's validation lists: 0.13 to 0.22 on average); every key of the mining attention
is kept, which is the most it can cost.
"""

import argparse

from util import ROOT
from util.config.arguments import add_overrides
from util.runtime.cli import Parser, main

CONFIG = ROOT / "config/pascal/pascal_split0_resnet50.yaml"
WORKS = ("cold", "warm", "G", "D")


def bench() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--config", default=CONFIG, metavar="FILE", help="a YAML file of config/")
    parser.add_argument(
        "--size", type=int, nargs="+", default=[473, 633], metavar="PX", help="sides (473 633)"
    )
    parser.add_argument(
        "--shot", type=int, nargs="+", default=[1, 5], metavar="K", help="supports (1 5)"
    )
    parser.add_argument(
        "--work", nargs="+", default=list(WORKS), choices=WORKS, help="what is done (all four)"
    )
    parser.add_argument("--plain", action="store_true", help="the plain formulation beside it")
    parser.add_argument("--count", action="store_true", help="operations only")
    parser.add_argument(
        "--repeat", type=int, default=3, metavar="N", help="runs of which the median counts (3)"
    )
    parser.add_argument("--gpus", type=int, default=0, choices=(0, 1), help="0: the CPU")
    parser.add_argument("--row", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    add_overrides(parser)
    args = parser.parse_intermixed_args()

    from util.bench import measure  # torch, which takes seconds to import: not for --help

    measure.row(args) if args.row else measure.table(args)


if __name__ == "__main__":
    main(bench)
