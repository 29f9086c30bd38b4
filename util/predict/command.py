"""Words of the command lines of predict.py and the page, checked before torch is imported."""

import argparse
import difflib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from model.constants import IGNORE
from util import ROOT
from util.data.image_io import SUFFIXES, UnreadableFile, read_label
from util.data.listing import list_pictures
from util.predict.clip import Clip, is_clip, split_frame
from util.predict.example import Box, Example, Points
from util.runtime.cli import Parser
from util.runtime.errors import UserError, refuse
from util.runtime.files import Outputs
from util.runtime.log import log

PHOTO = ROOT / "weights/amformer_photo.safetensors"
LINES, COCO, REVIEW = "predictions.jsonl", "coco.json", "review.html"
FORMATS = ("png", "coco", "coco-polygons")
DEVICES = "only the CPU and NVIDIA's GPUs are supported; write cpu, cuda or cuda:0"
_NUMBERS = {"box": 4, "points": 2}
_NUMBER = re.compile(r"\s*-?\d+(\.\d*)?\s*")
_SUPPORT = re.compile(r"(.+?):((?:[A-Za-z]:[\\/])?[^:]+)", re.DOTALL)
"""IMAGE:LABEL; each may begin with a drive of Windows, `C:\\`."""


def pretrained_file(name: str) -> Path:
    """Return the file of weights that come with this repository, such as "photo".

    Raises `UserError` if there are none of this name.
    """
    path = PHOTO.with_name(f"amformer_{name}.safetensors")
    if not path.is_file():
        files = PHOTO.parent.glob("amformer_*.safetensors")
        known = ", ".join(sorted(file.stem.removeprefix("amformer_") for file in files))
        raise UserError(f"weights {name!r}: there are none in {path.parent}; there is {known}")
    return path


