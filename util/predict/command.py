"""Words of the command lines of predict.py and the page, checked before torch is imported."""

import argparse
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.constants import IGNORE
from util import ROOT
from util.data.image_io import SUFFIXES, UnreadableFile, read_label
from util.data.listing import list_pictures
from util.predict.clip import Clip, is_clip, split_frame
from util.predict.example import Box, Example, Points
from util.runtime.cli import Parser
from util.runtime.errors import UserError
from util.runtime.files import Outputs
from util.runtime.log import log

PHOTO = ROOT / "weights/amformer_photo.safetensors"
LINES, COCO, REVIEW = "predictions.jsonl", "coco.json", "review.html"
FORMATS = ("png", "coco", "coco-polygons")
DEVICES = "only the CPU and NVIDIA's GPUs are supported; write cpu, cuda or cuda:0"
_NUMBERS = {"box": 4, "points": 2}
_NUMBER = re.compile(r"\s*-?\d+(\.\d*)?\s*")


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
    source, colon, label = word.rpartition(":")
    name, equals, image = source.partition("=")
    if not equals or os.path.isfile(source):
        name, image = "object", source
    image, label = map(os.path.expanduser, (image, label))
    if not (colon and name and image and label):
        raise UserError(f"--support {word}: write [NAME=]IMAGE:LABEL, see predict.py --help")
    file, mark, value = label.rpartition("#")
    if mark and value.isdecimal() and not os.path.isfile(label):
        return name, Example(image, mask=_select_value(word, file, int(value)))
    kind, equals, text = label.partition("=")
    if not equals or kind not in _NUMBERS or os.path.isfile(label):
        return name, Example(image, mask=label)
    parts = [part.split(",") for part in text.split(";")]
    if not all(len(p) == _NUMBERS[kind] and all(map(_NUMBER.fullmatch, p)) for p in parts):
        form = "x0,y0,x1,y1" if kind == "box" else "x,y"
        raise UserError(f"--support {word}: write {kind}={form}, more after a semicolon")
    values = [[float(number) for number in part] for part in parts]
    if kind == "box":
        return name, Example(image, boxes=[Box(x0, y0, x1, y1) for x0, y0, x1, y1 in values])
    return name, Example(image, points=Points([(x, y) for x, y in values]))


def read_files(word: str, example: Example) -> list[str]:
    """Return the files that a support may read: image or clip, LABEL, and LABEL without #."""
    frame = split_frame(str(example.image))
    label = word.rpartition(":")[2]
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
    out: Path, overwrite: bool, queries: Iterable[Query], read: Iterable[str | Path], format: str
) -> Outputs:
    """Create the output folder, in which nothing is replaced that predict.py did not make.

    `read` are the files that this run reads. Raises `UserError` if the folder cannot be created,
    holds something else, or a file to be written is one of those.
    """
    outputs = Outputs(out, "predict", overwrite=overwrite)
    files = [name for query in queries for name in query.files(format != "png").values()]
    outputs.claim([*files, LINES, COCO, REVIEW], read, alone=True)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "a file is in its place" if isinstance(error, FileExistsError) else error.strerror
        what = f"--out {out}: the folder cannot be created ({reason})"
        raise UserError(f"{what}; name another") from None
    return outputs
