"""PASCAL-Part from the annotations of Matcher and the pictures of VOC 2010."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from util.data.image_io import read_image
from util.data.prepare.archive import damaged
from util.data.prepare.pictures import (
    Picture,
    build_pictures,
    find_folder,
    numbered,
    warn_left_out,
    warn_unlike,
)
from util.data.prepare.shapes import decode_run_lengths
from util.runtime.errors import UserError
from util.runtime.progress import bar

FOLDS = ("animals", "indoor", "person", "vehicles")
"""Kinds of objects in the order of Matcher's folds."""

_LISTS = "all_obj_part_to_image.json"
_PARTS = "Annotations_Part_json_merged_part_classes"
_CLASSES = 56  # of all folds
_LEFT_OUT = "aeroplane+TAIL"  # by Matcher
_AGAIN = "download Matcher's pascal.zip again"


def prepare_pascal_part(
    given: Path, out: Path, copy: bool, workers: int, overwrite: bool = False
) -> None:
    """Prepare PASCAL-Part: parts of objects, each object cut out by its box as in Matcher.

    A class is a part of an object, such as `cat+HEAD`, that training and validation images have.
    Parts may overlap; each keeps all its pixels. Fold i holds out the parts of `FOLDS[i]`. `copy`
    changes nothing, as the images are cut out. Raises `UserError` if something is wrong with the
    folder or `out`.
    """
    root = find_folder(given, "PASCAL-Part", _LISTS, _PARTS, "JPEGImages")
    kinds, dropped, lists = _classes(root / _LISTS)
    warn_left_out(given, dropped, "parts that Matcher leaves out, or only one subset has")
    ids = numbered(name for names in kinds.values() for name in names)
    warn_unlike(given, {"classes": len(ids)}, {"classes": _CLASSES})
    written = {f"novel_{number}.txt": names for number, names in enumerate(kinds.values())}
    pictures: list[Picture] = []
    partless: list[str] = []
    for subset, images in lists.items():
        first = len(pictures)
        with bar(len(images), f"reading annotations of {subset}") as progress:
            for image_id in images:
                own, without = _objects(root, image_id, ids)
                pictures, partless = pictures + own, partless + without
                progress.update()
        written[f"{subset}.txt"] = [picture.name for picture in pictures[first:]]
    warn_left_out(given, partless, "objects without a part of these classes")
    build_pictures(given, out, pictures, ids, written, copy, workers, overwrite)


def _classes(path: Path) -> tuple[dict[str, list[str]], list[str], dict[str, list[str]]]:
    """Return kind of object -> its classes, the classes left out, and subset -> image ids."""
    content, dropped = _json(path), list[str]()
    kinds: dict[str, list[str]] = {}
    lists: dict[str, dict[str, None]] = {"train": {}, "val": {}}
    try:
        for kind in FOLDS:
            kinds[kind] = []
            for thing, entry in content[kind]["object"].items():
                for part, images in entry["part"].items():
                    name = f"{thing}+{part}"
                    used = images["train"] and images["val"] and name != _LEFT_OUT
                    (kinds[kind] if used else dropped).append(name)
                    for subset in lists if used else ():
                        lists[subset].update(dict.fromkeys(map(_plain, images[subset])))
    except (KeyError, TypeError, AttributeError):
        what = f"is no table: kind ({', '.join(FOLDS)}) -> object -> part -> train, val -> images"
        raise damaged(path, what, _AGAIN) from None
    if both := sorted(lists["train"].keys() & lists["val"].keys()):
        raise damaged(path, f"lists {both[0]} for train and for val", _AGAIN)
    return kinds, dropped, {subset: sorted(images) for subset, images in lists.items()}


def _plain(name: str) -> str:
    if "/" in name or "\0" in name:
        raise UserError(f"{_LISTS}: {name!r} is no image name; {_AGAIN}")
    return name


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise damaged(path, f"no such file, but {_LISTS} lists it", _AGAIN) from None
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, f"not a complete JSON file ({error})", _AGAIN) from None


def _objects(root: Path, image_id: str, ids: dict[str, int]) -> tuple[list[Picture], list[str]]:
    """Return an image's objects that have a part of these classes, and the names of the others."""
    path, picture = root / _PARTS / f"{image_id}.json", root / "JPEGImages" / f"{image_id}.jpg"
    if not picture.is_file():
        remedy = "unpack VOCtrainval_03-May-2010.tar there"
        raise damaged(picture, "no such picture, but PASCAL-Part lists it", remedy)
    found, without = [], []
    annotation = _json(path)
    try:
        for number, thing in enumerate(annotation["object"]):
            parts: dict[int, list[Any]] = {}
            for part in thing["parts"]:
                if class_id := ids.get(f"{thing['name']}+{part['name']}"):
                    parts.setdefault(class_id, []).extend(part["mask"])
            name, box = f"{image_id}_{number}", thing["bndbox"]
            if not parts:
                without.append(name)
                continue
            corners = tuple(int(float(box[key])) for key in ("xmin", "ymin", "xmax", "ymax"))
            content, draw = (
                partial(_cut_out, picture, corners),
                partial(_draw, path, parts, corners),
            )
            found.append(Picture(name, content, draw, (picture, path)))
    except (KeyError, TypeError, ValueError, AttributeError):
        what = "is no annotation: object -> name, bndbox, parts with their name and mask"
        raise damaged(path, what, _AGAIN) from None
    return found, without


Corners = tuple[int, ...]
"""xmin, ymin, xmax, ymax of a box in pixels; like Matcher, we leave out the last row and column."""


def _cut(array: np.ndarray, corners: Corners, path: Path) -> np.ndarray:
    left, top, right, bottom = corners
    found = array[max(0, top) : bottom, max(0, left) : right]
    if not found.size:
        raise damaged(path, f"has the box {corners}, which holds no pixel of the image", _AGAIN)
    return found


def _cut_out(picture: Path, corners: Corners) -> bytes:
    part = _cut(read_image(picture), corners, picture)
    return cv2.imencode(".png", np.ascontiguousarray(part[..., ::-1]))[1].tobytes()


def _draw(path: Path, parts: dict[int, list[Any]], corners: Corners) -> dict[int, np.ndarray]:
    drawn = {}
    for class_id, codes in parts.items():
        masks = [_decode(code, path) for code in codes]
        drawn[class_id] = _cut(np.any(masks, axis=0), corners, path)
    return drawn


def _decode(code: Any, path: Path) -> np.ndarray:
    try:
        height, width = code["size"]
        return decode_run_lengths(code, height, width)
    except UserError as error:
        raise damaged(path, str(error), _AGAIN) from None
    except (TypeError, KeyError, ValueError):
        raise damaged(path, "holds a mask that is no run-length code", _AGAIN) from None
