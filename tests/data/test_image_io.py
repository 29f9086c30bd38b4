"""Pictures and masks of strangers: cut off, rotated, of other kinds, large, of any name."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.pictures import refused
from PIL import Image, ImageOps

from util.data.image_io import FULL_PIXELS, image_size, read_image, read_label, read_reduced
from util.data.source import Source
from util.predict.example import as_rgb
from util.runtime.system import heard

FORMATS = {
    "jpg": {"format": "JPEG"},
    "progressive.jpg": {"format": "JPEG", "progressive": True},
    "png": {"format": "PNG"},
    "webp": {"format": "WEBP"},
    "lossless.webp": {"format": "WEBP", "lossless": True},
    "bmp": {"format": "BMP"},
    "tif": {"format": "TIFF"},
    "lzw.tif": {"format": "TIFF", "compression": "tiff_lzw"},
}


def a_picture(height: int = 150, width: int = 200) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def encode(array: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.1, 0.4, 0.9, 1.0])
def test_picture_that_is_cut_off_anywhere_is_refused_in_one_line(
    kind: str, share: float, tmp_path: Path
) -> None:
    content, path = encode(a_picture(), **FORMATS[kind]), tmp_path / kind
    path.write_bytes(content)
    assert read_image(path).shape == (150, 200, 3)
    path.write_bytes(content[: int(share * len(content)) - 1])
    with heard() as said:
        refused([str(path), "cannot be read as an image: ", "whole copy"], read_image, path)
    assert said == []


def test_jpeg_filled_up_with_zeros_or_with_a_second_picture_in_it_is_told_from_a_whole_one(
    tmp_path: Path,
) -> None:
    """A copy into reserved room ends in zeros; the preview in EXIF has an end of its own."""
    whole, path = encode(a_picture(), format="JPEG"), tmp_path / "a.jpg"
    preview = b"Exif\0\0" + encode(a_picture(20, 20), format="JPEG")
    block = b"\xff\xe1" + struct.pack(">H", 2 + len(preview)) + preview
    with_preview = whole[:2] + block + whole[2:]
    for content, is_whole in (
        (with_preview, True),
        (whole + b"what a camera appends", True),
        (with_preview[: len(with_preview) // 2], False),
        (whole[: len(whole) // 2] + bytes(len(whole) // 2), False),
    ):
        path.write_bytes(content)
        if is_whole:
            assert read_image(path).shape == (150, 200, 3)
        else:
            refused(["a.jpg", "cannot be read as an image"], read_image, path)


@pytest.mark.parametrize("share", [0.3, 0.9, 1.0])
def test_mask_that_is_cut_off_is_refused(share: float, tmp_path: Path) -> None:
    label = np.random.default_rng(0).integers(0, 5, (80, 90), np.uint8)
    content = encode(label, format="PNG")
    (tmp_path / "a.png").write_bytes(content[: int(share * len(content)) - 9])
    refused(["a.png", "cannot be read as a mask"], read_label, tmp_path / "a.png")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty; replace it"),
        (b"\0\5\x16\7\0\2\0\0Mac OS X", "companion file of macOS, no picture; delete it"),
        (bytes(5000), "begins with zeros, as a copy that failed does"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"GIF89a\1\0\1\0", "is a GIF; save it as PNG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "is HEIC, AVIF or a film; save it as JPEG"),
        (b"\x89PN", "has a format that is not read; save it as JPEG, PNG, WebP, BMP or TIFF"),
    ],
)
def test_what_is_no_picture_is_named_for_what_it_is(
    content: bytes, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    for read, kind in ((read_image, "an image"), (read_label, "a mask"), (image_size, "an image")):
        refused([f"{path}: cannot be read as {kind}: ", words], read, path)


def test_missing_file_and_folder_have_their_own_reasons(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").mkdir()
    refused(["a.jpg: is a folder"], read_image, tmp_path / "a.jpg")
    os.mkfifo(tmp_path / "pipe.png")
    for read in (read_image, read_label):
        refused(["pipe.png: is a pipe or a device"], read, tmp_path / "pipe.png")
        refused(["/dev/zero: is a pipe or a device"], read, "/dev/zero")
    refused(["b.jpg: no such image; check the path"], read_image, tmp_path / "b.jpg")
    refused(["b.png: no such mask; check the path"], read_label, tmp_path / "b.png")


@pytest.mark.parametrize("name", [b"caf\xe9", "Fußgänger 図".encode(), b"\xff\xfe"])
def test_name_of_any_bytes_is_read(name: bytes, tmp_path: Path) -> None:
    place = os.fsencode(tmp_path) + b"/" + name
    try:
        for suffix, array in ((b".jpg", a_picture()), (b".png", a_picture()[..., 0] // 99)):
            with open(place + suffix, "wb") as file:
                file.write(encode(array, format="PNG"))
    except OSError:
        pytest.skip("this disk takes no such names")
    path = Path(os.fsdecode(place))
    assert np.array_equal(read_image(f"{path}.jpg"), a_picture())
    assert np.array_equal(read_label(f"{path}.png"), a_picture()[..., 0] // 99)
    with open(place + b".jpg", "wb") as file:
        file.write(b"\xff\xd8\xff cut")
    refused(["cannot be read as an image"], read_image, f"{path}.jpg")


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_followed_in_every_format(
    kind: str, orientation: int, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{kind}"
    path.write_bytes(encode(a_picture(40, 60), **FORMATS[kind], exif=exif))
    with Image.open(path) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    assert np.array_equal(read_image(path), expected)
    assert image_size(path) == expected.shape[:2] == ((40, 60) if orientation < 5 else (60, 40))


XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF
xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""
xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>"""


