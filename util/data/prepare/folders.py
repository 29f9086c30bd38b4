"""Data sets whose masks are bright on dark, one file a class: FSS-1000 and PATNet's benchmark."""

import csv
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from util.data.prepare.archive import damaged
from util.data.prepare.pictures import (
    Picture,
    build_pictures,
    files_by_stem,
    find_folder,
    numbered,
    read_bright,
    warn_left_out,
    warn_unlike,
)
from util.runtime.errors import UserError
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
    ids = numbered(sum(lists.values(), ()))
    if len({name for names in lists.values() for name in names}) < sum(map(len, lists.values())):
        raise UserError(f"--from {given}: its lists name a class twice; copy the lists again")
    root = find_folder(given, "FSS-1000", lists["trn"][0])
    pictures = {n: _fss_class(root / n, ids[n]) for names in lists.values() for n in names}
    folders = [folder.name for folder in sorted(root.iterdir()) if folder.is_dir()]
    others = [n for n in folders if n not in pictures and files_by_stem(root / n, ".jpg", ".jpeg")]
    warn_left_out(given, others, "class folders that no list names")
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
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        remedy = "copy the lists of HSNet's data/splits/fss there"
        raise UserError(f"--from {given}: contains no {part}.txt or splits/{part}.txt; {remedy}")
    found = tuple(sorted(read_lines(path)))
    if not found:
        raise damaged(path, "names no class", "copy the list again")
    return found


def _fss_class(folder: Path, class_id: int) -> list[Picture]:
    if not folder.is_dir():
        raise damaged(folder, "no such folder, but a list names this class", _AGAIN)
    images, masks = files_by_stem(folder, ".jpg", ".jpeg"), files_by_stem(folder, ".png")
    if odd := sorted(images.keys() ^ masks.keys()):
        raise damaged(folder, f"has only one of {odd[0]}.jpg and {odd[0]}.png", _AGAIN)
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
        unknown: list[str] = []
    else:
        named = _isic_classes(root)
        classes = {p: ids[named[s]] for s, p in files_by_stem(images, ".jpg").items() if s in named}
        unknown = [stem for stem in files_by_stem(images, ".jpg") if stem not in named]
    warn_left_out(given, unknown, "images that class_id.csv does not name")
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
    if not path.is_file():
        what = f"--from {root}: {_ISIC_IMAGES} has no folders 1, 2, 3, and there is no class_id.csv"
        raise UserError(f"{what}; copy PATNet's data/isic/class_id.csv there")
    rows = [row[:2] for row in csv.reader(read_lines(path))]
    named = {row[0].strip(): row[-1].strip() for row in rows[1:]}
    if wrong := sorted(set(named.values()) - set(ISIC)):
        raise damaged(path, f"names the class {wrong[0]!r}, not one of {', '.join(ISIC)}")
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
    for class_id in ids.values():
        folder = find_folder(root / str(class_id) / "test", "DeepGlobe", "origin", "groundtruth")
        own = files_by_stem(folder / "groundtruth", ".png")
        for name, path in files_by_stem(folder / "origin", ".jpg").items():
            if name not in own:
                raise damaged(path, f"has no mask {folder / 'groundtruth' / name}.png", _AGAIN)
            tiles.setdefault(name, path)
            masks.setdefault(name, {})[class_id] = own.pop(name)
        warn_left_out(folder, own, "masks without a tile in origin")
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
    masks = files_by_stem(root / "masks", ".png")
    for stem in [stem for stem in masks if stem.endswith("_mask")]:
        name, mask = stem.removesuffix("_mask"), masks.pop(stem)
        if name not in images:
            raise damaged(mask, f"belongs to {name}.png, which {root / 'CXR_png'} lacks", _AGAIN)
        pictures.append(_picture(name, images.pop(name), {1: mask}))
    warn_left_out(given, masks, "masks whose name does not end in _mask.png")
    warn_left_out(given, images, "images without such a mask")
    build_pictures(given, out, pictures, ids, _all_novel(ids), copy, workers, overwrite)


def _all_novel(ids: Mapping[str, int]) -> dict[str, list[str]]:
    return {"novel_0.txt": list(ids)}
