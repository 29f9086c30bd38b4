"""What the masks hold, and the fold lists that follow from it (method.md section 7).

Each mask is read once. What it holds is kept in `<list_dir>/<train|val>.json`, from which the lists
of every fold are derived in memory: {class: pixels} for each image, in the order of the ids.
"""

import json
import multiprocessing
import os
import sys
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from util.data.folds import IGNORE, Fold
from util.data.source import Source, read_label

MIN_PIXELS = 2048
"""A class serves as a support of an image when it has this many pixels in it (original size)."""

Table = dict[str, dict[int, int]]
"""Image id -> {class id: pixels}, in the order of the ids; background and 255 are left out."""


@dataclass(frozen=True)
class FoldList:
    """The images of one fold and subset.

    Attributes:
        images: ids of the queries, in order.
        by_class: class id -> the ids of `images` that may be its supports, in order.
        classes_of: id -> the classes an episode on it may ask for: the fold's base classes in
            training, its novel classes in validation, present in its mask at any size.
        names: class names; class id = position + 1.
        min_pixels: that a class had to have in a mask.
    """

    images: list[str]
    by_class: dict[int, list[str]]
    classes_of: dict[str, tuple[int, ...]]
    names: tuple[str, ...]
    min_pixels: int = MIN_PIXELS

    def name(self, class_id: int) -> str:
        """Returns the name of a class id (from 1)."""
        return self.names[class_id - 1]


def fingerprint(ids: Iterable[str]) -> int:
    """Returns the CRC-32 of ids, order included."""
    return zlib.crc32("\n".join(ids).encode())


def load_table(source: Source, list_dir: str | Path) -> Table:
    """Returns what the masks of a subset hold, reading them only if no earlier run has.

    Args:
        source: the data.
        list_dir: folder of the tables, one folder per data set. Written to on the first use.

    Raises:
        ValueError: when the file there is not of these ids or cannot be written, or a mask cannot
            be read. A table of one's own data is made anew when a mask was added or changed.
    """
    path, ids = Path(list_dir) / f"{source.subset}.json", source.image_ids()
    made_from = [*ids, *source.stamps(ids)]
    head = {"data_set": source.data_set, "crc32": fingerprint(made_from)}
    if path.is_file():
        kept, table = _read_table(path)
        if kept == head and list(table) == ids:
            return table
        if source.data_set != "custom":
            raise ValueError(
                f"{path}: made from other images than {source.root} lists; delete it to rebuild"
                " it, or set Data.list_dir"
            )
    table = build_table(source, ids)
    _write_table(path, head, table)
    return table


