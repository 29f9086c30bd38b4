"""Reading images and masks."""

import io
import os
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from util.runtime.errors import UserError


class Unreadable(UserError):
    """An image or its mask is missing or broken; the message names the file."""


def read_image(path: str | Path) -> np.ndarray:
    """Reads a picture as RGB (uint8 [H,W,3]), upright as its EXIF orientation says.

    Grey is repeated three times, an alpha channel left out, and of 16 bits the upper 8 are taken.

    Raises:
        Unreadable: the file is missing or no picture.
    """
    if not os.path.isfile(path):
        raise Unreadable(f"{path}: no such image; check the path (of data: Data.data_root)")
    try:
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    except cv2.error:  # a header that promises more pixels than OpenCV takes
        image = None
    if image is None:
        raise Unreadable(f"{path}: cannot be read as an image; fetch or copy the file again")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_label(path: str | Path, content: bytes | None = None) -> np.ndarray:
    """Reads a mask of class ids (uint8 [H,W]); `content`: of a file that is not on disk by itself.

    The palette INDEX of a palette PNG is the class (VOC), or the value of a grayscale one (COCO).
    OpenCV is no help here: its grayscale read turns a palette into luminance. An EXIF orientation
    is obeyed, as that of a picture is.

    Raises:
        Unreadable: the file is missing, torn or holds no class ids (RGB, 16 bits, ...).
    """
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as mask:
            kind = f"{mask.format} of mode {mask.mode}"
            known = kind in ("PNG of mode P", "PNG of mode L")
            label = np.array(ImageOps.exif_transpose(mask)) if known else None
    except FileNotFoundError:
        raise Unreadable(
            f"{path}: no such mask; check the path (of data: Data.data_root)"
        ) from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Unreadable(
            f"{path}: cannot be read as a mask ({error}); fetch or copy the file again"
        ) from None
    if label is None:
        raise Unreadable(
            f"{path}: is a {kind}; a mask must be an 8-bit palette or grayscale PNG of class ids,"
            " convert it"
        )
    return label


def voc_palette() -> list[int]:
    """Returns the colours of VOC's palette masks: 256 times R, G, B."""
    index = np.arange(256)
    bits = [[(index >> (3 * b + c) & 1) << (7 - b) for b in range(3)] for c in range(3)]
    return np.sum(bits, axis=1).T.ravel().tolist()
