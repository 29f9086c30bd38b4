"""Weak labels: replace the mask of a support by a box, a scribble or a point.

An annotation depends only on the mask, the class and the image id, so a support has the same one in
every episode. An object is an 8-connected part of the mask. Every object gets a box, as published.
Objects below `MIN_OBJECT_PIXELS` get no scribble and no point, unless all objects are that small.
"""

import zlib
from collections.abc import Iterable

import cv2
import numpy as np

from model.constants import IGNORE

MIN_OBJECT_PIXELS = 64
"""Pixels of the smallest object that an annotator would click on."""

STROKE_RADIUS = 0.02
"""Radius of a point or a scribble's pen over the longer side of the image; at least 3 pixels."""

SCRIBBLE_TURNS = 3
"""Places that a scribble visits after its start."""


def annotate(label: np.ndarray, class_id: int, kind: str, image_id: str) -> np.ndarray:
    """Replace the mask of `class_id` in a label [H,W] by a weak annotation of that kind.

    - `bbox`: the bounding box of every object, filled. As published, it is one pixel wider and
      higher than the object, to the right and below.
    - `point`: a disc in every object. Its center is drawn from the half of the object's pixels that
      are deepest inside.
    - `scribble`: in every object a line through `SCRIBBLE_TURNS` + 1 such centers, with a round
      pen.
    - `mask`: the label as it is.

    Discs and scribbles are cut to their object. A box covers other classes; pixels of 255 keep 255
    inside it, too (as published). The class's pixels outside the annotation become background.
    Image id and class seed the random places.
    """
    if kind == "mask":
        return label
    rng = np.random.default_rng((zlib.crc32(image_id.encode()), class_id))
    mask = (label == class_id).astype(np.uint8)
    drawn = np.zeros_like(mask)
    height, width = mask.shape
    for part in _objects(mask, 1 if kind == "bbox" else MIN_OBJECT_PIXELS):
        if kind == "bbox":
            x, y, box_width, box_height = cv2.boundingRect(part)
            drawn |= draw_box((height, width), x, y, x + box_width + 1, y + box_height + 1)
        else:
            drawn |= _draw_stroke(part, 1 + SCRIBBLE_TURNS * (kind == "scribble"), rng)
    other = np.where(label == class_id, 0, label)
    return np.where((drawn == 1) & (label != IGNORE), class_id, other).astype(label.dtype)


def draw_box(shape: tuple[int, int], x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    """Return a filled box, x1 and y1 excluded (uint8 [H,W] of 0 and 1)."""
    drawn = np.zeros(shape, np.uint8)
    drawn[y0:y1, x0:x1] = 1
    return drawn


def draw_discs(shape: tuple[int, int], points: Iterable[tuple[int, int]]) -> np.ndarray:
    """Return a disc around each of the points (x, y) (uint8 [H,W] of 0 and 1)."""
    drawn = np.zeros(shape, np.uint8)
    for x, y in points:
        cv2.circle(drawn, (int(x), int(y)), _radius(shape), 1, thickness=-1)
    return drawn


def _radius(shape: tuple[int, ...]) -> int:
    return max(3, round(STROKE_RADIUS * max(shape)))


def _objects(mask: np.ndarray, least: int) -> list[np.ndarray]:
    """The objects of a mask (uint8 [H,W] of 0 and 1 each).

    Those below `least` pixels only if all are that small.
    """
    count, parts, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    sizes = statistics[1:, cv2.CC_STAT_AREA]
    smallest = least if (sizes >= least).any() else 1
    return [(parts == n).astype(np.uint8) for n in range(1, count) if sizes[n - 1] >= smallest]


def _draw_stroke(part: np.ndarray, places: int, rng: np.random.Generator) -> np.ndarray:
    """A line with a round pen through random places deep inside a part, cut to the part."""
    # Pad with zeros: the border of the image is a border of the object, too.
    depth = cv2.distanceTransform(np.pad(part, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    inside = depth[part == 1]
    deep = np.flatnonzero((depth >= np.median(inside)) & (part == 1))
    ys, xs = np.unravel_index(rng.choice(deep, places), part.shape)
    points = np.stack([xs, ys], axis=1).astype(np.int32)
    height, width = part.shape
    drawn = draw_discs((height, width), points.tolist())
    pen = 2 * _radius(part.shape) + 1
    cv2.polylines(drawn, [points.reshape(-1, 1, 2)], False, 1, thickness=pen)
    return drawn & part
