"""Segment photographs with the weights that come with this repository; write one picture.

    python -m util.predict.show --out try.png

The support is one cheetah, marked by a box; the queries are the other photographs of
`util.predict.examples`. Each row shows the support, the query, the training-free prior and the
final mask in red.
"""

import shlex
from dataclasses import astuple
from pathlib import Path

import cv2
import numpy as np

from util.data.image_io import read_image
from util.predict.command import add_model_arguments, check_model_arguments
from util.predict.example import Example
from util.predict.examples import BOXES, photograph
from util.runtime.cli import Parser, main
from util.runtime.files import Outputs
from util.runtime.log import log

SUPPORT = "cheetah1"
RED = (255, 59, 48)


def show() -> None:
    """Run the command line."""
    parser = Parser(__doc__)
    add_model_arguments(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="PNG to write")
    parser.add_overwrite()
    args = parser.parse_args()
    check_model_arguments(args)
    outputs = Outputs(args.out.parent, "show", "--out", args.overwrite)
    outputs.claim([args.out.name], [args.checkpoint, *map(photograph, BOXES)])
    from util.evaluate.visualize import draw_side_by_side, encode_strips, heatmap, overlay
    from util.predict.predictor import Predictor

    predictor = Predictor.from_checkpoint(args.checkpoint, args.device)
    box = BOXES[SUPPORT]
    predictor.add_class("cheetah", Example(photograph(SUPPORT), box=box))
    support, corners = read_image(photograph(SUPPORT)), [int(side) for side in astuple(box)]
    cv2.rectangle(support, corners[:2], corners[2:], RED, 2)
    strips: list[np.ndarray] = []
    for name in (name for name in BOXES if name != SUPPORT):
        query = read_image(photograph(name))
        stages = predictor.explain(query)
        here = " (not here)" if stages.result.here == (False,) else ""
        pictures = {"support": support, f"query: {name}": query, "prior": heatmap(stages.prior)}
        pictures[f"final{here}"] = overlay(query, stages.final)
        strips.append(draw_side_by_side(pictures))
    outputs.write(args.out.name, encode_strips(strips))
    example = "photo.jpg:box=X0,Y0,X1,Y1 --query others/ --out found"
    log.info(f"look at {shlex.quote(str(args.out))}. With photographs of yours:")
    log.info(f"  .venv/bin/python predict.py --support {example}")


if __name__ == "__main__":
    main(show)
