r"""Segment images by labeled examples: a mask, a box or points on one or more supports.

    python predict.py --checkpoint exp/demo/split0_lite0/best.pth \
        --support teapot.jpg:teapot.png --query photo.jpg folder/ --out found
    python predict.py --checkpoint best.pth --support cup=a.jpg:box=40,30,200,180 \
        cup=b.jpg:points=120,80 plate=c.jpg:c.png --query photo.jpg --out found Eval.kshot=ensemble

A support is [NAME=]IMAGE:LABEL. Supports with the same NAME are the shots of one class. LABEL is
- a PNG mask: 0 background, 255 ignored, any other value the object; MASK.png#5: only the value 5,
- box=x0,y0,x1,y1[;...] or points=x,y[;...], in pixels; quote a word that holds a semicolon.
IMAGE may be a frame of a clip: clip.mp4@0 is the first.

A query is an image, a folder of images, or a clip. For each query, OUT gets masks/QUERY.png (index
i for the i-th NAME, 0 for background), overlays/QUERY.png and a line of predictions.jsonl; a clip
gives a mask and a line for each frame, and overlays/CLIP.webm. OUT/review.html shows all results,
the doubtful ones first. OUT is a folder of its own: new, empty, or that of an earlier prediction,
to which a further one adds.
"""

from pathlib import Path

from util.predict import command
from util.predict.example import Example
from util.runtime.cli import Parser, main
from util.runtime.errors import refuse
from util.runtime.log import log


def predict() -> None:
    """Read the command line, segment the queries, and write the results."""
    parser = Parser(__doc__)
    command.add_model_arguments(parser)
    parser.add_argument(
        "--support", nargs="+", required=True, action="extend", metavar="[NAME=]IMAGE:LABEL",
        help="labeled examples",
    )  # fmt: skip
    parser.add_argument(
        "--query", nargs="+", required=True, action="extend", metavar="IMAGE",
        help="images, folders of images and clips",
    )  # fmt: skip
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="output folder")
    parser.add_argument(
        "--format", choices=command.FORMATS, default="png",
        help="coco: add coco.json, for labeling tools, with run-length codes; coco-polygons: with "
        "polygons, for tools that read no codes (png)",
    )  # fmt: skip
    parser.add_argument(
        "--drop-absent", action="store_true",
        help="leave classes that are not there out of masks (needs a checkpoint of Eval.absent)",
    )  # fmt: skip
    parser.add_overwrite()
    parser.add_overrides()
    args = parser.parse_args()
    command.check_model_arguments(args)
    paths = command.find_queries(args.query)
    classes: dict[str, list[Example]] = {}
    read = [*paths, args.checkpoint]
    for word in args.support:
        name, example = command.parse_support(word)
        example.load(f"--support {word}")
        classes.setdefault(name, []).append(example)
        read += command.read_files(word, example)
    queries = {path: list(command.queries_of(path)) for path in paths}
    outputs = command.claim_outputs(args.out, args.overwrite, queries, read, args.format)
    # Imported only now: torch takes seconds to load, and the arguments are checked without it.
    from util.predict import Predictor
    from util.predict.output import write_predictions

    predictor = Predictor.from_checkpoint(args.checkpoint, args.device, args.overrides)
    for name, examples in classes.items():
        predictor.add_class(name, examples)
    options = {"format": args.format, "drop_absent": args.drop_absent}
    errors = write_predictions(predictor, queries, outputs, **options)
    log.info(f"{len(queries) - len(errors)} queries segmented into {args.out}")
    refuse("--query", errors, f"{len(errors)} of {len(queries)} queries failed")


if __name__ == "__main__":
    main(predict)
