"""Makes a small data set to try everything on, in PASCAL VOC's layout.

    python -m util.data.demo --out data/demo

draws 1,000 training and 300 validation pictures of twenty kinds of object (shape and texture tell
them apart, colour hardly), with masks, some 30 MB in all. They stand for VOC's twenty classes, so
its folds and configs work with `Data.data_root=data/demo/VOCdevkit2012/VOC2012`. The same seed
gives the same bytes; a run that was cut off goes on where it was, a finished one is left alone.
"""

from pathlib import Path

from util.data.demo.make import make_demo
from util.runtime.cli import Parser, main
from util.runtime.errors import UserError


def draw_demo(arguments: list[str] | None = None) -> None:
    """Runs the command line.

    Raises:
        UserError: for a user's mistake, in one line.
    """
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to fill")
    parser.add_argument(
        "--images", type=int, default=1000, metavar="N", help="training pictures (1000)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the drawing (0)")
    args = parser.parse_args(arguments)
    try:
        made = make_demo(args.out, args.images, args.seed)
    except OSError as error:
        raise UserError(
            f"{error.filename}: {error.strerror}; make room, or give another --out"
        ) from None
    print(f"{args.out}: {'made' if made else 'complete, left as it is'}")


if __name__ == "__main__":
    main(draw_demo)
