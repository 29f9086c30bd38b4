"""Read images and masks of class ids."""

import io
import os
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from util.runtime.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""How the names of pictures end, in upper or lower case."""


class UnreadableFile(UserError):
    """An image or its mask is missing or damaged; the message names the file."""


def read_image(path: str | Path) -> np.ndarray:
    """Read a picture as RGB (uint8 [H,W,3]), rotated as its EXIF orientation says.

    Gray is repeated three times, an alpha channel is dropped, and 16 bits become their upper 8.
    Raises `UnreadableFile` if the file is missing or no picture.
    """
    if not os.path.isfile(path):
        raise UnreadableFile(f"{path}: no such image; check the path (of data: Data.data_root)")
    try:
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    except cv2.error:  # the header claims more pixels than OpenCV accepts
        image = None
    if image is None:
        raise UnreadableFile(f"{path}: cannot be read as an image; fetch or copy the file again")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def image_size(path: str | Path) -> tuple[int, int]:
    """Return height and width of a picture, rotated as its EXIF orientation says, from its header.

    Raises `UnreadableFile` as `read_image`, but for damage behind the header.
    """
    try:
        with Image.open(path) as picture:
            is_rotated = picture.getexif().get(0x0112, 1) >= 5 and picture.format != "TIFF"
            return picture.size if is_rotated else (picture.height, picture.width)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        what = f"{path}: cannot be read as an image ({error})"
        raise UnreadableFile(f"{what}; fetch or copy the file again") from None


MAX_ID = np.iinfo(np.int16).max
"""The largest class id."""


def read_label(path: str | Path, content: bytes | None = None, wide: bool = False) -> np.ndarray:
    """Read a mask of class ids (uint8 [H,W]), rotated as its EXIF orientation says.

    A pixel's class id is its palette INDEX in a palette PNG (VOC), its value in a grayscale PNG
    (COCO). OpenCV is not used: its grayscale mode turns a palette into luminance.

    With `wide`, for a data set of more than 254 classes, a grayscale PNG of 16 bits is a mask, too,
    and the result is int16. 255 is no class in either.

    If `content` is given, such as a member of an archive, these bytes are read, and `path` only
    names them in messages. Raises `UnreadableFile` if the file is missing, damaged or holds no
    class ids (RGB, 16 bits without `wide`, ...).
    """
    kinds = ("PNG of mode P", "PNG of mode L", *(("PNG of mode I;16",) if wide else ()))
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as mask:
            kind = f"{mask.format} of mode {mask.mode}"
            label = np.array(ImageOps.exif_transpose(mask)) if kind in kinds else None
    except FileNotFoundError:
        remedy = "check the path (of data: Data.data_root)"
        raise UnreadableFile(f"{path}: no such mask; {remedy}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        what = f"{path}: cannot be read as a mask ({error})"
        raise UnreadableFile(f"{what}; fetch or copy the file again") from None
    if label is None:
        bits = "an 8-bit palette, or an 8- or 16-bit" if wide else "an 8-bit palette or"
        remedy = f"a mask must be {bits} grayscale PNG of class ids, convert it"
        raise UnreadableFile(f"{path}: is a {kind}; {remedy}")
    if not wide:
        return label
    if label.max(initial=0) > MAX_ID:
        what = f"{path}: contains label {label.max()}"
        raise UnreadableFile(f"{what}; number the classes from 1, the largest id is {MAX_ID}")
    return label.astype(np.int16)


def voc_palette() -> list[int]:
    """Return the colors of VOC's palette masks: 256 times R, G, B."""
    index = np.arange(256)
    bits = [[(index >> (3 * b + c) & 1) << (7 - b) for b in range(3)] for c in range(3)]
    return np.sum(bits, axis=1).T.ravel().tolist()
