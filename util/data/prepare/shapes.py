"""Shapes of objects: polygons and run-length codes of COCO, checked and drawn into masks."""

import re
from collections.abc import Iterable
from typing import Any, TypedDict

import cv2
import numpy as np

from util.folds import is_wide
from util.runtime.errors import UserError

_WHOLE = re.compile(r"\s*(-?[0-9]{1,100})(?:\.0*)?\s*")
_FARTHEST = 1e6  # pixels: OpenCV draws polygons that leave the image, within limits

Shape = list[Any] | dict[str, Any]
"""Polygons (each x, y, x, y, ..., or float64 [N,2] once checked) and run-length codes, or one."""


class Annotation(TypedDict):
    """What drawing needs of an object."""

    category_id: int | str
    iscrowd: int
    segmentation: Shape


def whole(value: Any) -> Any:
    """Return 7 for 7.0, "7" and "7.0", as some tools write numbers; anything else as it is."""
    if type(value) is float and value.is_integer():
        return int(value)
    found = _WHOLE.fullmatch(value) if type(value) is str else None
    return int(found[1]) if found else value


def read_polygon(points: Any, called: str) -> np.ndarray:
    """Return a polygon (float64 [N,2]) of x, y, x, y, ...; `called` names its annotation.

    Raises `UserError` if it is none.
    """
    # Check Python's types first: NumPy would read "1" or true as numbers.
    if not isinstance(points, list) or not {type(v) for v in points} <= {int, float}:
        raise UserError(f"{called} has a polygon that is not a list of numbers")
    if len(points) % 2 or len(points) < 6:
        raise UserError(f"{called} has a polygon of {len(points)} numbers, not an even 6 or more")
    array = np.array(points, np.float64).reshape(-1, 2)
    if not (np.abs(array) <= _FARTHEST).all():  # false for NaN too
        raise UserError(f"{called} has a polygon with an impossible coordinate")
    return array


def decode_run_lengths(code: dict[str, Any], height: int, width: int) -> np.ndarray:
    """Decode COCO's run-length code: return whether a pixel is in the mask (bool [height, width]).

    pycocotools (2.0.11) decodes them too, 14 times as fast, but does not check them: it returns
    random pixels for a code that is empty, too short, or of other characters.

    `code` holds `size` [height, width] and `counts`: the lengths in pixels of runs down the
    columns, in turn outside and inside the mask, as a list or packed into a string. Raises
    `UserError` if it is not such a code, or has another size.
    """
    size, counts = code.get("size"), code.get("counts")
    if not isinstance(size, list) or [whole(side) for side in size] != [height, width]:
        raise UserError(f"its run-length code has size {size!r}, the image [{height}, {width}]")
    if isinstance(counts, str):
        counts = _unpack(counts)
    lengths = [whole(length) for length in counts] if isinstance(counts, list) else [-1]
    if not all(type(v) is int and v >= 0 for v in lengths) or sum(lengths) != height * width:
        raise UserError(f"its run-length code does not fill {height}x{width} pixels")
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(width, height).T


def _unpack(packed: str) -> list[int]:
    """Unpack lengths: 5 bits a character, lowest first, plus 32 if more follow.

    From the fourth length on, the difference to the length before the previous one is packed.
    """
    counts: list[int] = []
    value = shift = 0
    for character in packed:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise UserError(f"its run-length code has the character {character!r}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:  # the sign
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise UserError("its run-length code is cut off")
    return counts


def rasterize(
    annotations: list[Annotation],
    class_of: dict[Any, int],
    height: int,
    width: int,
    crowds: bool = False,
) -> np.ndarray:
    """Draw an image's mask of class ids, 0 for background ([height, width] in pixels).

    It is uint8, or int16 for more than 254 classes.

    The rule of the published lists (method section 7): annotations in file order, later over
    earlier; crowds left out, unless `crowds` is set; each polygon filled by OpenCV with its points
    cut to int32. pycocotools draws polygons thinner, which gives other lists. `class_of` is that of
    `Instances`.
    """
    drawn = (a for a in annotations if crowds or not a["iscrowd"])
    shapes = ((class_of[a["category_id"]], a["segmentation"]) for a in drawn)
    return draw_in_order(shapes, height, width, np.int16 if is_wide(len(class_of)) else np.uint8)


def draw_in_order(
    shapes: Iterable[tuple[int, Shape]], height: int, width: int, kind: type
) -> np.ndarray:
    """Return zeros (`kind` [H,W]) with shapes, later ones over earlier ones, of these values."""
    mask: np.ndarray = np.zeros((height, width), kind)
    for value, shape in shapes:
        draw_shape(mask, shape, value)
    return mask


def draw_shape(mask: np.ndarray, shape: Shape, value: int) -> None:
    """Draw polygons or a run-length code into a mask [H,W] as `rasterize` does.

    Raises `UserError` if the code is none, or has another size.
    """
    if isinstance(shape, dict):
        mask[decode_run_lengths(shape, *mask.shape)] = value
        return
    for polygon in shape:
        if isinstance(polygon, dict):
            draw_shape(mask, polygon, value)
            continue
        points = np.array(polygon, np.float64).reshape(-1, 1, 2).astype(np.int32)
        cv2.fillPoly(mask, [points], value)


def draw_classes(
    shapes: Iterable[tuple[int, Shape]], height: int, width: int
) -> dict[int, np.ndarray]:
    """Return where each class is (class id -> bool [height, width]), of pairs of id and shape."""
    masks: dict[int, np.ndarray] = {}
    for class_id, shape in shapes:
        draw_shape(masks.setdefault(class_id, np.zeros((height, width), np.uint8)), shape, 1)
    return {class_id: mask == 1 for class_id, mask in masks.items()}