def exif_block(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes().removeprefix(b"Exif\0\0")


def png_with(array: np.ndarray, kind: bytes, data: bytes, late: bool = False) -> bytes:
    """A PNG with one more chunk, before its pixels or (`late`) behind them."""
    content, crc = encode(array, format="PNG"), zlib.crc32(kind + data)
    place = len(content) - 12 if late else 33
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)
    return content[:place] + chunk + content[place:]


def magick_profile(block: bytes) -> bytes:
    """EXIF as ImageMagick writes it into a text chunk of a PNG."""
    digits = (b"Exif\0\0" + block).hex().encode()
    rows = [digits[i : i + 72] for i in range(0, len(digits), 72)]
    text = b"\nexif\n%8d\n" % (len(digits) // 2) + b"\n".join(rows) + b"\n"
    return b"Raw profile type exif\0\0" + zlib.compress(text)


@pytest.mark.parametrize("side", [(40, 60), (2200, 3000)])
@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("jpg", lambda a: encode(a, format="JPEG", xmp=XMP)),
        ("webp", lambda a: encode(a, format="WEBP", xmp=XMP, lossless=True)),
        ("tif", lambda a: encode(a, format="TIFF", tiffinfo={700: XMP})),
        ("xmp.png", lambda a: png_with(a, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)),
        ("late.png", lambda a: png_with(a, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP, True)),
        ("magick.png", lambda a: png_with(a, b"zTXt", magick_profile(exif_block(6)))),
    ],
)
def test_orientation_outside_of_exif_is_followed_by_no_reader(
    kind: str, make: Callable[[np.ndarray], bytes], side: tuple[int, int], tmp_path: Path
) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(make(a_picture(*side)))
    assert image_size(path) == read_image(path).shape[:2] == read_reduced(path)[1] == side
    if path.suffix in (".png", ".tif"):
        path.write_bytes(make(a_picture(*side)[..., 0]))
        assert np.array_equal(read_label(path), a_picture(*side)[..., 0])
        assert np.array_equal(as_rgb(Image.open(path))[..., 0], a_picture(*side)[..., 0]) or (
            path.suffix == ".tif"  # Pillow has rotated it before it comes here
        )


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_of_a_png_is_followed_before_and_behind_the_pixels(
    orientation: int, late: bool, tmp_path: Path
) -> None:
    path, array = tmp_path / "a.png", a_picture(40, 60)
    path.write_bytes(png_with(array, b"eXIf", exif_block(orientation), late))
    with Image.open(io.BytesIO(encode(array, format="PNG", exif=exif_block(orientation)))) as plain:
        expected = np.asarray(ImageOps.exif_transpose(plain))
    assert np.array_equal(read_image(path), expected)
    assert np.array_equal(as_rgb(Image.open(path)), expected)
    assert image_size(path) == expected.shape[:2]
    path.write_bytes(png_with(array[..., 0], b"eXIf", exif_block(orientation), late))
    assert np.array_equal(read_label(path), expected[..., 0])


WHOLE = exif_block(6)


@pytest.mark.parametrize(
    "block",
    [b"", b"garbage!!", *(WHOLE[:n] for n in (3, 8, 9, 15, 19)), exif_block(9), exif_block(0),
     WHOLE[:4] + b"\xff\xff\xff\xff" + WHOLE[8:], WHOLE[:8] + b"\xff\xff" + WHOLE[10:14]],
)  # fmt: skip
def test_damaged_exif_leaves_picture_size_and_mask_as_they_are_stored(
    block: bytes, tmp_path: Path
) -> None:
    array = a_picture(40, 60)
    contents = {
        "png": png_with(array, b"eXIf", block),
        "late.png": png_with(array, b"eXIf", block, late=True),
        "jpg": encode(array, format="JPEG", exif=b"Exif\0\0" + block),
        "webp": encode(array, format="WEBP", exif=block),
    }
    for kind, content in contents.items():
        path = tmp_path / f"a.{kind}"
        path.write_bytes(content)
        assert image_size(path) == read_image(path).shape[:2] == (40, 60)
        assert as_rgb(Image.open(path)).shape[:2] == (40, 60)
    for late in (False, True):
        (tmp_path / "m.png").write_bytes(png_with(array[..., 0], b"eXIf", block, late))
        assert np.array_equal(read_label(tmp_path / "m.png"), array[..., 0])


