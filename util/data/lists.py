"""The fold lists (method 7): which images are queries, and which may be supports.

    python -m util.data.lists config/pascal/pascal_split0_resnet50.yaml [Section.key=value ...]

writes the lists of all folds of a config's data set to `<list_dir>/{train,val}_<fold>.json`, as
{"images": [...], "by_class": {...}}. COCO's are written by both fold conventions, a custom data set
has one fold. The lists are compared with the published ones; exit status 2 means a difference.
Training does not need the files: at every start it derives its list from the masks and compares it.
"""

from util.config.arguments import check_first, config_argument

if __name__ == "__main__":
    check_first(config_argument, __doc__)  # before NumPy and OpenCV: together they take a second

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from util import ROOT
from util.config import DataSection
from util.data.fss_list import find_fss_list, read_fss_list
from util.data.mixed import id_in_mix, open_source, with_name
from util.data.source import AnySource, subsets
from util.data.tables import Table, fingerprint, load_table
from util.folds import FOLDS, OWN_CLASSES, Fold, fold_of
from util.runtime.cli import main
from util.runtime.errors import UserError
from util.runtime.files import Outputs, require_not_held, unwritable
from util.runtime.log import log

EXPECTED = ROOT / "lists" / "expected.json"
"""Counts and checksums of the published lists, see `compare_with_published`."""

MIN_PIXELS = 2048
"""Pixels of a class, at the original size, that make an image a support of it."""


@dataclass(frozen=True)
class FoldList:
    """The images of one fold and subset.

    Attributes:
        images: ids of the queries, in order.
        by_class: class id -> the ids of `images` that may be its supports, in order.
        classes_of: id -> the classes that an episode may ask for on this query: the fold's base
            classes in training, its novel classes in validation, in its mask at any size.
        names: class names; class id = position + 1.
        min_pixels: pixels that a class needs in a support.
        parts: of a mix of several data sets, the list of each. An episode lies within one of them.
    """

    images: list[str]
    by_class: dict[int, list[str]]
    classes_of: dict[str, tuple[int, ...]]
    names: tuple[str, ...]
    min_pixels: int = MIN_PIXELS
    parts: tuple["FoldList", ...] = ()

    def name(self, class_id: int) -> str:
        """Return the name of a class id (from 1)."""
        return self.names[class_id - 1]


def fold_list(
    table: Table, fold: Fold, subset: str, min_pixels: int = MIN_PIXELS, drop_novel: bool = True
) -> FoldList:
    """Derive the list of a fold from what the masks contain; it equals the published one.

    - Training: images without any pixel of a novel class that have a base class of >= 2,048 pixels.
      Without `drop_novel`, also those with pixels of a novel class, as in PFENet and HSNet.
    - Validation: images that have a novel class of >= 2,048 pixels.

    An image is a support of each such class that has >= 2,048 pixels (`min_pixels`) in it.
    """
    listed = FoldList([], {c: [] for c in fold.classes(subset)}, {}, fold.names, min_pixels)
    novel = set(fold.novel)
    for image_id, pixels in table.items():
        if subset == "train" and drop_novel and not novel.isdisjoint(pixels):
            continue
        there = sorted(c for c in pixels if c in listed.by_class)
        large = [c for c in there if pixels[c] >= min_pixels]
        if large:
            listed.images.append(image_id)
            listed.classes_of[image_id] = tuple(there)
        for c in large:
            listed.by_class[c].append(image_id)
    return listed


