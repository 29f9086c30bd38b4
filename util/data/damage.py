"""What is wrong with the bytes of a PNG or a JPEG that libraries decode without a word.

Nothing is decoded here. docs/reliability.md says what is found and what is not.
"""

import re
import struct
import zlib
from bisect import bisect_left

MAX_SCANS = 100
"""A progressive JPEG has about 10 scans. Each one takes as long as decoding a whole picture."""

WHOLE_COPY = "replace it with a whole copy, or leave it out"

_PNG_BEGIN, _JPEG_BEGIN = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_CUT_OFF = f"it is cut off; {WHOLE_COPY}"
_MARKER = re.compile(rb"\xff[^\x00\xff]")
_START_OF_SCAN, _END, _RESTART_INTERVAL, _PROGRESSIVE = 0xDA, 0xD9, 0xDD, 0xC2
_BITS = 14  # that a coefficient lacks before its first scan: more than any has
_RESTARTS = range(0xD0, 0xD8)
_WITHOUT_SEGMENT = (1, 0xD8, *_RESTARTS)
_FILLER = bytes(range(7, 250, 3))  # stands for blocks of a JPEG that are not gray


def damage_of(content: bytes) -> str:
    """Return what is wrong with a picture's bytes, and the remedy ('': nothing, or of other kind).

    A PNG has a CRC-32 of each of its parts. A JPEG has none: its segments must lead to its end,
    its restart markers must count from 0 to 7, it has at most `MAX_SCANS` scans, and those of a
    progressive one must bring every bit of every coefficient.
    """
    if content.startswith(_PNG_BEGIN):
        return _png_damage(content)
    return _jpeg_damage(content)[0] if content.startswith(_JPEG_BEGIN) else ""


def with_filler(content: bytes) -> bytes:
    """Return a JPEG with more data at the end of its last scan.

    If the scan is complete, a decoder ignores that. If not, it takes it for the missing pixels.
    """
    end = _jpeg_damage(content)[1]
    return content[:end] + _FILLER + content[end:]


def _png_damage(content: bytes) -> str:
    position, view = len(_PNG_BEGIN), memoryview(content)
    while len(head := content[position : position + 8]) == 8:
        length, kind = struct.unpack(">I4s", head)
        end = position + 8 + length
        if len(content) < end + 4:
            return _CUT_OFF
        if zlib.crc32(view[position + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
            return f"its part {kind.decode('latin1')!r} does not fit its checksum; {WHOLE_COPY}"
        if kind == b"IEND":
            return ""
        position = end + 4
    return _CUT_OFF


def _jpeg_damage(content: bytes) -> tuple[str, int]:
    """Return what is wrong with a JPEG, and the place of the marker that ends it."""
    places, kinds = _markers(content)
    at, scans, interval, in_scan, restarts = 0, 0, 0, False, 0
    detail: dict[tuple[int, int], int] = {}  # of a progressive JPEG
    while at < len(places):
        kind, position = kinds[at], places[at] + 2
        if kind == _END:
            missing = any(detail.values())
            return f"scans are missing; {WHOLE_COPY}" if missing else "", places[at]
        if kind in _RESTARTS and in_scan:
            if not interval or kind != _RESTARTS[restarts % 8]:
                return f"its restart markers are not in order; {WHOLE_COPY}", places[at]
            restarts += 1
        if kind in _WITHOUT_SEGMENT:
            at += 1
            continue
        if in_scan := kind == _START_OF_SCAN:
            scans, restarts = scans + 1, 0
        if scans > MAX_SCANS:
            what = f"it has more than {MAX_SCANS} scans, which take too long to decode"
            return f"{what}; save it again as a usual JPEG", places[at]
        if kind == _RESTART_INTERVAL:
            interval = int.from_bytes(content[position + 2 : position + 4], "big")
        length = int.from_bytes(content[position : position + 2], "big")
        segment = content[position + 2 : position + length]
        if kind == _PROGRESSIVE:
            each = segment[6::3]  # the numbers of its components
            detail = {(number, k): _BITS for number in each for k in range(64)}
        elif in_scan and detail:
            _add_scan(segment, detail)
        at = bisect_left(places, position + length)
    return _CUT_OFF, len(content)


def _add_scan(segment: bytes, detail: dict[tuple[int, int], int]) -> None:
    """Note which coefficients of which components a scan brings, and how many bits they still lack.

    `detail` holds the bits that are missing: (component, coefficient 0 to 63) -> 0 if complete.
    """
    count = segment[0] if segment else 0
    if len(segment) < 4 + 2 * count:
        return  # a decoder refuses it
    first, last, bits = segment[2 * count + 1], segment[2 * count + 2], segment[2 * count + 3]
    for number in segment[1 : 2 * count + 1 : 2]:
        detail |= {(number, k): bits & 15 for k in range(first, min(last, 63) + 1)}


def _markers(content: bytes) -> tuple[list[int], list[int]]:
    """Return place and kind of whatever may be a marker of a JPEG: 255, then neither 0 nor 255."""
    places = [found.start() for found in _MARKER.finditer(content)]
    return places, [content[place + 1] for place in places]
