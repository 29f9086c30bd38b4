"""Text files as any editor and system writes them."""

import codecs
import os
from pathlib import Path

from util.runtime.errors import UserError
from util.runtime.files import open_file

_PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz",
           b"7z\xbc\xaf": "7-Zip", b"\x28\xb5\x2f\xfd": "Zstandard"}  # fmt: skip
"""How a packed file begins -> what packed it."""


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not blank, without the spaces around them.

    It is UTF-8, or UTF-16 with a byte-order mark, as editors on Windows save it. Raises `UserError`
    if it is neither, or no file, and `OSError` if it cannot be read.
    """
    with open_file(path) as file:
        text = decode(file.read(), str(path))
    if "\0" in text:
        raise _not_utf8(str(path), "it holds zero bytes", _SAVE)
    return [line.strip() for line in text.splitlines() if line.strip()]


def require_case(path: Path) -> None:
    """Raise `UserError` if a file is absent, and another name beside it differs in case only.

    Where the disk keeps the two apart, the other one would be passed over.
    """
    if os.path.lexists(path) or not path.parent.is_dir():
        return
    for name in sorted(os.listdir(path.parent)):
        if name.casefold() == path.name.casefold():
            raise UserError(
                f"{path.parent / name}: is not read under this name; call it {path.name}"
            )


def decode(content: bytes, path: str) -> str:
    """Return the text of a file, without a byte-order mark; `path` names it in messages.

    Raises `UserError` if it is packed, or neither UTF-8 nor UTF-16 with a mark.
    """
    require_unpacked(content, path)
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise undecodable(path, error) from None


def undecodable(path: str, error: UnicodeDecodeError, remedy: str = "") -> UserError:
    """Return the error for a file that is no UTF-8 text; `remedy` is another one that helps."""
    remedy = f"{_SAVE}, or {remedy}" if remedy else _SAVE
    return _not_utf8(path, f"byte {error.start} cannot be decoded", remedy)


def require_unpacked(content: bytes, path: str) -> None:
    """Raise `UserError` if the content of a file is packed; `path` names it in messages."""
    for begin, kind in _PACKED.items():
        if content.startswith(begin):
            raise UserError(f"{path}: is a packed file ({kind}), not text; unpack it first")


_SAVE = "save it again as UTF-8"


def _not_utf8(path: str, reason: str, remedy: str) -> UserError:
    return UserError(f"{path}: is no UTF-8 text ({reason}); {remedy}")