def add_model_arguments(parser: Parser) -> None:
    """Add `--checkpoint`, by default the weights "photo", and `--device`."""
    parser.add_argument(
        "--checkpoint", type=Path, default=PHOTO, metavar="FILE",
        help="best.pth or last.pth of train.py, or a file of util.checkpoint.export (the weights "
        "for photographs, docs/photographs.md)",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:1")


def check_model_arguments(args: argparse.Namespace) -> None:
    """Check what can be known without torch: the file exists, the device is written correctly.

    Raises `UserError` if one of the two is wrong.
    """
    if not args.checkpoint.is_file():
        remedy = "train it first, or name another file"
        raise UserError(f"--checkpoint {args.checkpoint}: no such checkpoint; {remedy}")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", args.device):
        raise UserError(f"--device {args.device}: {DEVICES}")


def parse_support(word: str) -> tuple[str, Example]:
    """Parse `[NAME=]IMAGE:LABEL` into a class name and a labeled example.

    Raises `UserError` if the word has another form, or the mask does not hold the value after `#`.
    """
    source, label = _split_support(word)
    name, equals, image = source.partition("=")
    if not equals or os.path.isfile(source):
        name, image = "object", source
    image = os.path.expanduser(image)
    if not (name and image and label):
        raise UserError(f"--support {word}: write [NAME=]IMAGE:LABEL, see predict.py --help")
    file, mark, value = label.rpartition("#")
    if mark and value.isdecimal() and not os.path.isfile(label):
        return name, Example(image, mask=_select_value(word, file, int(value)))
    kind, equals, text = label.partition("=")
    if not equals or os.path.isfile(label):
        return name, Example(image, mask=label)
    if kind not in _NUMBERS:
        if near := difflib.get_close_matches(kind.lower(), _NUMBERS, n=1):
            raise UserError(f"--support {word}: there is no {kind}=; did you mean {near[0]}=?")
        return name, Example(image, mask=label)
    parts = [part.split(",") for part in text.split(";")]
    if not all(len(p) == _NUMBERS[kind] and all(map(_NUMBER.fullmatch, p)) for p in parts):
        form = "x0,y0,x1,y1" if kind == "box" else "x,y"
        raise UserError(f"--support {word}: write {kind}={form}, more after a semicolon")
    values = [[float(number) for number in part] for part in parts]
    if kind == "box":
        return name, Example(image, boxes=[Box(x0, y0, x1, y1) for x0, y0, x1, y1 in values])
    return name, Example(image, points=Points([(x, y) for x, y in values]))


def _split_support(word: str) -> tuple[str, str]:
    """Return what stands before and after the colon of `[NAME=]IMAGE:LABEL`; "" for what is not."""
    source, _, label = word.rpartition(":")
    if not os.path.isfile(source) and (found := _SUPPORT.fullmatch(word)):
        source, label = found.groups()
    return source, os.path.expanduser(label)


def read_files(word: str, example: Example) -> list[str]:
    """Return the files that a support may read: image or clip, LABEL, and LABEL without #."""
    frame = split_frame(str(example.image))
    label = _split_support(word)[1]
    return [frame[0] if frame else str(example.image), label, label.rpartition("#")[0]]


def _select_value(word: str, file: str, value: int) -> np.ndarray:
    """Read a mask in which only one value is the object (uint8 [H,W] of 0, 1 and 255)."""
    mask = read_label(file, wide=None)
    values = np.unique(mask)
    if value not in values:
        found = ", ".join(map(str, values))
        raise UserError(f"--support {word}: {file} holds no {value}; its values are {found}")
    return np.where((mask == IGNORE) & (value != IGNORE), mask, mask == value)


def find_queries(words: Iterable[str]) -> list[Path]:
    """List the named images and clips, and the images in named folders, without subfolders.

    Images of a folder are sorted. A file that is named twice is listed once. Raises `UserError` if
    a file is missing, a folder holds no image, or two files have the same stem.
    """
    found: dict[str, Path] = {}
    for word in (Path(os.path.expanduser(word)) for word in words):
        paths = [word]
        if word.is_dir():
            listing = list_pictures(word, SUFFIXES)
            paths = [word / name for name in listing.names.values()]
            for line in listing.unused:
                log.info("--query %s", line)
            if not paths:
                raise UserError(f"--query {word}: no image in it; add {', '.join(SUFFIXES)} files")
        elif not word.is_file() and not os.path.lexists(word):  # a link or a pipe is read in turn
            raise UserError(f"--query {word}: no such file or folder; check the path")
        for path in paths:
            other = found.setdefault(path.stem, path)
            if os.path.realpath(other) != os.path.realpath(path):
                what = f"--query {path} and {other} would be written to the same {path.stem}"
                raise UserError(f"{what}; rename one, or run twice")
    return list(found.values())


@dataclass(frozen=True)
class Query:
    """An image to segment, or a frame of a clip.

    Attributes:
        name: what results call it: its file, or `CLIP@NUMBER`.
        stem: the name of its files, without suffix. Those of frames are in the folder `group`.
        picture: what `coco.json` calls an image; "" for a frame, which is written as an image.
        group: the stem of the frame's clip; "" for an image.
    """

    name: str
    stem: str
    picture: str = ""
    group: str = ""

    def files(self, with_coco: bool) -> dict[str, str]:
        """Return what is written for it: kind -> file in the output folder.

        The overlays of a clip are one clip. `with_coco`, its frames become images.
        """
        own = f"{self.group}/{self.stem}" if self.group else self.stem
        overlay = f"overlays/{self.group}.webm" if self.group else f"overlays/{own}.png"
        files = {"mask": f"masks/{own}.png", "overlay": overlay, "preview": f"review/{own}.jpg"}
        return files | ({"frame": f"frames/{own}.jpg"} if self.group and with_coco else {})


def queries_of(path: Path) -> Iterator[Query]:
    """Yield the queries of a file: one, or those of a clip's frames.

    A clip that cannot be read has one frame.
    """
    if not is_clip(path):
        yield Query(str(path), path.stem, os.path.abspath(path))
        return
    try:
        count = Clip(path).count
    except UnreadableFile:
        count = 1  # reading it will tell why
    for number in range(count):
        yield Query(f"{path}@{number}", f"{path.stem}_{number:06}", group=path.stem)


def claim_outputs(
    out: Path,
    overwrite: bool,
    queries: Mapping[Path, Sequence[Query]],
    read: Iterable[str | Path],
    format: str,
) -> Outputs:
    """Create the output folder, in which nothing is replaced that predict.py did not make.

    `queries` are those of each image or clip, and `read` the files that this run reads. Without
    `overwrite`, results of other images of the same names are not replaced either. Raises
    `UserError` if the folder cannot be created, holds something else, or a file to be written is
    one of those.
    """
    outputs = Outputs(out, "predict", overwrite=overwrite)
    every = chain.from_iterable(queries.values())
    files = [name for query in every for name in query.files(format != "png").values()]
    outputs.claim([*files, LINES, COCO, REVIEW], read, alone=True)
    if not overwrite:
        _require_same_images(out, queries)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        in_place = "a link to nothing" if out.is_symlink() else "a file"
        is_there = isinstance(error, FileExistsError)
        reason = f"{in_place} is in its place" if is_there else error.strerror
        what = f"--out {out}: the folder cannot be created ({reason})"
        raise UserError(f"{what}; name another") from None
    return outputs


def source_of(line: Mapping[str, Any]) -> Path:
    """Return the image or clip that a line of `predictions.jsonl` is about.

    Raises `TypeError` or `LookupError` if it is no such line.
    """
    frame = split_frame(line["image"])
    return Path(frame[0] if frame else line["image"])


def _require_same_images(out: Path, paths: Iterable[Path]) -> None:
    """Refuse to replace the results of an earlier run that are about other images."""
    by_stem = {path.stem: path for path in paths}
    replaced: dict[Path, Path] = {}
    lines = out / LINES
    for text in lines.read_bytes().splitlines() if lines.is_file() else []:
        # Of a line that is none, reading all of them again will tell.
        with suppress(ValueError, TypeError, LookupError, RecursionError):
            old = source_of(json.loads(text))
            new = by_stem.get(old.stem, old)
            if os.path.realpath(old) != os.path.realpath(new):
                replaced[old] = new
    mistakes = [f"the result of {new} would replace that of {old}" for old, new in replaced.items()]
    refuse(f"--out {out}", mistakes, "name another folder, rename images, or add --overwrite")
