"""The files that predict.py writes: masks, overlays and `predictions.jsonl`."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from util.data.image_io import UnreadableFile, read_reduced, resize_label, voc_palette
from util.evaluate.visualize import overlay
from util.predict.command import LINES, prediction_files
from util.predict.predictor import Predictor, Result
from util.runtime.files import Outputs, unwritable
from util.runtime.log import log
from util.runtime.progress import bar


def write_predictions(
    predictor: Predictor, queries: list[Path], outputs: Outputs, *, drop_absent: bool = False
) -> list[str]:
    """Segment the queries; write a mask, an overlay and a line of `predictions.jsonl` for each.

    Of a query in which a class is not there, a line is logged, too. `drop_absent` is that of
    `Predictor.predict`. No two queries share a stem, and `outputs` has claimed their files. The
    lines of other queries, of earlier runs, stay. Returns an error message for each query that
    could not be read, which its line holds, too. Raises `UserError` if a file cannot be written.
    """
    errors: list[str] = []
    try:
        earlier = _lines_of_others(outputs.folder / LINES, queries)
        with (
            outputs.appending(LINES, earlier) as append,
            bar(len(queries), "segmenting") as progress,
        ):
            for path in queries:
                try:
                    line = _write_prediction(predictor, path, outputs, drop_absent)
                except UnreadableFile as error:  # the other queries are still segmented
                    errors.append(str(error))
                    line = {"image": str(path), "error": str(error)}
                append(f"{json.dumps(line)}\n".encode())
                progress.update()
    except OSError as error:
        raise unwritable(f"--out {outputs.folder}", error, "name another folder") from error
    return errors


def _lines_of_others(path: Path, queries: list[Path]) -> bytes:
    """Return the lines of an earlier run about queries whose files this run does not replace."""
    stems = {query.stem for query in queries}
    kept = []
    for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else []:
        try:
            stem = Path(json.loads(line)["image"]).stem
        except (ValueError, KeyError, TypeError):  # a line that an interrupted run left unfinished
            continue
        if stem not in stems:
            kept.append(line)
    return b"".join(kept)


def _write_prediction(
    predictor: Predictor, path: Path, outputs: Outputs, drop_absent: bool
) -> dict[str, Any]:
    """Write the mask and the overlay of a query; return its line of `predictions.jsonl`."""
    image, shape = read_reduced(path)
    result = predictor.predict(image, drop_absent=drop_absent)
    drawn = Image.fromarray(overlay(image, result.mask))
    result = replace(result, mask=resize_label(result.mask, shape))
    mask = Image.fromarray(result.mask)
    mask.putpalette(voc_palette())
    files = prediction_files(path)
    outputs.write(files["mask"], _png(mask), durable=False)
    outputs.write(files["overlay"], _png(drawn), durable=False)
    height, width = result.mask.shape
    classes = _describe_classes(result, predictor.names)
    if absent := [name for name, found in classes.items() if found["here"] is False]:
        log.info(f"{path}: not here: {', '.join(absent)}")
    return {"image": str(path), "width": width, "height": height, **files, "classes": classes}


def _describe_classes(result: Result, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Return index, pixels, bounding box, mean score and presence of each class."""
    classes: dict[str, dict[str, Any]] = {}
    small = resize_label(result.mask, result.scores.shape[1:])
    here = result.here or [None] * len(names)
    for index, (name, scores) in enumerate(zip(names, result.scores, strict=True), 1):
        is_class = result.mask == index
        pixels = int(np.count_nonzero(is_class))
        found: dict[str, Any] = {"index": index, "pixels": pixels, "box": None, "score": None}
        if pixels:
            xs, ys = (np.flatnonzero(is_class.any(axis)) for axis in (0, 1))
            box = (xs[0], ys[0], xs[-1] + 1, ys[-1] + 1)
            found |= {"box": [int(v) for v in box], "score": float(scores[small == index].mean())}
        found |= {"presence": result.presence[index - 1], "here": here[index - 1]}
        classes[name] = found
    return classes


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
