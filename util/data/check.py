"""Check the data of a config: every image and every mask of its lists.

    python -m util.data.check config/pascal/pascal_split0_resnet50.yaml [Section.key=value ...]

Each file must exist, be whole, and have legal labels; image and mask must have the same size; each
class needs enough images for K shots. Lists of BAM in `Data.list_dir` and its base_annotation
beside the data set are compared with what the masks give. Prints a table of the classes, what is
not used and why, and every mistake; the exit status is 2 if there is any mistake.
"""

from util.config.arguments import check_first, config_argument

if __name__ == "__main__":
    check_first(config_argument, __doc__)  # before NumPy and OpenCV: together they take a second

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from model.constants import IGNORE
from util.config import DataSection
from util.data.image_io import UnreadableFile, brighter_than, open_mask, read_label
from util.data.listing import not_used
from util.data.lists import FoldList, list_of, split_by_set, why_left_out
from util.data.mixed import open_source, with_name
from util.data.prepare.base_annotation import find_base_annotation
from util.data.source import Source, subsets
from util.data.tables import Table, pixels_by_class, unite
from util.folds import fold_of
from util.runtime.cli import main
from util.runtime.errors import UserError
from util.runtime.log import log
from util.runtime.parallel import on_all_cores
from util.runtime.system import heard


@dataclass(frozen=True)
class CheckReport:
    """What was found in one subset.

    Attributes:
        table: what the readable masks contain.
        fold: the fold's list, derived from the table.
        on_disk: images of the list that are on disk.
        mistakes: a line for each.
        notes: a line for each reason why files are not used, or may not mean what they should.
        sets: of the whole report, that of each data set of a mix; without a mix, there is one, ''.
    """

    table: Table
    fold: FoldList
    on_disk: set[str]
    mistakes: list[str]
    notes: list[str]
    sets: dict[str, "CheckReport"] = field(default_factory=dict)


def check(data: DataSection, subset: str) -> CheckReport:
    """Read every image and mask that a subset ('train' or 'val') lists, on all cores.

    With `Data.missing: skip` an absent image is no mistake. Raises `UserError` if a folder or an id
    list is missing.
    """
    source, sets = open_source(data, subset), {}
    found = {name: _check_set(part, data, subset) for name, part in source.parts.items()}
    table = unite(source, {name: own for name, (own, _, _) in found.items()})
    fold, differences = list_of(table, data, subset)
    on_disk, notes = source.images_on_disk(), list[str]()
    mistakes = differences
    for name, (listed, own) in split_by_set(fold, table, source).items():
        _, wrong, remarks = found[name]
        remarks += why_left_out(own, listed, data, subset)
        there = on_disk.intersection(listed.images)
        if data.missing == "error":
            wrong += _few_images(listed, there, data.shot)
        sets[name] = CheckReport(own, listed, there, wrong, remarks)
        mistakes += with_name(name, wrong)
        notes += with_name(name, remarks)
    return CheckReport(table, fold, on_disk.intersection(fold.images), mistakes, notes, sets)


def _check_set(
    source: Source, data: DataSection, subset: str
) -> tuple[Table, list[str], list[str]]:
    """Return what the readable masks of a data set contain, its mistakes and notes on its files."""
    ids, on_disk = source.image_ids(), source.images_on_disk()
    check_more = None
    if folder := find_base_annotation(data, subset):
        check_more = partial(_check_base_label, folder, fold_of(data).base_table())
    check_pair = partial(_check_pair, source, data.missing == "skip", check_more)
    found = on_all_cores(check_pair, [(i, i in on_disk) for i in ids], f"checking {subset}")
    table: Table = {}
    mistakes: list[str] = []
    bright: list[str] = []
    for image_id, (pixels, mistake, is_bright) in zip(ids, found, strict=True):
        bright += [image_id] * is_bright
        if mistake:
            mistakes.append(mistake)
        if pixels is not None:
            table[image_id] = pixels
    notes = source.unused()
    if bright:
        what = "masks of two colors, of which index 0, the background, is the brighter one"
        example = source.label_path(bright[0]).name
        notes.append(f"{source.masks}: {len(bright)} {what}, such as {example}; is that right?")
    if data.missing == "skip":
        notes += not_used(
            source.masks, "masks without an image", [i for i in ids if i not in on_disk]
        )
    return table, mistakes, notes


