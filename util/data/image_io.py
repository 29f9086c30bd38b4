"""Read images and masks of class ids: the one place that opens such files.

A file is read into memory before it is decoded. So its name may hold any bytes. And OpenCV refuses
a picture in memory that is cut off; of a file, it would fill in gray.
"""

import io
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from model.constants import IGNORE
from util.data.damage import WHOLE_COPY, damage_of, with_filler
from util.runtime.errors import UserError
from util.runtime.files import open_file

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""How the names of pictures end, in upper or lower case."""

FULL_PIXELS = 1 << 22
"""A picture with more pixels is reduced while it is read, see `read_reduced`."""

MAX_PIXELS = 1 << 30
"""OpenCV accepts no picture with more pixels."""

MAX_ID = np.iinfo(np.int16).max
"""The largest class id."""

_READERS: dict[bytes, type[ImageFile]] = {
    b"\xff\xd8\xff": JpegImageFile,
    b"\x89PNG\r\n\x1a\n": PngImageFile,
    b"RIFF": WebPImageFile,
    b"BM": BmpImageFile,
    b"II*\0": TiffImageFile,
    b"MM\0*": TiffImageFile,
    b"II+\0": TiffImageFile,  # with offsets of 64 bits
    b"MM\0+": TiffImageFile,
}
"""What a picture begins with, whatever its name is -> its reader."""

_FOREIGN = {
    b"\0\5\x16\7": "is a companion file of macOS, no picture; delete it",
    b"\0\0\0\0": "begins with zeros, as a copy that failed does; replace it with a whole copy",
    b"version https://git-lfs": "is a pointer of Git LFS; fetch the file with git lfs pull",
    b"<": "is a web page or an SVG drawing; replace it with a picture",
    b"GIF8": "is a GIF; save it as PNG",
    b"\x93NUMPY": "is an array of NumPy; save it as PNG",
    b"ftyp": "is HEIC, AVIF or a film; save it as JPEG",
}
"""What other files begin with -> what they are, and what to do."""

_JPEG_FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_DEPTHS = {"L;2": 85, "L;4": 17}
"""Grayscale of 2 and 4 bits -> by what Pillow multiplies its values."""

_LOSSY = ("JPEG", "WEBP")  # their pixels are no exact ids


class UnreadableFile(UserError):
    """An image or its mask is missing or damaged; the message names the file."""


def read_image(path: str | Path, limit: int = MAX_PIXELS) -> np.ndarray:
    """Read a picture as RGB (uint8 [H,W,3]), rotated as its EXIF orientation says.

    It may be JPEG, PNG, WebP, BMP or TIFF. Gray is repeated three times, an alpha channel is
    dropped, and 16 bits become their upper 8. Raises `UnreadableFile` if the file is missing, is
    cut off or damaged, is no picture, or has more than `limit` pixels.
    """
    return _decode(path, limit, limit)[0]


def read_reduced(path: str | Path) -> tuple[np.ndarray, tuple[int, int]]:
    """Read a picture as `read_image` does; return it, and its own height and width.

    A picture of more than `FULL_PIXELS` is returned with 1/2, 1/4 or 1/8 of its height and width
    (the mean of 4, 16 or 64 pixels each). A JPEG is decoded at that size, which takes less memory.
    """
    return _decode(path, FULL_PIXELS, MAX_PIXELS)


def _decode(path: str | Path, most: int, limit: int) -> tuple[np.ndarray, tuple[int, int]]:
    content = _read(path, "image")
    picture = _open(path, content, "an image", limit)
    factor = reduction(picture.width * picture.height, most)
    is_plain = isinstance(picture, BmpImageFile | TiffImageFile) and picture.mode in ("L", "RGB")
    if factor > 1 and is_plain and not _damage(picture):
        reduced = picture.reduce(factor).convert("RGB")  # OpenCV takes twice the memory
        return np.array(reduced), (picture.height, picture.width)
    is_jpeg = isinstance(picture, JpegImageFile)
    flags = _JPEG_FLAGS[factor] if is_jpeg else cv2.IMREAD_COLOR
    cannot, image = f"{path}: cannot be read as an image", _pixels(content, flags)
    # Where the data of a JPEG ends too early, decoders go on with the gray 128.
    if is_jpeg and image is not None and (image[-1, -1] == 128).all():
        if not np.array_equal(_eighth(content), _eighth(with_filler(content))):
            raise UnreadableFile(f"{cannot}: pixels at its end are missing; {WHOLE_COPY}")
    if image is None:
        if damage := _damage(picture):
            raise UnreadableFile(f"{cannot}: {damage}; {WHOLE_COPY}")
        kind = f"OpenCV decodes no {picture.format} of mode {picture.mode}"
        raise UnreadableFile(f"{cannot}: {kind}; save it with 8 or 16 bits a channel")
    image = cv2.cvtColor(image if is_jpeg else reduce_by(image, factor), cv2.COLOR_BGR2RGB)
    image = turned(image, picture)
    return image, image.shape[:2] if factor == 1 else upright_size(picture)


def _pixels(content: bytes, flags: int) -> np.ndarray | None:
    """Decode a file's content by OpenCV, not rotated (uint8 [H,W,3], BGR); None: it cannot."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # our message is enough
    try:
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
        return cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error:
        return None
    finally:
        cv2.utils.logging.setLogLevel(level)