def test_pictures_of_other_depths_and_links_have_their_true_reason(tmp_path: Path) -> None:
    gray = a_picture(40, 60)[..., 0]
    Image.fromarray(gray).save(tmp_path / "big.tif", big_tiff=True)
    assert np.array_equal(read_image(tmp_path / "big.tif")[..., 0], gray)
    assert np.array_equal(read_label(tmp_path / "big.tif"), gray)
    for dtype, mode in ((np.float32, "F"), (np.int32, "I")):
        Image.fromarray(gray.astype(dtype)).save(tmp_path / "deep.tif")
        words = [f"OpenCV decodes no TIFF of mode {mode}", "save it with 8 or 16 bits"]
        refused(words, read_image, tmp_path / "deep.tif")
    np.save(tmp_path / "a.npy", gray)
    refused(["it is an array of NumPy; save it as PNG"], read_label, tmp_path / "a.npy")
    (tmp_path / "gone.jpg").symlink_to("elsewhere.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    for read in (read_image, read_label, image_size):
        refused(["gone.jpg: is a link to elsewhere.jpg, which is not"], read, tmp_path / "gone.jpg")
        refused(["loop.jpg: cannot be read (Too many"], read, tmp_path / "loop.jpg")


def test_tiff_that_claims_a_gigantic_strip_is_refused(tmp_path: Path) -> None:
    content = bytearray(encode(a_picture(40, 60)[..., 0], format="TIFF"))
    for tag, value in ((256, 30_000), (257, 30_000), (278, 30_000)):  # width, height, rows a strip
        at = content.index(struct.pack("<H", tag), content.index(struct.pack("<HHI", 256, 4, 1)))
        content[at + 8 : at + 12] = struct.pack("<I", value)
    (tmp_path / "a.tif").write_bytes(content)
    refused(["a.tif: cannot be read as a mask"], read_label, tmp_path / "a.tif")


@pytest.mark.parametrize("kind", ["jpg", "progressive.jpg", "png", "webp", "bmp", "tif"])
def test_large_picture_is_reduced_while_it_is_read_and_tells_its_own_size(
    kind: str, tmp_path: Path
) -> None:
    exif, path, picture = Image.Exif(), tmp_path / kind, a_picture(2049, 2050)
    exif[0x0112] = 6 if kind != "bmp" else 1
    upright = np.rot90(picture, -1) if exif[0x0112] == 6 else picture
    path.write_bytes(encode(picture, **FORMATS[kind], exif=exif))
    image, size = read_reduced(path)
    assert size == upright.shape[:2] and image.shape == (1025, 1025, 3)
    assert image.shape[0] * image.shape[1] < FULL_PIXELS < picture.shape[0] * picture.shape[1]
    blocks = upright[:2048, :2048].reshape(1024, 2, 1024, 2, 3).mean((1, 3))
    assert np.abs(image[:1024, :1024] - blocks).mean() < 2
    assert read_image(path).shape == upright.shape


def test_picture_at_the_limit_is_read_as_it_is(tmp_path: Path) -> None:
    picture = a_picture(2048, 2048)
    (tmp_path / "a.png").write_bytes(encode(picture, format="PNG", compress_level=1))
    image, size = read_reduced(tmp_path / "a.png")
    assert size == (2048, 2048) and np.array_equal(image, picture)


def test_large_image_and_its_layered_mask_are_reduced_alike(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    picture = np.zeros((2100, 4200, 3), np.uint8)
    picture[:1050, 2100:] = 200
    (tmp_path / "images/a.jpg").write_bytes(encode(picture, format="JPEG"))
    first = (picture[..., 0] > 0).astype(np.uint8)
    Image.fromarray(np.concatenate([first, 2 * first])).save(tmp_path / "masks/a.png")
    source = Source(tmp_path, "custom", "val", 2, str(tmp_path / "cache"))
    for _ in range(2):  # decoded, then from the cache
        image, label = source.load("a", 2)
        assert image.shape == (1050, 2100, 3) and label.shape == (1050, 2100)
        assert source.has_layers("a")
        bright = image[..., 0] > 100
        assert np.mean(bright == (label == 2)) > 0.999 and np.mean(label == 2) == 0.25
    assert source.read_pair("a")[1].shape == (4200, 4200)  # the mask itself, for counting


def gray_png(depth: int, rows: list[list[int]]) -> bytes:
    """A grayscale PNG of 1, 2 or 4 bits, written by hand."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    packed = b""
    for row in rows:
        bits = "".join(f"{value:0{depth}b}" for value in row)
        bits += "0" * (-len(bits) % 8)
        packed += b"\0" + bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
    head = struct.pack(">IIBBBBB", len(rows[0]), len(rows), depth, 0, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(packed)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize(("depth", "values"), [(2, [0, 1, 2, 3]), (4, [0, 1, 5, 15])])
def test_class_ids_of_a_mask_of_few_bits_are_its_values(
    depth: int, values: list[int], tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(gray_png(depth, [values, values[::-1]]))
    assert read_label(path).tolist() == [values, values[::-1]]


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_mask_in_a_format_that_changes_values_is_refused(kind: str, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "a.png", kind)
    refused(["a.png", kind, "grayscale PNG"], read_label, tmp_path / "a.png")