def _few_images(fold: FoldList, on_disk: set[str], shot: int) -> Iterator[str]:
    """Yield a line for each class with too few images for K shots."""
    for c, images in fold.by_class.items():
        count = len(on_disk.intersection(images))
        if count <= shot:
            pixels = f"{fold.min_pixels} pixels"
            yield (
                f"class {c} ({fold.name(c)}): {count} images of >= {pixels};"
                f" {shot}-shot needs {shot + 1}"
            )


def _check_pair(
    source: Source,
    may_miss: bool,
    check_more: Callable[[str, np.ndarray], str] | None,
    image: tuple[str, bool],
) -> tuple[dict[int, int] | None, str, bool]:
    """Return {class: pixels} of a mask (None: unusable), and the mistake ('': none).

    Returns, too, whether the background of one's own mask may be the object (`brighter_than`).
    `check_more` returns the mistake of something else that belongs to an id and its label.
    """
    image_id, on_disk = image
    path, mistake = source.label_path(image_id), ""
    try:
        read = source.read_label if may_miss and not on_disk else lambda i: source.read_pair(i)[1]
        with heard() as said:
            label = read(image_id)
        if corrupt := [line for line in said if "JPEG" in line]:  # read, but not as it was
            what = f"is damaged inside ({corrupt[0]})"
            mistake = f"{source.image_path(image_id)}: {what}; replace it with a whole copy"
    except UnreadableFile as error:
        mistake = str(error)
        try:  # the mistake may be the image's
            label = source.read_label(image_id)
        except UnreadableFile as unreadable:
            return None, str(unreadable), False
    pixels = pixels_by_class(label)
    illegal = [c for c in pixels if c > source.classes]
    if illegal:
        legal = f"there are classes 1 to {source.classes}, 0 and {IGNORE}"
        return None, f"{path}: contains label {max(illegal)}; {legal}", False
    if check_more and not mistake:
        mistake = check_more(image_id, label)
    may_be_bright = source.data_set == "custom" and len(pixels) <= 1  # two colors at most
    is_bright = may_be_bright and brighter_than(open_mask(path)) > 0
    return pixels, mistake, is_bright


def _check_base_label(folder: Path, table: np.ndarray, image_id: str, label: np.ndarray) -> str:
    """Return the mistake of an image's file of base_annotation ('': none)."""
    path = folder / f"{image_id}.png"
    remedy = "write it again with python -m util.data.prepare base, or delete base_annotation"
    try:
        found = read_label(path)
    except UnreadableFile as error:
        return f"{error}; {remedy}"
    if np.array_equal(found, table[label]):
        return ""
    return f"{path}: is not what the mask gives for this fold; {remedy}"


def format_table(report: CheckReport, subset: str) -> str:
    """Return a table: per class, its images, those of them in the list, those of them on disk."""
    fold = report.fold
    empty = sum(not pixels for pixels in report.table.values())
    without = f" ({empty} without a class)" if empty else ""
    lines = [
        f"{subset}: {len(report.table)} masks{without}; {len(fold.images)} images in the fold's"
        f" list, {len(report.on_disk)} of them on disk",
        f"  {'id':>3}  {'class':16}{'in masks':>10}{f'>= {fold.min_pixels} px':>12}{'on disk':>10}",
    ]
    for c, images in fold.by_class.items():
        in_masks = sum(c in pixels for pixels in report.table.values())
        on_disk = len(report.on_disk.intersection(images))
        lines.append(f"  {c:>3}  {fold.name(c):16}{in_masks:>10}{len(images):>12}{on_disk:>10}")
    return "\n".join(lines)


def _main() -> None:
    data = config_argument(__doc__).Data
    place = ", ".join(data.mix) or data.data_root
    mistakes, notes = dict[str, None](), dict[str, None]()
    for subset in subsets(data):
        report = check(data, subset)
        for name, part in report.sets.items():
            log.info("%s", format_table(part, f"{name} {subset}".strip()))
        for line in report.mistakes:
            if line not in mistakes:
                log.info("  wrong: %s", line)
        mistakes |= dict.fromkeys(report.mistakes)  # both subsets may have the same files
        notes |= dict.fromkeys(report.notes)
    for line in notes:
        log.info("note: %s", line)
    if mistakes:
        raise UserError(f"{place}: {len(mistakes)} mistakes; correct what is listed above")
    log.info("%s: nothing is wrong", place)


if __name__ == "__main__":
    main(_main)
