"""Data sets whose masks are bright on dark, one file a class: FSS-1000 and PATNet's benchmark."""

import csv
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from util.data.prepare.archive import Archive, damaged
from util.data.prepare.pictures import (
    Picture,
    build_pictures,
    files_by_stem,
    find_folder,
    numbered,
    read_bright,
    warn_left_out,
    warn_of_others,
    warn_unlike,
)
from util.runtime.errors import UserError, refuse
from util.runtime.texts import read_lines

FSS_PARTS = {"trn": 520, "val": 240, "test": 240}
"""List of FSS-1000 -> how many classes it names."""

DEEPGLOBE = ("agriculture", "urban", "rangeland", "forest", "water", "barren")
"""Classes of PATNet's folders 1 to 6, by the colors in its code."""

ISIC = ("melanoma", "nevus", "seborrheic_keratosis")
"""Classes of ISIC 2018, as in PATNet's class_id.csv, in alphabetical order."""

_AGAIN = "unpack the download again"
_ISIC_IMAGES, _ISIC_MASKS = "ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"


def prepare_fss1000(
    given: Path, out: Path, copy: bool, workers: int, overwrite: bool = False
) -> None:
    """Prepare FSS-1000: a folder per class with 1.jpg to 10.jpg and 1.png to 10.png, and its lists.

    The lists name the classes of training (trn.txt), validation (val.txt) and test (test.txt or
    tst.txt). The test classes are novel in fold 0, those of validation in fold 1; those of training
    are the base classes of both. Raises `UserError` if something is wrong with the folder or `out`.
    """
    lists = {part: _read_list(given, part) for part in FSS_PARTS}
    listed = sum(lists.values(), ())
    ids = numbered(listed)
    mistakes = [f"its lists name {n!r} twice" for n, count in Counter(listed).items() if count > 1]
    root = _fss_root(given, set(ids))
    folders = [folder.name for folder in sorted(root.iterdir()) if folder.is_dir()]
    near = {name.casefold(): name for name in folders}
    pictures: dict[str, list[Picture]] = {}
    for name in dict.fromkeys(listed):
        if name in folders:
            pictures[name] = _fss_class(root / name, ids[name], mistakes)
        else:
            hint = near.get(name.casefold())
            hint = f", but {hint} is there" if hint else ""
            mistakes.append(f"its lists name {name!r}, which has no folder{hint}")
    refuse(f"--from {root}", mistakes, f"{_AGAIN}, or correct the names")
    others = [n for n in folders if n not in pictures and files_by_stem(root / n, ".jpg", ".jpeg")]
    warn_left_out(given, others, "class folders that no list names")
    warn_of_others(given, (root / name for name in pictures), ".jpg", ".jpeg", ".png")
    found = {f"classes in {part}.txt": len(names) for part, names in lists.items()}
    published = {f"classes in {part}.txt": count for part, count in FSS_PARTS.items()}
    found["images"], published["images"] = sum(map(len, pictures.values())), 10_000
    warn_unlike(given, found, published)
    by_subset = {"train.txt": lists["trn"], "val.txt": (*lists["test"], *lists["val"])}
    written: dict[str, Iterable[str]] = {
        name: [p.name for n in names for p in pictures[n]] for name, names in by_subset.items()
    }
    written |= {"base.txt": lists["trn"], "novel_0.txt": lists["test"], "novel_1.txt": lists["val"]}
    every = [picture for own in pictures.values() for picture in own]
    build_pictures(given, out, every, ids, written, copy, workers, overwrite)


def _read_list(given: Path, part: str) -> tuple[str, ...]:
    """Return the class names of a list, sorted as in HSNet's code."""
    names = [f"{part}.txt", *(["tst.txt"] if part == "test" else [])]
    places = [given / folder / name for folder in ("", "splits", "splits/fss") for name in names]
    path = next((place for place in places if os.path.lexists(place)), None)
    if path is None:
        remedy = "copy the lists of HSNet's data/splits/fss there"
        raise UserError(f"--from {given}: contains no {part}.txt or splits/{part}.txt; {remedy}")
    found = tuple(sorted(read_lines(path)))
    if not found:
        raise damaged(path, "names no class", "copy the list again")
    return found