def _eighth(content: bytes) -> np.ndarray:
    """Decode a JPEG at an eighth of its size (uint8, [H,W] or [H,W,C]), by Pillow: it is silent."""
    picture = JpegImageFile(io.BytesIO(content))
    picture.draft(None, (picture.width // 8, picture.height // 8))
    return np.array(picture)


def reduction(pixels: int, most: int = FULL_PIXELS) -> int:
    """Return by what the sides of a picture are divided: 1, 2, 4, or 8 if nothing less suffices."""
    return next((f for f in (1, 2, 4) if pixels <= most * f * f), 8)


def reduce_by(image: np.ndarray, factor: int) -> np.ndarray:
    """Return an image [H,W,3] with its height and width divided by a number of `reduction`."""
    if factor == 1:
        return image
    height, width = (-(-side // factor) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def resize_label(label: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return a mask [H,W] in another height and width: the nearest pixel each."""
    if label.shape == shape:
        return label
    return cv2.resize(label, shape[::-1], interpolation=cv2.INTER_NEAREST)


def image_size(
    path: str | Path, content: bytes | None = None, limit: int = MAX_PIXELS
) -> tuple[int, int]:
    """Return height and width of a picture, rotated as its EXIF orientation says, from its header.

    If `content` is given, these bytes are read, and `path` only names them in messages. Raises
    `UnreadableFile` as `read_image`, but for damage behind the header.
    """
    with _opened(path, "image") if content is None else io.BytesIO(content) as file:
        return upright_size(_header(path, file, "an image", limit))


def require_sound(path: str | Path, content: bytes | None, limit: int) -> None:
    """Require of a picture what can be told without decoding its pixels.

    `content` is as in `image_size`. Raises `UnreadableFile` if it is missing, is cut off, is no
    picture, does not fit its checksums, or has more than `limit` pixels or too many scans.
    """
    _open(path, _read(path, "image") if content is None else content, "an image", limit)


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """Return height and width of a picture, rotated as its EXIF orientation says."""
    return picture.size if _orientation(picture) > 4 else (picture.height, picture.width)


def turned(pixels: np.ndarray, picture: Image.Image) -> np.ndarray:
    """Return the pixels of a picture ([H,W] or [H,W,C]), rotated as its EXIF orientation says."""
    orientation = _orientation(picture)
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _orientation(picture: Image.Image) -> int:
    """Return the orientation of a picture, 1 to 8; 1 (upright) if there is none, or it is damaged.

    Only the EXIF block counts: Pillow also follows XMP and the profiles of ImageMagick, which
    labeling tools and OpenCV do not. Both libraries rotate a TIFF on their own.
    """
    exif = (picture.info.get("exif") or b"").removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if isinstance(picture, TiffImageFile) or not order:
        return 1
    with suppress(struct.error):  # it ends too early
        [start] = struct.unpack_from(f"{order}I", exif, 4)
        [count] = struct.unpack_from(f"{order}H", exif, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, value = struct.unpack_from(f"{order}H6xH", exif, at)
            if tag == 0x0112:
                return value if value in range(1, 9) else 1
    return 1


def _late_exif(file: BinaryIO) -> bytes:
    """Return the EXIF block of a PNG file, which may also come after the pixels."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"eXIf":
            return file.read(length)
        file.seek(length + 4, io.SEEK_CUR)
    return b""


def read_label(
    path: str | Path, content: bytes | None = None, wide: bool | None = False
) -> np.ndarray:
    """Read a mask of class ids (uint8 [H,W]), rotated as its EXIF orientation says.

    A pixel's class id is its palette INDEX in a palette PNG (VOC), its value in a grayscale PNG
    (COCO). OpenCV is not used: its grayscale mode turns a palette into luminance.

    With `wide`, for a data set of more than 254 classes, a grayscale PNG of 16 bits is a mask, too,
    and the result is int16. With None, a mask may have 1, 8 or 16 bits, and the result is int16 if
    it has 16; its white, 65535, becomes 255. 255 is no class in either.

    If `content` is given, such as a member of an archive, these bytes are read, and `path` only
    names them in messages. Raises `UnreadableFile` if the file is missing, damaged or holds no
    class ids (RGB, 16 bits without `wide`, ...).
    """
    return label_of(open_mask(path, content), str(path), wide)


def open_mask(path: str | Path, content: bytes | None = None) -> Image.Image:
    """Open the file of a mask, or these bytes of it; its pixels are not decoded yet.

    Raises `UnreadableFile` if it is missing, or no picture.
    """
    return _open(path, _read(path, "mask") if content is None else content, "a mask")


def label_of(mask: Image.Image, name: str, wide: bool | None = False) -> np.ndarray:
    """Return the class ids of a mask as `read_label` does; messages call it `name`."""
    any_depth = wide is None
    bits = ("1",) if any_depth else ()
    wide = mask.mode.startswith("I;16") if any_depth else wide
    kinds = ("P", "L", *bits, *(("I;16", "I;16B") if wide else ()))
    if mask.mode not in kinds or mask.format in _LOSSY:
        allowed = "an 8-bit palette, or an 8- or 16-bit" if wide else "an 8-bit palette or"
        remedy = f"a mask must be {allowed} grayscale PNG of class ids, convert it"
        kind = f"{mask.format or 'picture'} of mode {mask.mode}"
        raise UnreadableFile(f"{name}: is a {kind}; {remedy}")
    # Of a file that is not decoded yet, Pillow says how its pixels are stored.
    stored = mask.tile[0].args if isinstance(mask, ImageFile) and mask.tile else ""
    if damage := _damage(mask):
        raise UnreadableFile(f"{name}: cannot be read as a mask: {damage}; {WHOLE_COPY}")
    label = turned(np.array(mask), mask)
    if stored in _DEPTHS:
        label //= _DEPTHS[stored]
    if any_depth and wide:
        label[label == np.iinfo(np.uint16).max] = IGNORE
    if wide and label.max(initial=0) > MAX_ID:
        what = f"{name}: contains label {label.max()}"
        raise UnreadableFile(f"{what}; number the classes from 1, the largest id is {MAX_ID}")
    return label.astype(np.int16 if wide else np.uint8, copy=False)


def brighter_than(mask: Image.Image) -> int:
    """Return the other index if a palette mask has two colors and index 0 is the brighter, else 0.

    Programs number the colors of a palette in any order, so index 0 may well be the object.
    """
    if mask.mode != "P":
        return 0
    found = np.flatnonzero(mask.histogram()).tolist()
    if len(found) != 2 or found[0]:
        return 0
    colors: list[int] = [*(mask.getpalette() or []), *([0] * 3 * 256)]  # missing ones are black
    background, other = (sum(colors[3 * index : 3 * index + 3]) for index in found)
    return found[1] if background > other else 0


def _read(path: str | Path, kind: str) -> bytes:
    with _opened(path, kind) as file:
        return file.read()


@contextmanager
def _opened(path: str | Path, kind: str) -> Iterator[BinaryIO]:
    """Open a file of a picture; in the block, too, an error of reading gives its reason."""
    try:
        with open_file(Path(os.path.expanduser(path))) as file:
            yield file
    except UnreadableFile:
        raise
    except UserError as error:
        raise UnreadableFile(str(error)) from None
    except FileNotFoundError:
        remedy = "check the path (of data: Data.data_root)"
        raise UnreadableFile(f"{path}: no such {kind}; {remedy}") from None
    except OSError as error:
        if Path(path).is_dir():
            raise UnreadableFile(f"{path}: is a folder; name a file") from None
        what = f"{path}: cannot be read ({error.strerror})"
        raise UnreadableFile(f"{what}; check its permissions and its disk") from None


def _open(path: str | Path, content: bytes, kind: str, limit: int = MAX_PIXELS) -> ImageFile:
    """Return the picture of a file's content, of which only the header is decoded."""
    picture = _header(path, io.BytesIO(content), kind, limit)
    if damage := damage_of(content):
        raise UnreadableFile(f"{path}: cannot be read as {kind}: {damage}")
    return picture


def _header(path: str | Path, file: BinaryIO, kind: str, limit: int = MAX_PIXELS) -> ImageFile:
    """Return the picture in an open file, of which only the header is read."""
    cannot = f"{path}: cannot be read as {kind}"
    begin = file.read(64)
    file.seek(0)
    if not begin:
        raise UnreadableFile(f"{cannot}: it is empty; {WHOLE_COPY}")
    reader = next((r for start, r in _READERS.items() if begin.startswith(start)), None)
    if reader is None:
        begin = begin[4:8] if begin[4:8] == b"ftyp" else begin  # its second word tells
        formats = "has a format that is not read; save it as JPEG, PNG, WebP, BMP or TIFF"
        what = next((w for start, w in _FOREIGN.items() if begin.startswith(start)), formats)
        raise UnreadableFile(f"{cannot}: it {what}")
    try:
        # Not Image.open, which refuses photographs of more than 179 million pixels.
        picture = reader(file)
    except (OSError, SyntaxError, ValueError) as error:
        raise UnreadableFile(f"{cannot}: {error}; {WHOLE_COPY}") from None
    picture.info.pop("xmp", None)  # by which Pillow would rotate a TIFF
    if isinstance(picture, PngImageFile) and "exif" not in picture.info:
        position = file.tell()
        picture.info["exif"] = _late_exif(file)
        file.seek(position)
    if picture.width * picture.height > limit:
        most = f"more than {limit // 1_000_000} million pixels"
        size = f"{picture.width}x{picture.height}"
        raise UnreadableFile(f"{path}: has {size}, {most}; make it smaller")
    return picture


def _damage(picture: Image.Image) -> str:
    """Return why a picture cannot be decoded ('': it can)."""
    try:
        picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return str(error)
    return ""


def voc_palette() -> list[int]:
    """Return the colors of VOC's palette masks: 256 times R, G, B."""
    index = np.arange(256)
    bits = [[(index >> (3 * b + c) & 1) << (7 - b) for b in range(3)] for c in range(3)]
    return np.sum(bits, axis=1).T.ravel().tolist()
