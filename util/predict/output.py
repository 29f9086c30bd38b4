"""The files that predict.py and the page write: masks, overlays, lines, and what sums them up."""

import errno
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from util.data.image_io import UnreadableFile, read_reduced, resize_label, voc_palette
from util.evaluate.finite import NotFinite
from util.evaluate.visualize import overlay
from util.predict.clip import REMEDY, Clip, is_clip, written_clip
from util.predict.coco import coco_file, segment_mask
from util.predict.command import COCO, LINES, REVIEW, Query, source_of
from util.predict.predictor import Predictor, Result
from util.predict.review import doubt_order, review_page
from util.runtime.files import Outputs, unwritable
from util.runtime.log import log
from util.runtime.progress import bar

PREVIEW_SIDE = 480  # pixels of the longer side of a picture of the review
Line = dict[str, Any]
Shape = tuple[int, int]
Show = Callable[[np.ndarray], None]
Segment = Callable[..., Line]


def write_predictions(
    predictor: Predictor,
    queries: Mapping[Path, Sequence[Query]],
    outputs: Outputs,
    *,
    format: str = "png",
    drop_absent: bool = False,
) -> list[str]:
    """Segment images and clips; write the files of `Query` and what `summed_up` adds.

    `queries` are those of each image or clip; no two of these share a stem, and `outputs` has
    claimed the files. Of a query in which a class is not there, a line is logged, too. `format` is
    one of `FORMATS`, `drop_absent` that of `Predictor.predict`. Returns an error message for each
    image or clip that could not be read or segmented, which its line holds, too. Raises `UserError`
    if a file cannot be written.
    """
    errors: list[str] = []
    count = sum(map(len, queries.values()))
    try:
        with (
            summed_up(outputs, {path.stem for path in queries}) as add,
            bar(count, "segmenting") as progress,
        ):

            def segment(
                query: Query, image: np.ndarray, shape: Shape, show: Show | None = None
            ) -> Line:
                result, names = predictor.predict(image, drop_absent=drop_absent), predictor.names
                line = write_result(outputs, query, image, shape, result, names, format, show)
                add(line)
                progress.update()
                return line

            for path, own in queries.items():
                try:
                    if is_clip(path):
                        _segment_clip(path, own, outputs, segment)
                    else:
                        _segment_image(path, own[0], segment)
                except (UnreadableFile, NotFinite, OSError) as error:  # the others go on
                    if isinstance(error, OSError) and error.errno != errno.ENAMETOOLONG:
                        raise
                    message = str(error)
                    if isinstance(error, OSError):
                        message = (
                            f"{path}: its name is too long for those of its results; rename it"
                        )
                    elif isinstance(error, NotFinite):
                        message = f"{path}: {error}"
                    errors.append(message)
                    add({"image": str(path), "error": message})
                    progress.update()
    except OSError as error:
        raise unwritable(f"--out {outputs.folder}", error, "name another folder") from error
    return errors


def _segment_image(path: Path, query: Query, segment: Segment) -> None:
    if absent := _absent(segment(query, *read_reduced(path))):
        log.info(f"{path}: not here: {', '.join(absent)}")


def _segment_clip(path: Path, queries: Sequence[Query], outputs: Outputs, segment: Segment) -> None:
    clip, done, absent = Clip(path), 0, Counter[str]()
    overlays = queries[0].files(with_coco=False)["overlay"]
    with written_clip(outputs, overlays, clip.fps) as show:
        for query, frame in zip(queries, clip, strict=False):
            absent.update(_absent(segment(query, frame, frame.shape[:2], show)))
            done += 1
    for name, count in absent.items():
        log.info(f"{path}: not here in {count} of {done} frames: {name}")
    if done < len(queries):
        what = f"only {done} of {len(queries)} frames can be read, and the others are missing"
    elif clip.has_more():
        what = f"holds more frames than the {done} that its header names, and these are missing"
    else:
        return
    raise UnreadableFile(f"{path}: {what}; {REMEDY}")