def _fss_root(given: Path, classes: set[str]) -> Path:
    """Return the folder that holds most folders of these classes; the uppermost of several."""
    bare = {name.casefold() for name in classes}
    folders = Archive(given).folders() if given.is_dir() else iter(())
    held = {at: len(bare & {n.casefold() for n in os.listdir(given / at)}) for at in folders}
    if not any(held.values()):
        return find_folder(given, "FSS-1000", min(classes))
    return given / max(held, key=lambda at: held[at])


def _fss_class(folder: Path, class_id: int, mistakes: list[str]) -> list[Picture]:
    """Return the pictures of a class; add a line to `mistakes` for each that has no partner."""
    images, masks = files_by_stem(folder, ".jpg", ".jpeg"), files_by_stem(folder, ".png")
    for stem in sorted(images.keys() ^ masks.keys()):
        mistakes.append(f"{folder.name} has only one of {stem}.jpg and {stem}.png")
        images.pop(stem, None)
    # Sorted as text: 1, 10, 2, ..., the order of the queries in HSNet's code.
    return [
        _picture(f"{folder.name}_{stem}", path, {class_id: masks[stem]})
        for stem, path in images.items()
    ]


def _picture(name: str, path: Path, masks: dict[int, Path]) -> Picture:
    return Picture(name, path, partial(_bright, masks), (masks,))


def _bright(masks: Mapping[int, Path]) -> dict[int, np.ndarray]:
    return {class_id: read_bright(path) for class_id, path in masks.items()}


def prepare_isic(given: Path, out: Path, copy: bool, workers: int, overwrite: bool = False) -> None:
    """Prepare ISIC 2018 as in PATNet: three classes of skin lesions, all novel.

    The images are in the folders 1, 2 and 3 of `ISIC2018_Task1-2_Training_Input`, or beside each
    other there; then class_id.csv names their classes. Raises `UserError` if something is wrong
    with the folder or `out`.
    """
    root = find_folder(given, "ISIC 2018", _ISIC_IMAGES, _ISIC_MASKS)
    ids, images = numbered(ISIC), root / _ISIC_IMAGES
    masks = files_by_stem(root / _ISIC_MASKS, ".png")
    if all((images / str(class_id)).is_dir() for class_id in ids.values()):
        classes = {
            path: class_id
            for class_id in ids.values()
            for path in files_by_stem(images / str(class_id), ".jpg").values()
        }
        warn_of_others(given, (images / str(class_id) for class_id in ids.values()), ".jpg")
        unknown: list[str] = []
    else:
        named, found = _isic_classes(root), files_by_stem(images, ".jpg")
        classes = {path: ids[named[stem]] for stem, path in found.items() if stem in named}
        unknown = [stem for stem in found if stem not in named]
        absent = [name for name in named if name not in found]
        warn_left_out(given, absent, "lines of class_id.csv without an image")
        warn_of_others(given, [images], ".jpg")
    warn_left_out(given, unknown, "images that class_id.csv does not name")
    warn_of_others(given, [root / _ISIC_MASKS], ".png")
    pictures, unmasked = [], []
    for path, class_id in classes.items():
        if mask := masks.pop(f"{path.stem}_segmentation", None):
            pictures.append(_picture(path.stem, path, {class_id: mask}))
        else:
            unmasked.append(path.stem)
    warn_left_out(given, unmasked, "images without a mask")
    warn_left_out(given, masks, "masks without an image of a class")
    build_pictures(given, out, pictures, ids, _all_novel(ids), copy, workers, overwrite)


