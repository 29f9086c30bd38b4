"""Labeled examples of a class: an image, and a mask, boxes or points that mark the object in it.

Importing this file needs no torch, so that a wrong label is reported at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from model.constants import IGNORE
from util.data import weak
from util.data.image_io import (
    brighter_than,
    label_of,
    open_mask,
    read_image,
    read_reduced,
    reduce_by,
    reduction,
    resize_label,
    turned,
)
from util.predict.clip import read_frame, split_frame
from util.runtime.errors import UserError

Picture = np.ndarray | Image.Image | str | Path


@dataclass(frozen=True)
class Box:
    """A filled box in pixels: x0 <= x < x1 and y0 <= y < y1 count as the object.

    It means the same as `Data.ann_type: bbox` in training and testing.
    """

    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True)
class Points:
    """Points (x, y) on the object, in pixels; a disc around each counts as the object.

    The radius is 1/50 of the image's longer side, at least 3 pixels, as with
    `Data.ann_type: point`. There a disc is cut to the object's mask. Here the mask is not known:
    place the points well inside the object.
    """

    xy: Sequence[tuple[float, float]]


@dataclass(frozen=True, eq=False)
class Example:
    """An image with exactly one label: `mask`, `box`, `boxes` or `points`.

    Coordinates and masks are those of the upright image. Raises `UserError` if no label is given,
    or more than one, or one of another form.

    Attributes:
        image: a file, a frame of a clip (`clip.mp4@0` is the first), a PIL image or an array.
            Arrays are uint8 [H,W,3] (RGB), [H,W] or [H,W,4] (the alpha channel is dropped), or
            uint16 (the upper 8 bits are used). Files and PIL images are rotated as their EXIF
            orientation says.
        mask: a PNG file, a PIL image or an array [H,W] of the image's size: 0 is background, 255
            is ignored, any other value is the object. If there is no other value, 255 is the
            object, unless the mask has a palette.
        box: one box around the object, a `Box` or its four numbers.
        boxes: several boxes; their union is the object.
        points: points on the object, `Points` or pairs (x, y).
    """

    image: Picture
    mask: Picture | None = None
    box: Box | Sequence[float] | None = None
    boxes: Sequence[Box | Sequence[float]] | None = None
    points: Points | Sequence[tuple[float, float]] | None = None

    def __post_init__(self) -> None:
        labels = ("mask", "box", "boxes", "points")
        given = [name for name in labels if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise UserError(f"Example: give exactly one of {', '.join(labels)}; given {found}")

        try:
            if self.box is not None:
                object.__setattr__(self, "box", _as_box(self.box))
            if self.boxes is not None:
                object.__setattr__(self, "boxes", [_as_box(box) for box in self.boxes])
            if self.points is not None and not isinstance(self.points, Points):
                pairs = [(float(x), float(y)) for x, y in self.points]
                object.__setattr__(self, "points", Points(pairs))
        except (TypeError, ValueError):
            raise UserError(
                "Example: a box is (x0, y0, x1, y1), and points are pairs (x, y); write numbers"
            ) from None

    def load(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Read the image and draw its label; error messages call this example `name`.

        Returns the image (uint8 [H,W,3]), and 1 on the object, 255 where ignored, else 0 (uint8
        [H,W]). Both are those of `reduced_rgb`. Raises `UserError` if the image or the label cannot
        be used.
        """
        image, shape = reduced_rgb(self.image)
        label = self._label(shape, name)
        if not (label == 1).any():
            hint = "write 1, as 255 means ignored" if (label == IGNORE).any() else "mark the object"
            raise UserError(f"{name}: no pixel is labeled as the object; {hint}")
        return image, resize_label(label, image.shape[:2])

    def _label(self, shape: tuple[int, int], name: str) -> np.ndarray:
        if self.mask is not None:
            return _read_mask(self.mask, shape, name)
        if isinstance(self.points, Points):
            return _draw_points(self.points, shape, name)
        boxes = (self.boxes or []) if self.box is None else [self.box]
        return _draw_boxes([_as_box(box) for box in boxes], shape, name)


def _as_box(box: Box | Sequence[float]) -> Box:
    if isinstance(box, Box):
        return box
    x0, y0, x1, y1 = map(float, box)
    return Box(x0, y0, x1, y1)


