"""Damage inside PNG and JPEG files, which libraries decode without a word."""

import io
import re
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.pictures import refused
from PIL import Image

from util.data.damage import MAX_SCANS, damage_of
from util.data.image_io import read_image, read_label
from util.predict.pictures import require_picture
from util.runtime.system import heard


def encode(array: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, **options)
    return file.getvalue()


def a_picture(height: int = 90, width: int = 130) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def a_label() -> np.ndarray:
    return cv2.resize(np.arange(12, dtype=np.uint8).reshape(3, 4), (60, 45), interpolation=0)


def scans(content: bytes, count: int) -> bytes:
    """Repeat the last scan of a progressive JPEG until it has so many of them."""
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * (count - content.count(b"\xff\xda")) + b"\xff\xd9"


@pytest.mark.parametrize("kind", ["mask", "image"])
def test_every_single_flipped_bit_of_a_png_is_found(kind: str, tmp_path: Path) -> None:
    read, array = (read_label, a_label()) if kind == "mask" else (read_image, a_picture(12, 14))
    whole, path = encode(array, format="PNG"), tmp_path / "a.png"
    assert damage_of(whole) == ""
    for bit in range(8 * 8, 8 * len(whole)):  # the first 8 bytes say that it is a PNG
        torn = bytearray(whole)
        torn[bit // 8] ^= 1 << bit % 8
        assert damage_of(bytes(torn)), f"bit {bit}"
    for place in range(8, len(whole), len(whole) // 40):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        refused([f"{path}: cannot be read as a"], read, path)


def test_png_that_lacks_pixels_is_refused_although_its_checksums_fit(tmp_path: Path) -> None:
    def part(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = part(b"IHDR", struct.pack(">IIBBBBB", 60, 45, 8, 0, 0, 0, 0))
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in a_label()))
    for data, is_whole in ((rows, True), (rows[: len(rows) // 2], False)):
        content = b"\x89PNG\r\n\x1a\n" + head + part(b"IDAT", data) + part(b"IEND", b"")
        (tmp_path / "a.png").write_bytes(content)
        if is_whole:
            assert np.array_equal(read_label(tmp_path / "a.png"), a_label())
        else:
            for read in (read_label, read_image):
                refused(["a.png: cannot be read as a"], read, tmp_path / "a.png")


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"quality": 30}, {"optimize": True}])
def test_jpeg_that_ends_before_its_last_row_is_refused(options: dict, tmp_path: Path) -> None:
    whole, path = encode(a_picture(), format="JPEG", **options), tmp_path / "a.jpg"
    start = whole.index(b"\xff\xda") + 14
    for share in (0.1, 0.3, 0.6, 0.9):
        cut = start + int(share * (len(whole) - start))
        path.write_bytes(whole[:cut].rstrip(b"\xff") + b"\xff\xd9")
        refused(["a.jpg", "pixels at its end are missing"], read_image, path)


def test_jpeg_whose_last_pixels_are_the_gray_of_missing_ones_is_read_in_silence(
    tmp_path: Path,
) -> None:
    picture = a_picture()
    picture[40:] = 128
    for options in ({}, {"progressive": True}, {"quality": 100, "subsampling": 0}):
        (tmp_path / "a.jpg").write_bytes(encode(picture, format="JPEG", **options))
        with heard() as said:
            image = read_image(tmp_path / "a.jpg")
        assert (image[-1, -1] == 128).all() and image.shape == (90, 130, 3) and said == []


def test_restart_markers_that_are_lost_or_foreign_are_found() -> None:
    options = [int(cv2.IMWRITE_JPEG_RST_INTERVAL), 4]
    whole = cv2.imencode(".jpg", a_picture(), options)[1].tobytes()
    assert damage_of(whole) == "" and b"\xff\xd3" in whole
    assert "restart markers" in damage_of(whole.replace(b"\xff\xd3", b"", 1))
    plain = encode(a_picture(), format="JPEG")
    assert "restart markers" in damage_of(plain[:-9] + b"\xff\xd0" + plain[-9:])
    assert damage_of(plain) == ""


def test_jpeg_with_more_scans_than_any_program_writes_is_refused_before_decoding(
    tmp_path: Path,
) -> None:
    whole, path = encode(a_picture(), format="JPEG", progressive=True), tmp_path / "a.jpg"
    for count, is_read in ((MAX_SCANS, True), (MAX_SCANS + 1, False), (5000, False)):
        path.write_bytes(scans(whole, count))
        if is_read:
            require_picture(str(path), "the painting", 10**6)
            assert read_image(path).shape == (90, 130, 3)
        else:
            refused(["a.jpg: cannot", "it has more than 100 scans, which"], read_image, path)
            refused(
                ["the painting: cannot"], require_picture, path.read_bytes(), "the painting", 10**6
            )


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_progressive_jpeg_that_ends_after_any_but_its_last_scan_is_found(mode: str) -> None:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (40, 56, 3), np.uint8)).convert(mode)
    file = io.BytesIO()
    picture.save(file, "JPEG", progressive=True)
    content = file.getvalue()
    assert damage_of(content) == ""
    scans = [found.start() for found in re.finditer(b"\xff\xda", content)]
    assert len(scans) > 5
    for start in scans[1:]:  # what repairs an interrupted copy puts the end marker behind
        ended = content[:start] + b"\xff\xd9"
        Image.open(io.BytesIO(ended)).load()  # a decoder takes it as it is
        assert "scans are missing" in damage_of(ended)