def list_of(table: Table, data: DataSection, subset: str) -> tuple[FoldList, list[str]]:
    """Return the list of a config's `Data` section, and a line for each difference from others.

    It is that of `Data.list_dir`/fss_list if there is one (`util.data.fss_list`), compared with the
    list of `fold_list`. It is compared with the published one, too (`compare_with_published`).
    Raises `UserError` as `read_fss_list`, or if `Data.novel_in_training` contradicts it.
    """
    fold, drop = fold_of(data), data.novel_in_training == "drop"
    listed = fold_list(table, fold, subset, data.min_pixels, drop)
    report: list[str] = []
    if path := find_fss_list(data, subset):
        changed = data.min_pixels != MIN_PIXELS or not drop and subset == "train"
        if changed:
            key = "novel_in_training" if data.min_pixels == MIN_PIXELS else "min_pixels"
            remedy = "move it away, or remove that key"
            raise UserError(f"{path}: is a list for the default of Data.{key}; {remedy}")
        wanted = fold.classes(subset)
        images, by_class = read_fss_list(path, wanted, table)
        report = _compare_fss_list(path, listed, images, by_class)
        classes_of = {i: tuple(c for c in wanted if c in table[i]) for i in images}
        if none := [i for i in images if not classes_of[i]]:
            mistake = f"lists {none[0]}, whose mask has no class of this fold"
            raise UserError(f"{path}: {mistake}; correct the mask, or move the list away")
        listed = replace(listed, images=images, by_class=by_class, classes_of=classes_of)
    return listed, report + (compare_with_published(list_name(data, subset), listed) or [])


def _compare_fss_list(
    path: Path, ours: FoldList, images: list[str], by_class: dict[int, list[str]]
) -> list[str]:
    """Log that a list of BAM is used; return a line for each set of images that differs."""
    order = "the same order" if images == ours.images else "another order"
    pairs = [("", images, ours.images)]
    pairs += [(f", class {c} ({ours.name(c)})", by_class[c], ours.by_class[c]) for c in by_class]
    lines = []
    for name, theirs, own in pairs:
        only, missing = len(set(theirs) - set(own)), len(set(own) - set(theirs))
        if only or missing:
            lines.append(f"{path}{name}: {only} images that the masks do not give, {missing} less")
    verdict = "other images than" if lines else f"in {order}, the images that"
    log.info("%s: used unchanged: %s the masks give", path, verdict)
    return lines


def check_shots(fold: FoldList, shot: int) -> None:
    """Check that every class has enough images for K supports and a query, all different.

    Raises `UserError` naming the first class that has fewer than K + 1 images.
    """
    for c, images in fold.by_class.items():
        if len(images) <= shot:
            raise UserError(
                f"class {c} ({fold.name(c)}) has {len(images)} images of >= {fold.min_pixels}"
                f" pixels, {shot}-shot needs {shot + 1}; lower Data.shot, add images, or set"
                " Data.missing=skip to leave the class out"
            )


def restrict_to_images(fold: FoldList, images: list[str], shot: int) -> tuple[FoldList, list[str]]:
    """Restrict a list to some of its images, and to classes that still have enough of them.

    Leaves out classes with fewer than K + 1 images, then images without a remaining class, and so
    on until nothing changes. Returns a line for each class and for the images left out, too. Raises
    `UserError` if no image remains.
    """
    if not fold.images:
        names = ", ".join(map(fold.name, fold.by_class))
        what = f"no mask has {fold.min_pixels} pixels of a class that is wanted here ({names})"
        raise UserError(f"{what}; label such objects, or lower Data.min_pixels")
    if not images:
        what = f"none of the {len(fold.images)} images of the fold's list is on disk"
        raise UserError(f"{what}, {fold.images[0]} first; unpack them, or check Data.data_root")
    by_class, report, present = fold.by_class, [], len(images)
    while True:
        before = set(images)
        by_class = {c: [i for i in ids if i in before] for c, ids in by_class.items()}
        for c in [c for c, ids in by_class.items() if len(ids) <= shot]:
            report.append(
                f"left out class {c} ({fold.name(c)}):"
                f" {len(by_class.pop(c))} images, {shot}-shot needs {shot + 1}"
            )
        classes_of = {i: tuple(c for c in fold.classes_of[i] if c in by_class) for i in images}
        images = [i for i in images if classes_of[i]]
        if len(images) == len(before):
            break
    if len(images) < present:
        report.append(f"left out {present - len(images)} images: none of their classes remains")
    if not images:
        raise UserError(f"no class has enough images ({report[0]}); lower Data.shot, or add images")
    return replace(fold, images=images, by_class=by_class, classes_of=classes_of), report


