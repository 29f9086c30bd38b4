"""Draw a small data set in PASCAL VOC's layout, to try everything on.

    python -m util.data.demo --out data/demo

It has 1,000 training and 300 validation images with masks, some 30 MB. Objects are of twenty kinds,
which differ in shape and texture, and hardly in color. They take the place of VOC's twenty classes,
so VOC's folds and configs work with `Data.data_root=data/demo/VOCdevkit2012/VOC2012`. The same seed
gives the same bytes. An interrupted run continues when repeated; a finished data set is left as is.
"""

from pathlib import Path

from util.data import demo
from util.runtime.cli import Parser, main
from util.runtime.files import unwritable
from util.runtime.log import log


def run_demo(arguments: list[str] | None = None) -> None:
    """Run the command line: these words, or those of this process."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="the folder to create")
    add("--images", type=int, default=1000, metavar="N", help="training images; default: 1000")
    add("--seed", type=int, default=0, metavar="S", help="of the random drawing; default: 0")
    args = parser.parse_args(arguments)
    try:
        created = demo.make_demo(args.out, args.images, args.seed)
    except OSError as error:
        raise unwritable(error.filename or args.out, error, "choose another --out") from None
    log.info("%s: %s", args.out, "created" if created else "complete, nothing to do")


if __name__ == "__main__":
    main(run_demo)
