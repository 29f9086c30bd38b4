"""LVIS-92i from the pickled annotations of Matcher and the pictures of COCO 2017."""

import pickle
from collections import OrderedDict
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from util.data.image_io import image_size
from util.data.prepare.archive import damaged
from util.data.prepare.pictures import (
    Picture,
    build_pictures,
    find_folder,
    numbered,
    warn_left_out,
    warn_unlike,
)
from util.data.prepare.shapes import draw_classes, read_polygon
from util.runtime.errors import UserError, refuse
from util.runtime.progress import bar

FOLDS = 10
_CLASSES = 92  # of a fold
_AGAIN = "download Matcher's lvis.zip again"

Annotations = dict[int, dict[str, list[Any]]]
"""Category id -> name of a picture -> the polygons and run-length codes of its objects."""


class _PlainUnpickler(pickle.Unpickler):
    """Reads containers, numbers and texts only: a pickle could run any code otherwise."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise pickle.UnpicklingError(f"holds {module}.{name}, which is no plain data")


def prepare_lvis(given: Path, out: Path, copy: bool, workers: int, overwrite: bool = False) -> None:
    """Prepare LVIS-92i: `lvis_train.pkl`, `lvis_val.pkl` and `coco/{train,val}2017` of a folder.

    A class may overlap others, and keeps all its pixels. The ten folds are those of Matcher: of the
    categories with more than one picture in `lvis_val.pkl`, in its order, fold i has the i-th of
    every ten, leaving out what remains. Raises `UserError` if something is wrong with the folder or
    `out`.
    """
    root = find_folder(given, "LVIS-92i", "lvis_train.pkl", "lvis_val.pkl", "coco")
    parts = {subset: _read(root / f"lvis_{subset}.pkl") for subset in ("train", "val")}
    names = {i: f"category_{i}" for i in sorted(set(parts["train"]) | set(parts["val"]))}
    ids = numbered(names.values())
    tested = [names[i] for i, pictures in parts["val"].items() if len(pictures) > 1]
    rounds = len(tested) // FOLDS
    if not rounds:
        what = f"has {len(tested)} categories of more than one picture, {FOLDS} folds need {FOLDS}"
        raise damaged(root / "lvis_val.pkl", what, _AGAIN)
    lists = {f"novel_{i}.txt": tested[i : FOLDS * rounds : FOLDS] for i in range(FOLDS)}
    warn_left_out(given, tested[FOLDS * rounds :], "categories that no fold of ten holds")
    single = [names[i] for i, pictures in parts["val"].items() if len(pictures) < 2]
    warn_left_out(given, single, "categories with one picture in lvis_val.pkl from the folds")
    warn_unlike(given, {"classes in a fold": rounds}, {"classes in a fold": _CLASSES})
    pictures: list[Picture] = []
    mistakes: list[str] = []
    for subset, annotations in parts.items():
        objects: dict[str, dict[int, list[Any]]] = {}
        for category, own in annotations.items():
            for name, shapes in own.items():
                objects.setdefault(name, {})[ids[names[category]]] = shapes
        lists[f"{subset}.txt"] = [PurePosixPath(name).stem for name in objects]
        for name, shapes_of in objects.items():
            path, table = root / "coco" / name, root / f"lvis_{subset}.pkl"
            if not path.is_file():
                mistakes.append(f"{name}: no such picture, but {table.name} lists it")
            pictures.append(Picture(path.stem, path, partial(_draw, path, shapes_of), (table,)))
    remedy = "unpack train2017.zip and val2017.zip of COCO into coco"
    refuse(f"--from {root}", mistakes, remedy)
    build_pictures(given, out, pictures, ids, lists, copy, workers, overwrite)


def _read(path: Path) -> Annotations:
    try:
        with path.open("rb") as file:
            loaded = _PlainUnpickler(file).load()
    except Exception as error:  # pickle raises a dozen types for damaged files
        text = " ".join(str(error).split()) or type(error).__name__
        raise damaged(path, f"cannot be read as a pickle of plain data ({text})", _AGAIN) from None
    found: Annotations = {}
    try:
        with bar(len(loaded), f"reading {path.name}") as progress:
            for category, pictures in loaded.items():
                found[int(category)] = {
                    _checked(name): [_shape(a["segmentation"]) for a in info["annotations"]]
                    for name, info in pictures.items()
                }
                progress.update()
    except UserError as error:
        raise damaged(path, str(error), _AGAIN) from None
    except (AttributeError, KeyError, TypeError, ValueError):
        what = "is no table: category -> picture -> annotations with their segmentation"
        raise damaged(path, what, _AGAIN) from None
    return found


def _checked(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise UserError(f"picture {name!r} lies outside the folder")
    return name


def _shape(shape: Any) -> Any:
    """Return a checked shape: polygons as arrays, a run-length code with its counts as text."""
    if isinstance(shape, list):
        return [read_polygon(points, "an annotation") for points in shape]
    counts = shape["counts"]
    return {**shape, "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


def _draw(path: Path, shapes_of: dict[int, list[Any]]) -> dict[int, np.ndarray]:
    """Return where each class is (bool [H,W]); polygons are filled as those of COCO here."""
    height, width = image_size(path)
    shapes = ((class_id, shape) for class_id, own in shapes_of.items() for shape in own)
    try:
        return draw_classes(shapes, height, width)
    except UserError as error:
        raise damaged(path, f"has another size than its annotations: {error}", _AGAIN) from None