def _read_table(path: Path) -> tuple[dict[str, Any], Table]:
    """What a file says it was made from, and its table."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        table = {i: {int(c): n for c, n in has.items()} for i, has in kept.pop("images").items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: not a table of mask contents; delete it to rebuild it") from None
    return kept, table


def build_table(source: Source, ids: list[str]) -> Table:
    """Reads every mask once, on all cores, with one line of progress on stderr.

    Raises:
        ValueError: when a mask cannot be read or holds a class the data set does not have.
    """
    paths = [str(source.label_path(i)) for i in ids]
    limit, table = source.classes, {}
    # fork: a worker needs nothing but NumPy, and starts at once.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=context) as pool:
        counts = pool.map(_count, paths, chunksize=64)
        for image_id, path, has in zip(ids, paths, counts, strict=True):
            if max(has, default=0) > limit:
                raise ValueError(
                    f"{path}: holds class {max(has)}, but {source.data_set} has {limit}; a palette"
                    " mask must keep its palette indices"
                )
            table[image_id] = has
            if len(table) % 500 == 0 or len(table) == len(ids):
                end = "\n" if len(table) == len(ids) else ""
                text = f"\rreading masks of {source.subset}: {len(table)}/{len(ids)}"
                print(text, end=end, file=sys.stderr, flush=True)
    return table


def _count(path: str) -> dict[int, int]:
    pixels = np.bincount(read_label(path).ravel(), minlength=256)
    return {int(c): int(pixels[c]) for c in np.flatnonzero(pixels) if c not in (0, IGNORE)}


def _write_table(path: Path, head: dict[str, Any], table: Table) -> None:
    rows = ",\n".join(f"{json.dumps(i)}: {json.dumps(has)}" for i, has in table.items())
    _write(path, f'{json.dumps(head)[:-1]}, "images": {{\n{rows}\n}}}}\n')


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be written ({error.strerror}); set Data.list_dir to a folder of yours"
        ) from None


def fold_list(table: Table, fold: Fold, subset: str, min_pixels: int = MIN_PIXELS) -> FoldList:
    """Derives the list of a fold, equal to the published one.

    Training: images without a single novel pixel and with a base class of >= 2,048 pixels.
    Validation: images with a novel class of >= 2,048 pixels. An image is in the list of each such
    class that has >= 2,048 pixels in it.

    Args:
        table: what the masks of the subset hold.
        fold: the classes.
        subset: 'train' or 'val'.
        min_pixels: in place of 2,048.
    """
    wanted = fold.classes(subset)
    out = FoldList([], {c: [] for c in wanted}, {}, fold.names, min_pixels)
    for image_id, has in table.items():
        if subset == "train" and any(c in has for c in fold.novel):
            continue
        large = [c for c in wanted if has.get(c, 0) >= min_pixels]
        if large:
            out.images.append(image_id)
            out.classes_of[image_id] = tuple(c for c in wanted if c in has)
        for c in large:
            out.by_class[c].append(image_id)
    return out


def check_shots(fold: FoldList, shot: int) -> None:
    """Makes sure that every class can serve: K supports and a query, all different.

    Raises:
        ValueError: naming the first class that has fewer than K + 1 images.
    """
    for c, images in fold.by_class.items():
        if len(images) <= shot:
            raise ValueError(
                f"class {c} ({fold.name(c)}) has {len(images)} images of >= {fold.min_pixels}"
                f" pixels, {shot}-shot needs {shot + 1}; lower Data.shot, add images, or set"
                " Data.missing=skip to leave the class out"
            )


def available(
    fold: FoldList, exists: Callable[[str], bool], shot: int
) -> tuple[FoldList, list[str]]:
    """Cuts a list to what is on disk and can serve, down to a fixed point.

    Leaves out images that are not there, classes with fewer than K + 1 images, and queries none of
    whose classes is left.

    Args:
        fold: the list.
        exists: says whether an id's image is there.
        shot: supports per episode, K.

    Returns:
        The list cut down, and one line for each thing left out.

    Raises:
        ValueError: when nothing is left.
    """
    images = [i for i in fold.images if exists(i)]
    by_class, report = fold.by_class, []
    if len(images) < len(fold.images):
        absent = len(fold.images) - len(images)
        report.append(f"left out {absent} of {len(fold.images)} listed images: not on disk")
    present = len(images)
    while True:
        kept = set(images)
        by_class = {c: [i for i in ids if i in kept] for c, ids in by_class.items()}
        for c in [c for c, ids in by_class.items() if len(ids) <= shot]:
            report.append(
                f"left out class {c} ({fold.name(c)}):"
                f" {len(by_class.pop(c))} images, {shot}-shot needs {shot + 1}"
            )
        classes_of = {i: tuple(c for c in fold.classes_of[i] if c in by_class) for i in images}
        images = [i for i in images if classes_of[i]]
        if len(images) == len(kept):
            break
    if len(images) < present:
        report.append(f"left out {present - len(images)} images: none of their classes is left")
    if not images:
        raise ValueError(
            "no image of the fold's list is left: check Data.data_root, or lower Data.shot"
        )
    return replace(fold, images=images, by_class=by_class, classes_of=classes_of), report
