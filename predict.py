"""Segments images by labelled examples: a mask, a box or points on one or more supports.

    python predict.py --checkpoint exp/demo/split0_lite0/best.pth \\
        --support teapot.jpg:teapot.png --query photo.jpg folder/ --out found
    python predict.py --checkpoint best.pth --support cup=a.jpg:box=40,30,200,180 \\
        cup=b.jpg:points=120,80 plate=c.jpg:c.png --query photo.jpg --out found Eval.kshot=ensemble

A support is [NAME=]IMAGE:LABEL, LABEL a PNG mask (0 background, 255 ignored, else the object; with
#5 behind it the value 5 alone is), box=x0,y0,x1,y1[;...] or points=x,y[;...] in pixels; put a word
with a semicolon into quotes. Supports of one NAME make a class. A query is a picture, or a folder
whose pictures are taken. Into OUT go, for each query, masks/QUERY.png (the class's place among the
NAMEs, from 1), overlays/QUERY.png and a line of predictions.jsonl.
"""

import argparse
import json
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TextIO

import numpy as np
from PIL import Image

from model.constants import IGNORE
from util.config.arguments import add_overrides
from util.data.image_io import read_image, read_label, voc_palette
from util.evaluate.visualize import overlay
from util.predict.predictor import Box, Points, Predictor, Result
from util.runtime.cli import Parser, main
from util.runtime.errors import UserError
from util.runtime.files import atomic_write
from util.runtime.parallel import bar

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_NUMBERS = {"box": 4, "points": 2}


def predict() -> None:
    args = arguments()
    out, queries = Path(args.out), find_queries(args.query)
    supports = [parse_support(word) for word in args.support]
    predictor = Predictor.from_checkpoint(args.checkpoint, args.device, args.overrides)
    for name in dict.fromkeys(name for name, _, _ in supports):
        pairs = [(image, label) for other, image, label in supports if other == name]
        predictor.set_support(*map(list, zip(*pairs, strict=True)), name)
    make_folders(out)
    try:
        failed = segment(predictor, queries, out)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror})") from error
    print(f"{len(queries) - len(failed)} images segmented into {out}")
    if failed:
        raise UserError(f"{failed[0]} ({len(failed)} of {len(queries)} queries failed)")


def segment(predictor: Predictor, queries: list[Path], out: Path) -> list[str]:
    """Writes what is found in each query; what is wrong with those that cannot be read."""
    failed: list[str] = []
    with (
        open(out / "predictions.jsonl", "w", encoding="utf-8") as lines,
        bar(len(queries), "segmenting") as progress,
    ):
        for path in queries:
            try:
                image = read_image(path)
            except ValueError as error:  # the others are not lost for one
                failed.append(str(error))
                write_line(lines, {"image": str(path), "error": str(error)})
            else:
                result = predictor.predict(image)
                write_png(out / "masks" / f"{path.stem}.png", result.mask, palette=True)
                write_png(out / "overlays" / f"{path.stem}.png", overlay(image, result.mask))
                write_line(lines, describe(path, result, predictor.names))
            progress.update()
    return failed


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__)
    many = {"nargs": "+", "required": True, "action": "extend"}
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="of train.py")
    parser.add_argument("--support", metavar="[NAME=]IMAGE:LABEL", help="labelled example", **many)
    parser.add_argument("--query", metavar="IMAGE", help="pictures and folders of them", **many)
    parser.add_argument("--out", required=True, metavar="DIR", help="where results go")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:1")
    add_overrides(parser)
    return parser.parse_args()


def parse_support(word: str) -> tuple[str, str, str | np.ndarray | list[Box] | Points]:
    """`[NAME=]IMAGE:LABEL` -> name, image, and mask, boxes or points.

    Raises:
        UserError: it is not of that form, or the class asked for is not in the mask.
    """
    source, colon, label = word.rpartition(":")
    name, equals, image = source.partition("=")
    if not equals or Path(source).is_file():
        name, image = "object", source
    if not (colon and name and image and label):
        raise UserError(f"--support {word}: write [NAME=]IMAGE:LABEL, see predict.py --help")
    file, mark, value = label.rpartition("#")
    if mark and value.isdecimal() and not Path(label).is_file():
        mask = read_label(file)
        if int(value) not in mask[mask != IGNORE]:
            there = ", ".join(map(str, np.unique(mask[mask != IGNORE])))
            raise UserError(f"--support {word}: {file} holds no {value}, only {there}")
        return name, image, np.where(mask == IGNORE, mask, mask == int(value))
    kind, equals, text = label.partition("=")
    if not equals or kind not in _NUMBERS or Path(label).is_file():
        return name, image, label
    parts = [part.split(",") for part in text.split(";")]
    number = re.compile(r"\s*-?\d+(\.\d*)?\s*")
    if not all(len(p) == _NUMBERS[kind] and all(map(number.fullmatch, p)) for p in parts):
        form = "x0,y0,x1,y1" if kind == "box" else "x,y"
        raise UserError(f"--support {word}: write {kind}={form}, more after a semicolon")
    values = [tuple(map(float, part)) for part in parts]
    return name, image, [Box(*v) for v in values] if kind == "box" else Points(values)


def find_queries(words: Iterable[str]) -> list[Path]:
    """Files as they are and the pictures of folders, sorted, without those of their subfolders.

    Raises:
        UserError: no such file, a folder without pictures, or two that would share an output.
    """
    found: dict[str, Path] = {}
    for word in map(Path, words):
        paths = [word]
        if word.is_dir():
            paths = sorted(p for p in word.iterdir() if p.suffix.lower() in SUFFIXES)
            if not paths:
                raise UserError(f"--query {word}: no picture in it ({', '.join(SUFFIXES)})")
        elif not word.is_file():
            raise UserError(f"--query {word}: no such file or folder; check the path")
        for path in paths:
            other = found.setdefault(path.stem, path)
            if other.resolve() != path.resolve():
                raise UserError(
                    f"--query {path} and {other} would be written to the same {path.stem}.png; "
                    "rename one, or run twice"
                )
    return list(found.values())


def make_folders(out: Path) -> None:
    try:
        for folder in ("masks", "overlays"):
            (out / folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "a file is in its place" if isinstance(error, FileExistsError) else error.strerror
        raise UserError(f"--out {out}: cannot be made a folder ({reason}); name another") from None


def describe(path: Path, result: Result, names: tuple[str, ...]) -> dict:
    """The line of predictions.jsonl: what was found of each class."""
    classes = {}
    for index, (name, scores) in enumerate(zip(names, result.scores, strict=True), 1):
        ys, xs = np.nonzero(result.mask == index)
        found = {"index": index, "pixels": len(xs), "box": None, "score": None}
        if len(xs):
            box = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            found |= {"box": [int(v) for v in box], "score": float(scores[ys, xs].mean())}
        classes[name] = found
    height, width = result.mask.shape
    files = {folder: f"{folder}s/{path.stem}.png" for folder in ("mask", "overlay")}
    return {"image": str(path), "width": width, "height": height, **files, "classes": classes}


def write_line(lines: TextIO, content: dict) -> None:
    """Writes a line at once, so that an interrupted run keeps what it has done."""
    lines.write(json.dumps(content) + "\n")
    lines.flush()


def write_png(path: Path, pixels: np.ndarray, *, palette: bool = False) -> None:
    """Writes a picture, or an index mask in VOC's palette; whole or not at all."""
    picture = Image.fromarray(pixels)
    if palette:
        picture.putpalette(voc_palette())
    atomic_write(path, partial(picture.save, format="PNG"), durable=False)


if __name__ == "__main__":
    main(predict)
