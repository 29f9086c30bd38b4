"""Weak labels: what a support's mask becomes when only a box, a scribble or a point is drawn.

All of it is a function of the mask and a generator: the same support gets the same annotation in
every episode. An object is an 8-connected part of the mask; parts below `SMALLEST` pixels get
nothing unless all parts are that small.
"""

import zlib
from collections.abc import Iterable

import cv2
import numpy as np

SMALLEST = 64
"""Pixels of the smallest part that an annotator would click on."""

STROKE = 0.02
"""Radius of points and of a scribble's pen over the longer side of the image, at least 3 pixels."""

TURNS = 3
"""A scribble visits so many places after its start."""


def annotate(label: np.ndarray, class_id: int, kind: str, image_id: str) -> np.ndarray:
    """Replaces a class's mask in a label by a weak annotation of it.

    - `bbox`: the bounding box of every object, filled (as published).
    - `point`: a disc in every object, at a place drawn from the half of its pixels that lie
      deepest inside; it does not leave the object.
    - `scribble`: in every object a line through `TURNS` + 1 such places, with a round pen; it does
      not leave the object.

    Args:
        label: class ids (uint8 [H,W]).
        class_id: the class.
        kind: one of `ANNOTATION_KINDS`; 'mask' gives the label back.
        image_id: seeds the choice, together with the class.

    Returns:
        A label in which pixels outside the annotation that had the class are background (uint8
        [H,W]); 255 stays where no box covers it.
    """
    if kind == "mask":
        return label
    rng = np.random.default_rng((zlib.crc32(image_id.encode()), class_id))
    mask = (label == class_id).astype(np.uint8)
    drawn = np.zeros_like(mask)
    for part in _objects(mask):
        if kind == "bbox":
            x, y, width, height = cv2.boundingRect(part)
            drawn |= box(mask.shape, x, y, x + width, y + height)
        else:
            drawn |= _stroke(part, 1 + TURNS * (kind == "scribble"), rng)
    other = np.where(label == class_id, 0, label)
    return np.where(drawn == 1, class_id, other).astype(np.uint8)


def box(shape: tuple[int, int], x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    """A filled box, without its right and lower edge x1 and y1 (uint8 [H,W] of 0 and 1)."""
    drawn = np.zeros(shape, np.uint8)
    drawn[y0:y1, x0:x1] = 1
    return drawn


def discs(shape: tuple[int, int], points: Iterable[tuple[int, int]]) -> np.ndarray:
    """What a round pen leaves at each of the points (x, y) (uint8 [H,W] of 0 and 1)."""
    drawn = np.zeros(shape, np.uint8)
    for x, y in points:
        cv2.circle(drawn, (int(x), int(y)), _radius(shape), 1, thickness=-1)
    return drawn


def _radius(shape: tuple[int, int]) -> int:
    return max(3, round(STROKE * max(shape)))


def _objects(mask: np.ndarray) -> list[np.ndarray]:
    """The mask's parts (uint8 [H,W] of 0 and 1 each), small ones only if there is no other."""
    count, parts, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    sizes = statistics[1:, cv2.CC_STAT_AREA]
    smallest = SMALLEST if (sizes >= SMALLEST).any() else 1
    return [(parts == n).astype(np.uint8) for n in range(1, count) if sizes[n - 1] >= smallest]


def _stroke(part: np.ndarray, places: int, rng: np.random.Generator) -> np.ndarray:
    """A line with a round pen through random places deep inside a part, cut to the part."""
    # The image's edge is an edge of the object too: a border of zeros stands around it.
    depth = cv2.distanceTransform(np.pad(part, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    inside = depth[part == 1]
    deep = np.flatnonzero((depth >= np.median(inside)) & (part == 1))
    ys, xs = np.unravel_index(rng.choice(deep, places), part.shape)
    points = np.stack([xs, ys], axis=1).astype(np.int32)
    drawn = discs(part.shape, points.tolist())
    width = 2 * _radius(part.shape) + 1
    cv2.polylines(drawn, [points.reshape(-1, 1, 2)], False, 1, thickness=width)
    return drawn & part