def why_left_out(table: Table, listed: FoldList, data: DataSection, subset: str) -> list[str]:
    """Return a line for each reason why images with a mask are not in the list of a fold."""
    fold, left = fold_of(data), table.keys() - set(listed.images)
    drops = subset == "train" and data.novel_in_training == "drop"
    novel = sum(drops and not table[i].keys().isdisjoint(fold.novel) for i in left)
    kind = "novel" if subset == "val" and fold.novel else "base"
    reasons = {
        "they hold a novel class": novel,
        f"no {kind} class has {listed.min_pixels} pixels in them": len(left) - novel,
    }
    line = f"{subset}: left out {{}} of {len(table)} images: {{}}"
    return [line.format(count, reason) for reason, count in reasons.items() if count]


def list_on_disk(
    table: Table, data: DataSection, subset: str, source: AnySource
) -> tuple[FoldList, list[str]]:
    """Return the list of a config (`list_of`) as a run uses it, and a line for what was left out.

    With `Data.missing: skip`, it is restricted to what is on disk, and a data set of a mix that has
    nothing for it is left out. Of a custom data set, there is a line for all that is not used.
    Raises `UserError` if an image is absent otherwise, or a class has too few images for K shots.
    """
    listed, report = list_of(table, data, subset)
    parts = []
    for name, (part, own) in split_by_set(listed, table, source).items():
        lines = []
        if source.parts[name].data_set == "custom":
            lines = [*source.parts[name].unused(), *why_left_out(own, part, data, subset)]
        try:
            part, left_out = _usable(part, data, source)
        except UserError as error:
            if len(source.parts) == 1 or data.missing != "skip":
                raise
            part = replace(part, images=[], by_class={}, classes_of={})
            left_out = [f"left out: {error}"]
        parts.append(part)
        report += with_name(name, lines + left_out)
    return _join(parts), report


def split_by_set(
    listed: FoldList, table: Table, source: AnySource
) -> dict[str, tuple[FoldList, Table]]:
    """Return the list of each data set of a mix, with the classes that this set has, and its table.

    Without a mix, they are the given ones, and the name of the data set is ''.
    """
    parts = {}
    for name, numbers in source.tables.items():
        begin = id_in_mix(name, "")
        own = {i: pixels for i, pixels in table.items() if i.startswith(begin)}
        images = [i for i in listed.images if i in own]
        by_class = {
            c: [i for i in ids if i in own] for c, ids in listed.by_class.items() if c in numbers
        }
        classes_of = {i: listed.classes_of[i] for i in images}
        part = replace(listed, images=images, by_class=by_class, classes_of=classes_of)
        parts[name] = part, own
    return parts


def _join(parts: list[FoldList]) -> FoldList:
    """Return the list of a mix, made of those of its data sets; a single one is the list."""
    if len(parts) == 1:
        return parts[0]
    by_class: dict[int, list[str]] = {}
    for part in parts:
        for c, ids in part.by_class.items():
            by_class.setdefault(c, []).extend(ids)
    return replace(
        parts[0],
        images=[i for part in parts for i in part.images],
        by_class=dict(sorted(by_class.items())),
        classes_of={i: classes for part in parts for i, classes in part.classes_of.items()},
        parts=tuple(parts),
    )


def _usable(listed: FoldList, data: DataSection, source: AnySource) -> tuple[FoldList, list[str]]:
    """Return what a run can use of the list of one data set, and a line for what it leaves out."""
    images, report = source.find_images(listed.images, data.missing)
    if data.missing == "skip":
        listed, left_out = restrict_to_images(listed, images, data.shot)
        return listed, report + left_out
    check_shots(listed, data.shot)
    return listed, report


