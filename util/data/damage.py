"""What is wrong with the bytes of a PNG or a JPEG that libraries decode without a word.

Nothing is decoded here. docs/reliability.md says what is found and what is not.
"""

import re
import struct
import zlib

MAX_SCANS = 100
"""A progressive JPEG has about 10 scans. Each one takes as long as decoding a whole picture."""

CUT_OFF = "it is cut off"

_PNG_BEGIN, _JPEG_BEGIN = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_MARKER = re.compile(rb"\xff+([^\x00\xff])", re.DOTALL)
_NEXT_SEGMENT = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")
_START_OF_SCAN, _END, _RESTART_INTERVAL = 0xDA, 0xD9, 0xDD
_FILLER = bytes(range(7, 250, 3))  # stands for blocks of a JPEG that are not gray


def damage_of(content: bytes) -> str:
    """Return what is wrong with the bytes of a picture ('': nothing, or it is no PNG or JPEG).

    A PNG has a CRC-32 of each of its parts. A JPEG has none: its segments must lead to its end,
    and its restart markers must count from 0 to 7.
    """
    if content.startswith(_PNG_BEGIN):
        return _png_damage(content)
    return _jpeg_damage(content)[0] if content.startswith(_JPEG_BEGIN) else ""


def scans_of(content: bytes) -> int:
    """Return how many scans a JPEG has, as far as it goes; 0 of another file."""
    return _jpeg_damage(content)[1] if content.startswith(_JPEG_BEGIN) else 0


def with_filler(content: bytes) -> bytes:
    """Return a JPEG with more data at the end of its last scan.

    If the scan is complete, a decoder ignores that. If not, it takes it for the missing pixels.
    """
    end = _jpeg_damage(content)[2]
    return content[:end] + _FILLER + content[end:]


def _png_damage(content: bytes) -> str:
    position, view = len(_PNG_BEGIN), memoryview(content)
    while len(head := content[position : position + 8]) == 8:
        length, kind = struct.unpack(">I4s", head)
        end = position + 8 + length
        if len(content) < end + 4:
            return CUT_OFF
        if zlib.crc32(view[position + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
            return f"its part {kind.decode('latin1')!r} does not fit its checksum"
        if kind == b"IEND":
            return ""
        position = end + 4
    return CUT_OFF


def _jpeg_damage(content: bytes) -> tuple[str, int, int]:
    """Return what is wrong with a JPEG, its number of scans, and the place of its end."""
    position, scans, interval, restarts_fit = 2, 0, 0, True
    while found := _MARKER.search(content, position):
        kind, position = found[1][0], found.end()
        if kind == _END:
            damage = "" if restarts_fit else "its restart markers are not in order"
            return damage, scans, found.start()
        if 0xD0 <= kind <= 0xD8 or kind == 1:  # markers without a segment
            continue
        length = int.from_bytes(content[position : position + 2], "big")
        if kind == _RESTART_INTERVAL:
            interval = int.from_bytes(content[position + 2 : position + 4], "big")
        position += length
        if kind == _START_OF_SCAN:
            scans += 1
            end = _NEXT_SEGMENT.search(content, position)
            if not end:
                break
            numbers = [m[1][0] & 7 for m in _RESTART.finditer(content, position, end.start())]
            in_order = numbers == [number % 8 for number in range(len(numbers))]
            restarts_fit &= in_order and bool(interval or not numbers)
            position = end.start()
    return CUT_OFF, scans, len(content)