def _isic_classes(root: Path) -> dict[str, str]:
    path = root / "class_id.csv"
    if not os.path.lexists(path):
        what = f"--from {root}: {_ISIC_IMAGES} has no folders 1, 2, 3, and there is no class_id.csv"
        raise UserError(f"{what}; copy PATNet's data/isic/class_id.csv there")
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(read_lines(path), strict=True)]
    except csv.Error as error:
        raise damaged(path, f"no table of commas ({error})", "copy it again") from None
    named: dict[str, str] = {}
    mistakes = []
    header = 0 if rows and rows[0][1:2] and rows[0][1] in ISIC else 1
    for row in rows[header:]:
        name, kind = (*row, "", "")[:2]
        name = name.removesuffix(".jpg")
        if len(row) < 2:
            mistakes.append(f"the line {name!r} is not an image, a comma and its class")
        elif kind not in ISIC:
            mistakes.append(f"gives {name} the class {kind!r}, not one of {', '.join(ISIC)}")
        elif named.setdefault(name, kind) != kind:
            mistakes.append(f"lists {name} as {named[name]} and as {kind}")
    mistakes += [] if rows[header:] else ["names no image"]
    refuse(str(path), mistakes, "copy it again, or correct it")
    return named


def prepare_deepglobe(
    given: Path, out: Path, copy: bool, workers: int, overwrite: bool = False
) -> None:
    """Prepare DeepGlobe as cut and filtered by PATNet: six classes of land, all novel.

    Folder 1 to 6 of a class has `test/origin` with its tiles and `test/groundtruth` with their
    masks; a tile may be in several. Raises `UserError` if something is wrong with the folder or
    `out`.
    """
    ids = numbered(DEEPGLOBE)
    root = find_folder(given, "DeepGlobe", *(f"{i}/test/groundtruth" for i in ids.values()))
    tiles: dict[str, Path] = {}
    masks: dict[str, dict[int, Path]] = {}
    mistakes = []
    for class_id in ids.values():
        folder = find_folder(root / str(class_id) / "test", "DeepGlobe", "origin", "groundtruth")
        own = files_by_stem(folder / "groundtruth", ".png")
        for name, path in files_by_stem(folder / "origin", ".jpg").items():
            tiles.setdefault(name, path)
            if name in own:
                masks.setdefault(name, {})[class_id] = own.pop(name)
            else:
                mistakes.append(f"{path.relative_to(given)} has no mask {name}.png in groundtruth")
        warn_left_out(folder, own, "masks without a tile in origin")
        warn_of_others(given, [folder / "origin"], ".jpg")
        warn_of_others(given, [folder / "groundtruth"], ".png")
    refuse(f"--from {given}", mistakes, _AGAIN)
    pictures = [_picture(n, path, masks[n]) for n, path in tiles.items()]
    build_pictures(given, out, pictures, ids, _all_novel(ids), copy, workers, overwrite)


def prepare_chestx(
    given: Path, out: Path, copy: bool, workers: int, overwrite: bool = False
) -> None:
    """Prepare the chest X-rays as in PATNet: one class, the lung, which is novel.

    `CXR_png` has the images, `masks` a mask NAME_mask.png for NAME.png; others are left out, with a
    warning. Raises `UserError` if something is wrong with the folder or `out`.
    """
    root, ids = find_folder(given, "chest X-rays", "CXR_png", "masks"), numbered(("lung",))
    images, pictures = files_by_stem(root / "CXR_png", ".png"), []
    masks, mistakes = files_by_stem(root / "masks", ".png"), []
    for stem in [stem for stem in masks if stem.endswith("_mask")]:
        name, mask = stem.removesuffix("_mask"), masks.pop(stem)
        if name in images:
            pictures.append(_picture(name, images.pop(name), {1: mask}))
        else:
            mistakes.append(f"{mask.name} belongs to {name}.png, which CXR_png lacks")
    refuse(f"--from {root}", mistakes, _AGAIN)
    warn_left_out(given, masks, "masks whose name does not end in _mask.png")
    warn_left_out(given, images, "images without such a mask")
    warn_of_others(given, [root / "CXR_png", root / "masks"], ".png")
    build_pictures(given, out, pictures, ids, _all_novel(ids), copy, workers, overwrite)


def _all_novel(ids: Mapping[str, int]) -> dict[str, list[str]]:
    return {"novel_0.txt": list(ids)}