def compare_with_published(name: str, fold: FoldList) -> list[str] | None:
    """Compare a list with the published one of that name, such as `pascal/train_0` (`list_name`).

    `lists/expected.json` has the count and the CRC-32 of the sorted ids of PASCAL's lists and of
    their classes, and the counts of COCO's lists. Returns a line for the list and for each class
    that differs; None if none was published.
    """
    published = json.loads(EXPECTED.read_text(encoding="utf-8")).get(name)
    if published is None:
        return None
    lines = [_difference("", fold.images, published["images"])]
    for c, expected in published.get("by_class", {}).items():
        class_text = f", class {c} ({fold.name(int(c))})"
        lines.append(_difference(class_text, fold.by_class[int(c)], expected))
    return [f"{name}{line}" for line in lines if line]


def _difference(text: str, ids: list[str], expected: list[int]) -> str:
    """A line about ids that differ from the expected [count] or [count, CRC-32], or ''."""
    found = [len(ids), fingerprint(sorted(ids))][: len(expected)]
    if found == expected:
        return ""
    if found[0] == expected[0]:
        return f"{text}: {found[0]} images as published, but other ones"
    return f"{text}: {found[0]} images, {expected[0]} published"


def list_name(data: DataSection, subset: str) -> str:
    """Return the name of a config's list, such as `pascal/train_0`."""
    trained_on = f"_{data.trained_on}" if data.trained_on else ""
    consecutive = "" if data.use_split_coco else "_consecutive"
    with_novel = subset == "train" and data.novel_in_training == "background"
    folder = data.data_set if data.data_set in OWN_CLASSES else Path(data.list_dir).name
    return f"{folder}/{subset}_{data.split}{trained_on}{consecutive}{'_novel' * with_novel}"


def every_fold(data: DataSection) -> Iterator[DataSection]:
    """Yield the `Data` section once for every fold of its data set."""
    if data.data_set in OWN_CLASSES or data.trained_on == "other":
        yield data
        return
    conventions = (True, False) if "coco" in (data.data_set, data.trained_on) else (True,)
    for use_split_coco in conventions:
        for split in range(FOLDS):
            yield replace(data, split=split, use_split_coco=use_split_coco)


def write_list(outputs: Outputs, name: str, fold: FoldList) -> None:
    """Write the list of a fold.

    Raises `UserError` if something else is there, the folder holds a data set or a run, or it
    cannot be written.
    """
    text = json.dumps({"images": fold.images, "by_class": fold.by_class}) + "\n"
    path = outputs.folder / name
    if path.is_file() and path.read_bytes() == text.encode():
        return
    require_not_held(outputs.folder, outputs.option)
    outputs.claim([name])
    try:
        outputs.write(name, text.encode())
    except OSError as error:
        raise unwritable(path, error, "set Data.list_dir to a writable folder") from None


def write_lists(data: DataSection) -> list[str]:
    """Write the lists of every fold, reading each mask once.

    Returns a line for each difference from the published lists. Raises `UserError` if data is
    missing or broken, or a file of the name of a list is none that this command wrote.
    """
    differences, outputs = [], Outputs(data.list_dir, "lists", "Data.list_dir")
    for subset in subsets(data):
        table = load_table(open_source(data, subset), data.list_dir)
        for section in every_fold(data):
            fold, found = list_of(table, section, subset)
            name = list_name(section, subset)
            path = Path(data.list_dir) / f"{Path(name).name}.json"
            write_list(outputs, path.name, fold)
            lines = compare_with_published(name, fold)
            verdict = "NOT as published" if lines else "as published"
            if lines is None:
                verdict = "no published list to compare with"
            log.info("%s: %d images, %s", path, len(fold.images), verdict)
            differences += found
    return differences


def _main() -> None:
    differences = write_lists(config_argument(__doc__).Data)
    if differences:
        raise UserError("; ".join(differences))


if __name__ == "__main__":
    main(_main)
