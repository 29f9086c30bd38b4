"""Segment the frames of sequences by their first one, as in one-shot video segmentation.

    python -m util.predict.sequences DAVIS --out davis.json
    python -m util.predict.sequences DAVIS --checkpoint exp/pascal/run/best.pth --out davis.json

DAVIS holds JPEGImages/SEQUENCE/FRAME.jpg and Annotations/SEQUENCE/FRAME.png, perhaps one folder
deeper, as DAVIS 2016 does. The first frame and its label are the support, every other frame is a
query. J is the IoU of a frame, averaged over frames, then over sequences. Beside it stand the
prior at its best threshold, labels that are only a box or a point, and the score that remains if
the support shows the object of another sequence.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from util.data.image_io import read_image, read_label
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

LABELS = {"mask": "mask", "box": "bbox", "point": "point"}
"""The label of a first frame -> its kind in `util.data.weak`."""

THRESHOLDS = np.arange(0.05, 1, 0.05).round(2)  # of the prior


def evaluate() -> None:
    """Run the command line."""
    parser = Parser(__doc__)
    parser.add_argument("data", metavar="DAVIS", type=Path, help="folder of the sequences")
    add_model_arguments(parser)
    parser.add_argument("--out", required=True, metavar="FILE", type=Path, help="JSON to write")
    parser.add_overwrite()
    parser.add_overrides()
    args = parser.parse_args()
    check_model_arguments(args)
    sequences = find_sequences(args.data)
    outputs = Outputs(args.out.parent, "sequences", "--out", args.overwrite)
    outputs.claim([args.out.name], [args.checkpoint])
    from util.predict.predictor import Predictor

    predictor = Predictor.from_checkpoint(args.checkpoint, args.device, args.overrides)
    scores = score_sequences(predictor, sequences)
    outputs.write(args.out.name, json.dumps(scores, indent=1).encode())
    for name, row in scores["labels"].items():
        log.info(
            f"{name}: J {row['final']:.1f}  generator {row['meta']:.1f}  prior {row['prior']:.1f}"
        )
    log.info(f"written: {args.out}")


def find_sequences(folder: Path) -> dict[str, list[tuple[Path, Path]]]:
    """Return the frames of each sequence in order: pictures with their masks.

    Raises `UserError` if there is no sequence of two frames, or a frame has no mask.
    """
    found: dict[str, list[tuple[Path, Path]]] = {}
    for picture in sorted(folder.glob("JPEGImages/**/*.jpg")):
        place = picture.relative_to(folder / "JPEGImages").with_suffix(".png")
        mask = folder / "Annotations" / place
        if not mask.is_file():
            raise UserError(f"{mask}: no such mask of {picture}; fetch the data again")
        found.setdefault(picture.parent.name, []).append((picture, mask))
    sequences = {name: frames for name, frames in found.items() if len(frames) > 1}
    if len(sequences) < 2:
        what = f"{folder}: holds {len(sequences)} sequences of two frames in JPEGImages/"
        raise UserError(f"{what}; name a folder like that of DAVIS 2016, with at least two")
    return sequences


def score_sequences(
    predictor: "Predictor", sequences: dict[str, list[tuple[Path, Path]]]
) -> dict[str, Any]:
    """Return J of each label of the first frame, in percent; progress is shown.

    The names in `labels` are those of `LABELS`, and `other object`: the mask of the first frame of
    the third next sequence. Each has J of the final mask, of the generator alone (meta) and of the
    prior at its best threshold, and the final J of each sequence.
    """
    names = list(sequences)
    frames = sum(len(each) - 1 for each in sequences.values())
    rows: dict[str, Any] = {}
    progress = bar((len(LABELS) + 1) * frames, "segmenting")
    for label in (*LABELS, "other object"):
        by_sequence: dict[str, np.ndarray] = {}
        of_prior: list[np.ndarray] = []
        for place, name in enumerate(names):
            other = label == "other object"
            source = names[(place + 3) % len(names)] if other else name
            predictor.clear()
            predictor.add_class(name, _first_frame(sequences[source][0], LABELS.get(label, "mask")))
            scores = np.array(list(_frame_scores(predictor, sequences[name][1:])))
            by_sequence[name] = scores[:, :2].mean(0)
            of_prior.append(scores[:, 2:].mean(0))
            progress.update(len(scores))
        final, meta = 100 * np.mean(list(by_sequence.values()), axis=0)
        prior = 100 * np.mean(of_prior, axis=0).max()
        each = {name: round(100 * j[0], 1) for name, j in by_sequence.items()}
        numbers = {"final": final, "meta": meta, "prior": prior}
        rows[label] = {**{k: round(float(v), 2) for k, v in numbers.items()}, "sequences": each}
    progress.close()
    return {"sequences": len(names), "frames": frames, "size": predictor.size, "labels": rows}


def _first_frame(frame: tuple[Path, Path], kind: str) -> Example:
    picture, mask = frame
    label = annotate(_object(mask), 1, kind, picture.parent.name)
    return Example(picture, mask=label)


def _object(path: Path) -> np.ndarray:
    """Return 1 on the object of a frame, else 0: its mask holds 0 and 255."""
    return (read_label(path) > 0).astype(np.uint8)


def _frame_scores(
    predictor: "Predictor", frames: list[tuple[Path, Path]]
) -> Iterator[tuple[float, ...]]:
    """Yield the IoU of final mask, generator and prior at each of `THRESHOLDS`, frame by frame."""
    for picture, mask in frames:
        target = _object(mask).astype(bool)
        stages = predictor.explain(read_image(picture))
        found = [stages.final == 1, stages.refinements[-1] == 1]
        found += [stages.prior >= threshold for threshold in THRESHOLDS]
        yield tuple(_iou(each, target) for each in found)


def _iou(found: np.ndarray, target: np.ndarray) -> float:
    union = np.count_nonzero(found | target)
    return np.count_nonzero(found & target) / union if union else 1.0


if __name__ == "__main__":
    main(evaluate)
