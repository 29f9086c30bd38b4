"""From pictures and masks in any layout to a data set of one's own (`Data.data_set: custom`)."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from util.data.image_io import image_size, read_image, read_label
from util.data.layers import draw_layers, layers_png
from util.data.listing import is_picture, list_pictures
from util.data.prepare.archive import Archive, damaged
from util.data.prepare.earlier import CLASSES_FILE
from util.data.prepare.jobs import Job, build, stamp_of
from util.folds import IGNORED, MAX_CLASSES, around_255, is_wide
from util.runtime.errors import UserError, refuse
from util.runtime.log import log
from util.runtime.progress import bar

_MASK_BYTES = 4000  # about that of a mask of COCO
_THRESHOLD = 128  # of a mask's brightness, as in the code of HSNet and PATNet


@dataclass(frozen=True)
class Picture:
    """A picture of a data set that is to be created.

    Attributes:
        name: its id.
        content: its file, or a function that returns a PNG.
        draw: returns where each of its classes is (class id -> bool [H,W]); called in a worker.
        made_from: what `draw`, or a function `content`, makes them from: values, paths of files,
            and mappings to them.
    """

    name: str
    content: Path | Callable[[], bytes]
    draw: Callable[[], Mapping[int, np.ndarray]]
    made_from: tuple[object, ...]


def numbered(names: Iterable[str]) -> dict[str, int]:
    """Return name -> class id, from 1 in the order of the names; no class has the id 255."""
    return {name: i for i, name in enumerate(around_255(tuple(names), IGNORED), 1)}


def build_pictures(
    given: Path,
    out: Path,
    pictures: list[Picture],
    ids: Mapping[str, int],
    lists: Mapping[str, Iterable[str]],
    copy: bool,
    workers: int,
    overwrite: bool,
) -> None:
    """Write `out`/images, `out`/masks, `out`/classes.txt and `lists` (name of a file -> its lines).

    `given` is the folder of the download, in which no file is replaced.
    `ids` is that of `numbered`. `copy` copies the pictures instead of linking to them,
    `overwrite` replaces files that something else made. Raises `UserError` if there is no picture,
    two have the same name, or something cannot be read or written.
    """
    if not pictures:
        raise UserError(f"{out}: would get no image; check the folder that --from names")
    if len(ids) >= MAX_CLASSES:
        raise UserError(f"{out}: would have {len(ids)} classes; there are at most {MAX_CLASSES}")
    doubled = [name for name, n in Counter(p.name for p in pictures).items() if n > 1]
    refuse(str(out), [f"two images would be called {name}" for name in doubled], "rename one")
    jobs, masks = [], []
    for picture in pictures:
        jobs.append(_picture_job(out / "images", picture, copy))
        target = out / "masks" / f"{picture.name}.png"
        masks.append(
            Job(target, partial(_mask, picture, len(ids)), _MASK_BYTES, stamp=_stamp(picture))
        )
    jobs += [text_job(out / name, lines) for name, lines in {CLASSES_FILE: ids, **lists}.items()]
    count = len(ids) - (IGNORED in ids)
    what = f"{out}: {len(masks)} images of {count} classes"
    created = build(out, [jobs, masks], workers, what, overwrite, inputs=[given])
    _warn_of_empty(out, [name for name in created if name.startswith("masks/")], len(ids))


def _warn_of_empty(out: Path, masks: list[str], classes: int) -> None:
    """Warn about those of the masks of a data set that hold no pixel of a class."""
    with bar(len(masks), "looking for empty masks") as progress:
        empty = []
        for name in masks:
            if not read_label(out / name, wide=is_wide(classes)).any():
                empty.append(name)
            progress.update()
    if empty:
        text = "%s: %d masks hold no pixel of a class, such as %s; their images are not used"
        log.warning(text, out, len(empty), empty[0])


def text_job(target: Path, lines: Iterable[str]) -> Job:
    """Return the job that writes a text file of these lines."""
    text = "".join(f"{line}\n" for line in lines).encode()
    return Job(target, text, len(text))


def _stamp(picture: Picture) -> str:
    is_file = isinstance(picture.content, Path)
    return stamp_of(*picture.made_from, picture.content if is_file else None)


def _picture_job(folder: Path, picture: Picture, copy: bool) -> Job:
    content = picture.content
    if not isinstance(content, Path):
        return Job(folder / f"{picture.name}.png", content, stamp=_stamp(picture))
    target = folder / f"{picture.name}{content.suffix.lower()}"
    if copy:
        return Job(target, partial(Path.read_bytes, content), content.stat().st_size, content)
    return Job(target, Path(os.path.realpath(content)))  # `resolve` raises for a loop


def _mask(picture: Picture, classes: int) -> bytes:
    masks = picture.draw()
    if isinstance(picture.content, Path):
        height, width = image_size(picture.content)
        for mask in masks.values():
            if mask.shape != (height, width):
                rows, columns = mask.shape
                what = f"has {width}x{height} pixels, and its mask {columns}x{rows}"
                raise damaged(picture.content, what, "give both the same size")
    else:
        height, width = next(iter(masks.values())).shape
    return layers_png(draw_layers(masks, height, width, classes))


def read_bright(path: Path) -> np.ndarray:
    """Read a mask that is drawn bright on dark (bool [H,W]).

    Raises `UnreadableFile` if it cannot be read.
    """
    return cv2.cvtColor(read_image(path), cv2.COLOR_RGB2GRAY) >= _THRESHOLD


def find_folder(given: Path, what: str, *wanted: str) -> Path:
    """Return the uppermost folder below `given`, or `given`, that holds all the wanted names.

    Raises `UserError` that says `what` is not there.
    """
    if not given.is_dir():
        raise UserError(f"--from {given}: no such folder; unpack the download and give its folder")
    found = Archive(given).find(*wanted)
    if found is None:
        layout = ", ".join(wanted)
        remedy = "arrange the folder as docs/data_sets.md says"
        raise UserError(f"--from {given}: contains no {what} ({layout}); {remedy}")
    return given / found


def files_by_stem(folder: Path, *suffixes: str) -> dict[str, Path]:
    """Return the pictures of a folder as `list_pictures` lists them: id -> path."""
    return {stem: folder / name for stem, name in list_pictures(folder, suffixes).names.items()}


def warn_of_others(given: Path, folders: Iterable[Path], *suffixes: str) -> None:
    """Warn about the files in the folders of a download that are no pictures of these suffixes."""
    hidden, other = list[str](), list[str]()
    for folder in folders:
        for name in sorted(os.listdir(folder)):
            if not is_picture(name, suffixes):
                path = (folder / name).relative_to(given).as_posix()
                (hidden if name.startswith(".") else other).append(path)
    warn_left_out(given, hidden, "hidden files")
    endings = ", ".join(suffixes)
    warn_left_out(given, other, f"files or folders whose names do not end in {endings}")


def warn_left_out(given: Path | str, names: Iterable[str], what: str) -> None:
    """Warn about what is left out of a folder or file, if anything."""
    if names := list(names):
        log.warning("%s: left out %d %s, such as %s", given, len(names), what, names[0])


def warn_unlike(given: Path, found: Mapping[str, int], published: Mapping[str, int]) -> None:
    """Warn if the counts are not those that were published."""
    for what, count in published.items():
        if found[what] != count:
            text = "--from %s: found %d %s, %d were published"
            log.warning(text, given, found[what], what, count)
