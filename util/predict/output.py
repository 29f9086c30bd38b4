"""The files that predict.py writes: masks, overlays and `predictions.jsonl`."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from util.data.image_io import UnreadableFile, read_image, voc_palette
from util.evaluate.visualize import overlay
from util.predict.predictor import Predictor, Result
from util.runtime.errors import UserError
from util.runtime.files import atomic_write
from util.runtime.log import log
from util.runtime.progress import bar


def write_predictions(
    predictor: Predictor, queries: list[Path], out: Path, *, drop_absent: bool = False
) -> list[str]:
    """Segment the queries; write a mask, an overlay and a line of `predictions.jsonl` for each.

    Of a query in which a class is not there, a line is logged, too. `drop_absent` is that of
    `Predictor.predict`. No two queries share a stem. The folder `out` has `masks` and `overlays` in
    it. Returns an error message for each query that could not be read, which its line holds, too.
    Raises `UserError` if a file cannot be written.
    """
    errors: list[str] = []
    try:
        with (
            open(out / "predictions.jsonl", "w", encoding="utf-8") as lines,
            bar(len(queries), "segmenting") as progress,
        ):
            for path in queries:
                try:
                    line = _write_prediction(predictor, path, out, drop_absent)
                except UnreadableFile as error:  # the other queries are still segmented
                    errors.append(str(error))
                    line = {"image": str(path), "error": str(error)}
                lines.write(json.dumps(line) + "\n")
                lines.flush()  # an interrupted run keeps its finished lines
                progress.update()
    except OSError as error:
        what = f"--out {out}: cannot be written ({error.strerror})"
        raise UserError(f"{what}; make room, or name another folder") from error
    return errors


def _write_prediction(
    predictor: Predictor, path: Path, out: Path, drop_absent: bool
) -> dict[str, Any]:
    """Write the mask and the overlay of a query; return its line of `predictions.jsonl`."""
    image = read_image(path)
    result = predictor.predict(image, drop_absent=drop_absent)
    mask = Image.fromarray(result.mask)
    mask.putpalette(voc_palette())
    files = {folder: f"{folder}s/{path.stem}.png" for folder in ("mask", "overlay")}
    _write_png(out / files["mask"], mask)
    _write_png(out / files["overlay"], Image.fromarray(overlay(image, result.mask)))
    height, width = result.mask.shape
    classes = _describe_classes(result, predictor.names)
    if absent := [name for name, found in classes.items() if found["here"] is False]:
        log.info(f"{path}: not here: {', '.join(absent)}")
    return {"image": str(path), "width": width, "height": height, **files, "classes": classes}


def _describe_classes(result: Result, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Return index, pixels, bounding box, mean score and presence of each class."""
    classes = {}
    here = result.here or [None] * len(names)
    for index, (name, scores) in enumerate(zip(names, result.scores, strict=True), 1):
        ys, xs = np.nonzero(result.mask == index)
        found: dict[str, Any] = {"index": index, "pixels": len(xs), "box": None, "score": None}
        if len(xs):
            box = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            found |= {"box": [int(v) for v in box], "score": float(scores[ys, xs].mean())}
        found |= {"presence": result.presence[index - 1], "here": here[index - 1]}
        classes[name] = found
    return classes


def _write_png(path: Path, picture: Image.Image) -> None:
    atomic_write(path, partial(picture.save, format="PNG"), durable=False)
