"""Names of files: which pictures a folder holds, and lists of their ids."""

import os
import unicodedata
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from util.runtime.errors import UserError
from util.runtime.files import read_lines


class Listing(NamedTuple):
    """The pictures of a folder.

    Attributes:
        names: id -> file name, sorted.
        unused: a line for each reason why other files are not used.
    """

    names: dict[str, str]
    unused: list[str]


def as_id(stem: str) -> str:
    """Return the id of an image, given its name without folder and suffix.

    In an id, an accented letter is one character (NFC), as in most texts. macOS makes it two in the
    names of files (NFD).
    """
    return unicodedata.normalize("NFC", stem)


def is_picture(name: str, suffixes: Collection[str]) -> bool:
    """Return whether the name of a file ends so, in upper or lower case, and is not hidden.

    macOS leaves a hidden `._photo.jpg` beside `photo.jpg`.
    """
    return os.path.splitext(name)[1].lower() in suffixes and not name.startswith(".")


def list_pictures(folder: Path, suffixes: Collection[str]) -> Listing:
    """List the pictures of a folder by their names (`is_picture`).

    Raises `UserError` if two pictures have the same id.
    """
    names: dict[str, str] = {}
    hidden, other = [], []
    for name in sorted(os.listdir(folder)):
        if is_picture(name, suffixes):
            first = names.setdefault(as_id(os.path.splitext(name)[0]), name)
            if first != name:
                remedy = "rename one, and its mask"
                raise UserError(f"{folder / name}: {first} has the same name; {remedy}")
        else:
            (hidden if name.startswith(".") else other).append(name)
    endings = ", ".join(suffixes)
    unused = [
        *not_used(folder, "hidden files", hidden),
        *not_used(folder, f"files or folders whose names do not end in {endings}", other),
    ]
    return Listing(names, unused)


def not_used(folder: Path, what: str, names: Iterable[str]) -> list[str]:
    """Return a line that says how many files are not used and why; none if there is no file."""
    names = list(names)
    return [f"{folder}: not used: {len(names)} {what}, such as {names[0]}"] if names else []


def read_ids(path: Path) -> list[str]:
    """Read a list of image ids, a line each, which may contain spaces; a repeated one counts once.

    Raises `UserError` if there is no such file, it is no text, or a line is no name.
    """
    if not path.is_file():
        remedy = "arrange the data as docs/data.md says, or set Data.data_root"
        raise UserError(f"{path}: no such list; {remedy}")
    ids = dict.fromkeys(as_id(line) for line in read_lines(path))
    for name in ids:  # they become file names, also in `Data.cache`
        if "/" in name or "\0" in name:
            raise UserError(f"{path}: {name!r} is no image name; remove the line")
    return list(ids)
