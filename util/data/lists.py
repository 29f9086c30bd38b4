"""The fold lists (method.md section 7): which images are queries, and which serve as supports.

    python -m util.data.lists config/pascal/pascal_split0_resnet50.yaml [Section.key=value ...]

writes the lists of every fold of a config's data set (COCO: by both conventions; one's own data:
the config's fold) to `<list_dir>/{train,val}_<fold>.json`, as {"images": [...], "by_class": {...}},
and compares them with the published ones; exit status 2 when one differs. Training does not need
the files: it derives its list from the masks, and compares it, at every start.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from util import ROOT
from util.config import DataSection
from util.config.arguments import config_argument
from util.data.source import open_source, subsets
from util.data.tables import Table, fingerprint, load_table, write_text
from util.folds import FOLDS, Fold, fold_of
from util.runtime.cli import main
from util.runtime.errors import UserError

EXPECTED = ROOT / "lists" / "expected.json"

MIN_PIXELS = 2048
"""A class serves as a support of an image when it has this many pixels in it (original size)."""


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
        UserError: naming the first class that has fewer than K + 1 images.
    """
    for c, images in fold.by_class.items():
        if len(images) <= shot:
            raise UserError(
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
        UserError: when nothing is left.
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
        raise UserError(
            "no image of the fold's list is left: check Data.data_root, or lower Data.shot"
        )
    return replace(fold, images=images, by_class=by_class, classes_of=classes_of), report


def compare(name: str, fold: FoldList) -> list[str] | None:
    """Compares a list with the published one, as far as that is known.

    PASCAL's are known in full, COCO's by their counts. `lists/expected.json` keeps the count and
    the CRC-32 of the sorted ids.

    Args:
        name: such as `pascal/train_0`: folder of the lists and file.
        fold: the list.

    Returns:
        A line for the list and for each class that differs; None where none was published.
    """
    want = json.loads(EXPECTED.read_text(encoding="utf-8")).get(name)
    if want is None:
        return None
    found = [_difference("", fold.images, want["images"])]
    for c, kept in want.get("by_class", {}).items():
        what = f", class {c} ({fold.name(int(c))})"
        found.append(_difference(what, fold.by_class[int(c)], kept))
    return [f"{name}{line}" for line in found if line]


def summary(ids: Iterable[str]) -> list[int]:
    """Returns what `lists/expected.json` keeps: the count and the CRC-32 of the sorted ids."""
    ids = sorted(ids)
    return [len(ids), fingerprint(ids)]


def _difference(what: str, ids: list[str], want: list[int]) -> str:
    got = summary(ids)[: len(want)]
    if got == want:
        return ""
    if got[0] == want[0]:
        return f"{what}: {got[0]} images as published, but other ones"
    return f"{what}: {got[0]} images, {want[0]} published"


def list_name(data: DataSection, subset: str) -> str:
    """Returns the name of a config's list, such as `pascal/train_0`."""
    trained_on = f"_{data.trained_on}" if data.trained_on else ""
    consecutive = "" if data.use_split_coco else "_consecutive"
    folder = "custom" if data.data_set == "custom" else Path(data.list_dir).name
    return f"{folder}/{subset}_{data.split}{trained_on}{consecutive}"


def every_fold(data: DataSection) -> Iterator[Any]:
    """Yields the `Data` section once for every fold of its data set."""
    if data.data_set == "custom":
        yield data
        return
    conventions = (True, False) if "coco" in (data.data_set, data.trained_on) else (True,)
    for use_split_coco in conventions:
        for split in range(FOLDS):
            yield replace(data, split=split, use_split_coco=use_split_coco)


def write_lists(data: DataSection) -> list[str]:
    """Writes the lists of every fold; each mask is read once.

    Args:
        data: a config's `Data` section.

    Returns:
        A line for everything that differs from the published lists.

    Raises:
        UserError: when data is missing or broken.
    """
    differs = []
    for subset in subsets(data):
        table = load_table(open_source(data, subset), data.list_dir)
        for section in every_fold(data):
            fold = fold_list(table, fold_of(section), subset, data.min_pixels)
            name = list_name(section, subset)
            path = Path(data.list_dir) / f"{Path(name).name}.json"
            write_text(path, json.dumps({"images": fold.images, "by_class": fold.by_class}) + "\n")
            lines = compare(name, fold)
            verdict = "NOT as published" if lines else "as published"
            if lines is None:
                verdict = "no published list to compare with"
            print(f"{path}: {len(fold.images)} images, {verdict}")
            differs += lines or []
    return differs


def _main() -> None:
    differs = write_lists(config_argument(__doc__).Data)
    if differs:
        raise UserError("; ".join(differs))


if __name__ == "__main__":
    main(_main)
