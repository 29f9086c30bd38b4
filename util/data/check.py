"""Checks the data of a config: every image and every mask of its lists.

    python -m util.data.check config/pascal/pascal_split0_resnet50.yaml [Section.key=value ...]

Is each there, readable, of one size, with legal labels? Has each class enough images for K shots?
Prints a table per class and everything that is wrong; the exit status is 2 when something is.
"""

import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from tqdm import tqdm

from util.config import config_argument
from util.data.folds import IGNORE, fold_of
from util.data.lists import FoldList, compare, fold_list, list_name
from util.data.source import SUBSETS, Source, open_source
from util.data.tables import Table, pixels_by_class
from util.logger import main


@dataclass(frozen=True)
class Report:
    """What was found in one subset.

    Attributes:
        table: what the readable masks hold.
        fold: the fold's list that follows.
        there: images of the list that are on disk.
        wrong: a line for each offender.
    """

    table: Table
    fold: FoldList
    there: set[str]
    wrong: list[str]


def check(data: Any, subset: str) -> Report:
    """Reads every image and mask that a subset lists, on all cores.

    Args:
        data: a config's `Data` section. With `.missing` 'skip' an absent image is no offender.
        subset: 'train' or 'val'.

    Raises:
        ValueError: when folders or id lists are missing.
    """
    source = open_source(data, subset)
    ids, on_disk = source.image_ids(), source.images_on_disk()
    look = partial(_look, source, data.missing == "skip")
    context = multiprocessing.get_context("fork")
    table: Table = {}
    wrong: list[str] = []
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=context) as pool:
        found = pool.map(look, [(i, i in on_disk) for i in ids], chunksize=16)
        bar = tqdm(found, desc=f"checking {subset}", total=len(ids), mininterval=_period())
        for image_id, (has, mistake) in zip(ids, bar, strict=True):
            if mistake:
                wrong.append(mistake)
            if has is not None:
                table[image_id] = has
    fold = fold_list(table, fold_of(data), subset, data.min_pixels)
    wrong += compare(list_name(data, subset), fold) or []
    there = on_disk.intersection(fold.images)
    for c, images in fold.by_class.items():
        count = len(there.intersection(images))
        if count <= data.shot and data.missing == "error":
            wrong.append(
                f"class {c} ({fold.name(c)}): {count} images of >= {fold.min_pixels} pixels;"
                f" {data.shot}-shot needs {data.shot + 1}"
            )
    return Report(table, fold, there, wrong)


def _look(
    source: Source, may_miss: bool, image: tuple[str, bool]
) -> tuple[dict[int, int] | None, str]:
    """{class: pixels} of a mask (None: unreadable), and what is wrong ('': nothing)."""
    image_id, on_disk = image
    path = source.label_path(image_id)
    has = None
    try:
        has = pixels_by_class(path)
        illegal = [c for c in has if c > source.classes]
        if illegal:
            limit = f"there are classes 1 to {source.classes}, 0 and {IGNORE}"
            return None, f"{path}: holds label {max(illegal)}; {limit}"
        if on_disk or not may_miss:
            source.decode(image_id)
    except ValueError as error:
        return has, str(error)
    return has, ""


def _period() -> float:
    """Seconds between two updates of the bar: few where it cannot rewrite itself."""
    return 0.1 if sys.stderr.isatty() else 10.0


def describe(report: Report, subset: str) -> str:
    """A table: images with the class, images in which it may serve, those of them on disk."""
    fold = report.fold
    lines = [
        f"{subset}: {len(report.table)} masks; {len(fold.images)} images in the fold's list,"
        f" {len(report.there)} of them on disk",
        f"  {'id':>3}  {'class':16}{'in masks':>10}{f'>= {fold.min_pixels} px':>12}{'on disk':>10}",
    ]
    for c, images in fold.by_class.items():
        holds = sum(c in has for has in report.table.values())
        there = len(report.there.intersection(images))
        lines.append(f"  {c:>3}  {fold.name(c):16}{holds:>10}{len(images):>12}{there:>10}")
    return "\n".join(lines)


def _main() -> None:
    data = config_argument(__doc__).Data
    wrong = []
    for subset in SUBSETS:
        report = check(data, subset)
        print(describe(report, subset))
        for line in report.wrong:
            print(f"  wrong: {line}")
        wrong += report.wrong
    if wrong:
        raise ValueError(f"{data.data_root}: {len(wrong)} mistakes; correct what is named above")
    print(f"{data.data_root}: nothing is wrong")


if __name__ == "__main__":
    main(_main)
