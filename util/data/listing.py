"""Names of files: which pictures a folder holds, and lists of their ids."""

import os
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from util.data.image_io import SUFFIXES
from util.runtime.errors import UserError, refuse
from util.runtime.texts import read_lines


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
    hidden: list[str] = []
    other: list[str] = []
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

    Raises `UserError` if there is no such file, it is no text, it is empty, or a line is no name.
    """
    try:
        lines = read_lines(path)
    except FileNotFoundError:
        remedy = "arrange the data as docs/data.md says, or set Data.data_root"
        raise UserError(f"{path}: no such list; {remedy}") from None
    ids = dict.fromkeys(map(as_id, lines))
    wrong = [f"{name!r} is no image name" for name in ids if "/" in name or "\0" in name]
    refuse(str(path), wrong, f"{_PLAIN_NAMES}, or remove the line")  # ids become names of files
    return list(ids)


def require_listed(path: Path, ids: Collection[str], masks: Mapping[str, str]) -> None:
    """Raise `UserError` if a list of ids, read from `path`, is empty or has ids without a mask.

    `masks` is the listing of the folder of the masks (id -> file name).
    """
    if not ids:
        raise UserError(f"{path}: names no image; write the names there, or delete it to use all")
    near: dict[str, list[str]] = {}
    for image_id in masks:
        near.setdefault(_bare(image_id), []).append(image_id)
    mistakes = []
    for image_id in ids:
        if image_id not in masks:
            found = near.get(_bare(image_id)) or near.get(_bare(image_id.split("\t")[0]))
            verb = "have" if found and len(found) > 1 else "has"
            hint = f", but {' and '.join(map(repr, found))} {verb} one" if found else ""
            if found and found[0] != found[0].strip():
                hint += " (a list cannot name it: rename the files)"
            mistakes.append(f"lists {image_id!r}, which has no mask{hint}")
    refuse(str(path), mistakes, f"{_PLAIN_NAMES}, add the mask, or remove the line")


def _bare(name: str) -> str:
    """Return a form of an id that is equal for what people write in its place."""
    stem, suffix = os.path.splitext(name.strip())
    return (stem if suffix.lower() in SUFFIXES else name.strip()).casefold()


_PLAIN_NAMES = "write names without folder and suffix, and nothing else in a line"