def reduced_rgb(image: Picture) -> tuple[np.ndarray, tuple[int, int]]:
    """Return an image as `as_rgb` does, reduced if it is large, and its own height and width.

    A file is reduced while it is decoded (`util.data.image_io.read_reduced`), and other forms by
    the same factor.
    """
    if isinstance(image, (str, Path)) and not split_frame(image):
        return read_reduced(image)
    image = as_rgb(image)
    height, width = image.shape[:2]
    return reduce_by(image, reduction(height * width)), (height, width)


def as_rgb(image: Picture) -> np.ndarray:
    """Return an image in any of the forms of `Example.image` as RGB (uint8 [H,W,3]).

    Raises `UserError` if there is no such file, or it is no picture of 8 or 16 bits.
    """
    if isinstance(image, (str, Path)):
        frame = split_frame(image)
        return read_frame(*frame) if frame else read_image(image)
    if isinstance(image, Image.Image):
        keeps_values = image.mode.startswith("I;16") or image.mode in ("F", "I")
        image = turned(np.asarray(image if keeps_values else image.convert("RGB")), image)
    image = np.asarray(image)
    has_shape = image.ndim == 2 or image.ndim == 3 and image.shape[2] in (3, 4)
    if image.dtype not in (np.uint8, np.uint16) or not has_shape or not image.size:
        what = "an image must be uint8 or uint16, [H,W], [H,W,3] or [H,W,4]"
        raise UserError(f"{what}, given {image.dtype} {list(image.shape)}; convert it")
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    return np.ascontiguousarray(image[..., :3])


def _read_mask(mask: Picture, shape: tuple[int, int], name: str) -> np.ndarray:
    height, width = shape
    mask, called = (open_mask(mask), mask) if isinstance(mask, (str, Path)) else (mask, name)
    has_palette = isinstance(mask, Image.Image) and mask.mode == "P"
    if isinstance(mask, Image.Image):
        label = label_of(mask, str(called), wide=None)
        _require_dark_background(mask, str(called))
    else:
        label = np.asarray(mask)
    if label.ndim != 2 or label.dtype.kind not in "bui":
        what = f"{name}: a mask must be whole numbers or booleans [H,W]"
        raise UserError(f"{what}, given {label.dtype} {list(label.shape)}; convert it")
    if label.shape != shape:
        rotated = ", rotated as its EXIF orientation says" if label.shape == shape[::-1] else ""
        raise UserError(
            f"{name}: the mask is {label.shape[1]}x{label.shape[0]} pixels and its image "
            f"{width}x{height}{rotated}; give both the same size"
        )
    is_object, ignored = label != 0, label == IGNORE
    if not has_palette and not ignored.all() and np.array_equal(is_object, ignored):
        return is_object.astype(np.uint8)  # of 0 and 255 only, as many tools save a binary mask
    return np.where(ignored, np.uint8(IGNORE), is_object)


def _require_dark_background(mask: Image.Image, name: str) -> None:
    """Refuse a mask of two colors whose index 0, the background, is the brighter one."""
    if other := brighter_than(mask):
        what = f"index 0 of its palette, the background, is brighter than index {other}"
        remedy = "save it in grayscale with 0 for the background"
        command = f"in --support, name the object's index: MASK.png#0 or MASK.png#{other}"
        raise UserError(f"{name}: {what}; {remedy}, or {command}")


def _draw_boxes(boxes: Sequence[Box], shape: tuple[int, int], name: str) -> np.ndarray:
    height, width = shape
    drawn = np.zeros(shape, np.uint8)
    for box in boxes:
        corners = (box.x0, box.y0, box.x1, box.y1)
        x0, y0, x1, y1 = (round(c) if np.isfinite(c) else -1 for c in corners)
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            box_text = ",".join(f"{corner:g}" for corner in corners)
            what = f"the box {box_text} is empty or leaves the image of {width}x{height} pixels"
            raise UserError(f"{name}: {what}; write x0,y0,x1,y1 with x0 < x1 and y0 < y1")
        drawn |= weak.draw_box(shape, x0, y0, x1, y1)
    return drawn


def _draw_points(points: Points, shape: tuple[int, int], name: str) -> np.ndarray:
    height, width = shape
    for x, y in points.xy:
        if not (0 <= x < width and 0 <= y < height):
            what = f"{name}: the point {x:g},{y:g} is outside the image of {width}x{height} pixels"
            raise UserError(f"{what}; write x,y inside it")
    return weak.draw_discs(shape, [(int(x), int(y)) for x, y in points.xy])
