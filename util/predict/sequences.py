"""Segment the frames of sequences by their first one, as in one-shot video segmentation.

    python -m util.predict.sequences DAVIS --out davis.json
    python -m util.predict.sequences DAVIS --checkpoint exp/pascal/run/best.pth --out davis.json

DAVIS holds JPEGImages/SEQUENCE/FRAME.jpg and Annotations/SEQUENCE/FRAME.png, perhaps one folder
deeper, as DAVIS 2016 does. The first frame and its label are the support, every other frame is a
query. J is the IoU of a frame, averaged over frames, then over sequences. Beside it stand the
prior at its best threshold, labels that are only a box or a point, and the score that remains if
the support shows the object of another sequence. All objects of a mask count as one. (DAVIS itself
leaves out the last frame, too.)
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from util.data.image_io import read_label, resize_label
from util.data.weak import annotate
from util.predict.command import add_model_arguments, check_model_arguments
from util.predict.example import Example
from util.runtime.cli import Parser, main
from util.runtime.errors import UserError
from util.runtime.files import Outputs
from util.runtime.log import log
from util.runtime.progress import bar

if TYPE_CHECKING:  # torch takes seconds to load, `--help` needs none
    from util.predict.predictor import Predictor

OTHER = "other object"
LABELS = {"mask": "mask", "box": "bbox", "point": "point", OTHER: "mask"}
"""The label of a first frame -> its kind in `util.data.weak`.

The last is the mask of another first frame: of the sequence that is half the list away.
"""

THRESHOLDS = np.arange(0.05, 1, 0.05).round(2)  # of the prior


def evaluate() -> None:
    """Run the command line."""
    parser = Parser(__doc__)
    parser.add_argument("data", metavar="DAVIS", type=Path, help="folder of the sequences")
    add_model_arguments(parser)
    parser.add_argument("--out", required=True, metavar="FILE", type=Path, help="JSON to write")
    parser.add_overwrite()
    parser.add_overrides()
    args = parser.parse_intermixed_args()  # overrides may stand after options
    check_model_arguments(args)
    sequences = find_sequences(args.data)
    outputs = Outputs(args.out.parent, "sequences", "--out", args.overwrite)
    frames = [path for each in sequences.values() for frame in each for path in frame]
    outputs.claim([args.out.name], [args.checkpoint, *frames])
    from util.predict.predictor import Predictor

    predictor = Predictor.from_checkpoint(args.checkpoint, args.device, args.overrides)
    count = sum(map(len, sequences.values())) - len(sequences)
    scores: dict[str, Any] = {"sequences": len(sequences), "frames": count, "size": predictor.size}
    for label in LABELS:
        row = score_sequences(predictor, sequences, label)
        scores[label] = row
        outputs.write(args.out.name, json.dumps(scores, indent=1, allow_nan=False).encode())
        line = f"J {row['final']:.1f}  generator {row['meta']:.1f}  prior {row['prior']:.1f}"
        log.info(f"{label}: {line}")
    log.info(f"written: {args.out}")


def find_sequences(folder: Path) -> dict[str, list[tuple[Path, Path]]]:
    """Return the frames of each sequence in order: pictures with their masks.

    Raises `UserError` if there are not two sequences of two frames, a frame has no mask, or a
    sequence is there twice, as in two resolutions.
    """
    found: dict[str, list[tuple[Path, Path]]] = {}
    places: dict[str, Path] = {}
    for picture in sorted(folder.glob("JPEGImages/**/*.jpg")):
        place = picture.relative_to(folder / "JPEGImages").with_suffix(".png")
        mask = folder / "Annotations" / place
        if not mask.is_file():
            raise UserError(f"{mask}: no such mask of {picture}; fetch the data again")
        name = picture.parent.name
        if (other := places.setdefault(name, picture.parent)) != picture.parent:
            what = f"{picture.parent} and {other} are one sequence"
            raise UserError(f"{what}; move one of the two resolutions to another folder")
        found.setdefault(name, []).append((picture, mask))
    sequences = {name: frames for name, frames in found.items() if len(frames) > 1}
    if len(sequences) < 2:
        what = f"{folder}: holds {len(sequences)} sequences of two frames in JPEGImages/"
        raise UserError(f"{what}; name a folder like that of DAVIS 2016, with at least two")
    return sequences


def score_sequences(
    predictor: "Predictor", sequences: dict[str, list[tuple[Path, Path]]], label: str
) -> dict[str, Any]:
    """Return J for a label of the first frame, one of `LABELS`, in percent; progress is shown.

    It is that of the final mask, of the generator alone (meta), of the prior at its best threshold,
    and the final one of each sequence.
    """
    names = list(sequences)
    shift = len(names) // 2 if label == OTHER else 0
    means: dict[str, np.ndarray] = {}
    with bar(sum(map(len, sequences.values())) - len(names), label) as progress:
        for place, name in enumerate(names):
            support = sequences[names[(place + shift) % len(names)]][0]
            predictor.clear()
            predictor.add_class(name, _first_frame(support, LABELS[label]))
            scores = []
            for frame in sequences[name][1:]:
                scores.append(_frame_scores(predictor, *frame))
                progress.update()
            means[name] = 100 * np.mean(scores, axis=0)
    final, meta, *priors = np.mean(list(means.values()), axis=0).round(2).tolist()
    each = {name: round(float(mean[0]), 1) for name, mean in means.items()}
    return {"final": final, "meta": meta, "prior": max(priors), "sequences": each}


def _first_frame(frame: tuple[Path, Path], kind: str) -> Example:
    picture, mask = frame
    label = annotate(_object(mask), 1, kind, picture.parent.name)
    return Example(picture, mask=label)


def _object(path: Path) -> np.ndarray:
    """Return 1 on the object of a frame, else 0: its mask holds 0 and 255."""
    return (read_label(path) > 0).astype(np.uint8)


def _frame_scores(predictor: "Predictor", picture: Path, mask: Path) -> list[float]:
    """Return the IoU of final mask, generator and prior at each of `THRESHOLDS`, in a frame."""
    stages = predictor.explain(picture)
    target = resize_label(_object(mask), stages.final.shape).astype(bool)
    found = [stages.final == 1, stages.refinements[-1] == 1]
    found += [stages.prior >= threshold for threshold in THRESHOLDS]
    return [_iou(each, target) for each in found]


def _iou(found: np.ndarray, target: np.ndarray) -> float:
    union = np.count_nonzero(found | target)
    return np.count_nonzero(found & target) / union if union else 1.0


if __name__ == "__main__":
    main(evaluate)