@contextmanager
def summed_up(outputs: Outputs, stems: Iterable[str]) -> Iterator[Callable[[Line], None]]:
    """Yield a function that adds a line to `predictions.jsonl`; at the end, sum the lines up.

    `review.html` shows them all; `coco.json` holds those with a picture. They are also written if
    the block is interrupted. Lines of an earlier run stay, but not those of queries of these stems.
    """
    lines = list(_lines_of_others(outputs.folder / LINES, set(stems)))
    with outputs.appending(LINES, b"".join(map(_encode, lines))) as append:

        def add(line: Line) -> None:
            lines.append(line)
            append(_encode(line))

        try:
            yield add
        finally:
            outputs.write(REVIEW, review_page(lines))
            if any("picture" in line for line in lines) or (outputs.folder / COCO).exists():
                outputs.write(COCO, coco_file(lines))


def _lines_of_others(path: Path, stems: set[str]) -> Iterator[Line]:
    """Yield the lines of an earlier run about queries whose files this run does not replace."""
    for text in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
            is_other = source_of(line).stem not in stems
            if "error" not in line:
                doubt_order(line), line["overlay"]  # what the review shows of it
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            # An interrupted run left it unfinished, or somebody else wrote it.
            log.warning("%s: left out a line that this command did not write", path)
            continue
        if is_other:
            yield line


def _encode(line: Line) -> bytes:
    return f"{json.dumps(line, allow_nan=False)}\n".encode()


def write_result(
    outputs: Outputs,
    query: Query,
    image: np.ndarray,
    shape: Shape,
    result: Result,
    names: tuple[str, ...],
    format: str,
    show: Show | None = None,
) -> Line:
    """Write the files of a query and return its line; `show` takes the overlay of a frame.

    `result` is that of `image`, over which its mask is drawn. `shape` is the query's own height and
    width: the mask that is written has it, and so has all that the line tells.
    """
    with_coco = format != "png"
    files, drawn = query.files(with_coco), overlay(image, result.mask)
    mask = resize_label(result.mask, shape)
    indexed = Image.fromarray(mask)
    indexed.putpalette(voc_palette())
    contents = {"mask": _png(indexed), "preview": encode_jpeg(reduce_size(drawn, PREVIEW_SIDE), 85)}
    if show:
        show(drawn)
    else:
        contents["overlay"] = _png(Image.fromarray(drawn))
    if "frame" in files:
        contents["frame"] = encode_jpeg(image, 95)
    for kind, content in contents.items():
        outputs.write(files[kind], content, durable=False)
    height, width = shape
    classes = _describe_classes(result, mask, names)
    line = {"image": query.name, "width": width, "height": height, **files, "classes": classes}
    if with_coco:
        own = os.path.abspath(outputs.folder / files["frame"]) if "frame" in files else None
        line["picture"] = own or query.picture
        for found in classes.values():
            is_class = mask == found["index"]
            found["segments"] = segment_mask(is_class, polygons=format == "coco-polygons")
    return line


def _describe_classes(
    result: Result, mask: np.ndarray, names: tuple[str, ...]
) -> dict[str, dict[str, Any]]:
    """Return index, pixels and bounding box in `mask`, mean score and presence of each class."""
    classes: dict[str, dict[str, Any]] = {}
    small = resize_label(result.mask, result.scores.shape[1:])
    here = result.here or [None] * len(names)
    for index, (name, scores) in enumerate(zip(names, result.scores, strict=True), 1):
        is_class = mask == index
        pixels = int(np.count_nonzero(is_class))
        found: dict[str, Any] = {"index": index, "pixels": pixels, "box": None, "score": None}
        if pixels:
            xs, ys = (np.flatnonzero(is_class.any(axis)) for axis in (0, 1))
            box = (xs[0], ys[0], xs[-1] + 1, ys[-1] + 1)
            found |= {"box": [int(v) for v in box], "score": float(scores[small == index].mean())}
        found |= {"presence": result.presence[index - 1], "here": here[index - 1]}
        classes[name] = found
    return classes


def _absent(line: Line) -> list[str]:
    return [name for name, found in line["classes"].items() if found["here"] is False]


def reduce_size(picture: np.ndarray, side: int, interpolation: int = cv2.INTER_AREA) -> np.ndarray:
    """Return a picture or mask ([H,W] or [H,W,C]) with at most `side` pixels on its longer side."""
    factor = side / max(picture.shape[:2])
    if factor >= 1:
        return picture
    size = [max(1, round(length * factor)) for length in picture.shape[1::-1]]
    return cv2.resize(picture, size, interpolation=interpolation)


def encode_jpeg(picture: np.ndarray, quality: int) -> bytes:
    """Return a picture (uint8 [H,W,3], RGB) as a JPEG; the quality is 0 to 100."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    return cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)[1].tobytes()


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
