"""The folder of one's own photographs, looked up by the file names of the labels."""

import os
import re
import unicodedata
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from util.data.image_io import SUFFIXES, image_size
from util.data.listing import is_picture
from util.runtime.errors import UserError

_USABLE = ", ".join(SUFFIXES)


class Photos:
    """The photographs in a folder and its subfolders.

    What is in `without`, files or subfolders, is no input and does not count. Raises `UserError` if
    there is no such folder.
    """

    def __init__(self, folder: Path, without: Iterable[Path] = ()) -> None:
        if not folder.is_dir():
            what = "is a file, not a folder" if folder.is_file() else "no such folder"
            if folder.is_symlink() and not folder.exists():
                what = f"is a link to {os.readlink(folder)}, which is not there"
            raise UserError(f"--images {folder}: {what}; name the folder of the images")
        self.folder = folder
        self._without = {os.path.realpath(path) for path in without}

    @cached_property
    def _listed(self) -> dict[str, str]:
        """Every file: its path below the folder in the form NFC -> on the disk."""
        found = {}
        for at, below, names in os.walk(self.folder):
            place = os.path.realpath(at)
            below[:], names = (
                sorted(n for n in inside if os.path.join(place, n) not in self._without)
                for inside in (below, names)
            )
            for name in names:
                path = PurePosixPath(Path(at, name).relative_to(self.folder).as_posix())
                found[unicodedata.normalize("NFC", str(path))] = str(path)
        return found

    @cached_property
    def _near(self) -> dict[str, list[str]]:
        """Name of photographs, without folder, suffix and case -> their paths."""
        near: dict[str, list[str]] = {}
        for path in filter(_is_photo, self._listed):
            near.setdefault(_bare(path), []).append(path)
        return near

    def near(self, file_name: str) -> str:
        """Return a hint at the photograph that the labels may mean, '' if there is none.

        Tools write other suffixes or cases, addresses, or paths of their own (Label Studio's
        `/data/local-files/?d=photos/p1.jpg`).
        """
        words = re.split(r"[?&=]", unquote(file_name.replace("\\", "/")))
        found = (self._near.get(_bare(word)) for word in words)
        paths = next((paths for paths in found if paths), [])
        if len(paths) > 1:
            more = f" and {len(paths) - 2} more" if len(paths) > 2 else ""
            return f", but there are {paths[0]}, {paths[1]}{more}: write one of them in the labels"
        return f", but {paths[0]} is there: write that in the labels" if paths else ""

    def path(self, file_name: str) -> Path:
        """Return the path of a photograph. Raises `UserError` if there is none to be used."""
        # A link to a folder is not listed, and leads to photographs all the same.
        held = self.folder / self._listed.get(file_name, file_name)
        if not is_picture(held.name, SUFFIXES):
            what = f"{file_name!r} is no picture that can be used (its name must end in {_USABLE})"
            raise UserError(f"{what}{self.near(file_name)}")
        if not os.path.lexists(held):
            start = "--images must be the folder that the labels' file names start from"
            hint = self.near(file_name) or f" ({start})"
            raise UserError(f"{self.folder / file_name}: no such image{hint}")
        return held

    def size(self, file_name: str) -> tuple[int, int]:
        """Return height and width of a photograph. Raises `UserError` as `path`, or if damaged."""
        return image_size(self.path(file_name))

    def others(self, named: set[str], labels: str) -> dict[str, list[str]]:
        """Return the files that are not among the `named` ones: why they are not used -> names."""
        other = [name for name in self._listed if name not in named]
        hidden = [name for name in other if PurePosixPath(name).name.startswith(".")]
        photos = [name for name in other if _is_photo(name)]
        rest = sorted(set(other) - {*hidden, *photos})
        return {
            f"pictures that {labels} does not name": photos,
            "hidden files": hidden,
            f"files whose names do not end in {_USABLE}": rest,
        }


def _is_photo(path: str) -> bool:
    return is_picture(PurePosixPath(path).name, SUFFIXES)


def _bare(path: str) -> str:
    return unicodedata.normalize("NFC", PurePosixPath(path).stem).casefold()
