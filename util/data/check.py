"""Checks the data of a config: every image and every mask of its lists.

    python -m util.data.check config/pascal/pascal_split0_resnet50.yaml [Section.key=value ...]

Is each there, readable, of one size, with legal labels? Has each class enough images for K shots?
Prints a table per class and everything that is wrong; the exit status is 2 when something is.
"""

from dataclasses import dataclass
from functools import partial

from model.constants import IGNORE
from util.config import DataSection
from util.config.arguments import config_argument
from util.data.image_io import read_label
from util.data.lists import FoldList, compare, fold_list, list_name
from util.data.source import Source, open_source, subsets
from util.data.tables import Table, pixels_by_class
from util.folds import fold_of
from util.runtime.cli import main
from util.runtime.errors import UserError
from util.runtime.parallel import on_all_cores


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


def check(data: DataSection, subset: str) -> Report:
    """Reads every image and mask that a subset lists, on all cores.

    Args:
        data: a config's `Data` section. With `.missing` 'skip' an absent image is no offender.
        subset: 'train' or 'val'.

    Raises:
        UserError: when folders or id lists are missing.
    """
    source = open_source(data, subset)
    ids, on_disk = source.image_ids(), source.images_on_disk()
    look = partial(_look, source, data.missing == "skip")
    found = on_all_cores(look, [(i, i in on_disk) for i in ids], f"checking {subset}")
    table: Table = {}
    wrong: list[str] = []
    for image_id, (has, mistake) in zip(ids, found, strict=True):
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
    """{class: pixels} of a mask (None: unusable), and what is wrong ('': nothing)."""
    image_id, on_disk = image
    path, mistake = source.label_path(image_id), ""
    try:
        if on_disk or not may_miss:
            label = source.decode(image_id)[1]
        else:
            label = read_label(path)
    except ValueError as error:
        mistake = str(error)
        try:  # the image may be what is wrong
            label = read_label(path)
        except ValueError as unreadable:
            return None, str(unreadable)
    has = pixels_by_class(label)
    illegal = [c for c in has if c > source.classes]
    if illegal:
        limit = f"there are classes 1 to {source.classes}, 0 and {IGNORE}"
        return None, f"{path}: holds label {max(illegal)}; {limit}"
    return has, mistake


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
    for subset in subsets(data):
        report = check(data, subset)
        print(describe(report, subset))
        for line in report.wrong:
            print(f"  wrong: {line}")
        wrong += report.wrong
    if wrong:
        raise UserError(f"{data.data_root}: {len(wrong)} mistakes; correct what is named above")
    print(f"{data.data_root}: nothing is wrong")


if __name__ == "__main__":
    main(_main)
