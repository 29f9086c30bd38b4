"""Reads the files of a folder, a tar (compressed or not) or a zip through one set of calls."""

import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from util.runtime.errors import UserError

_DEPTH = 4  # folders below the given one that are searched
_DAMAGE = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError,
    NotImplementedError,
)  # fmt: skip


class Archive:
    """A downloaded folder, .tar, .tgz or .zip, as it lies on disk.

    Names are relative and have forward slashes; '' is the top folder. Every process that reads
    opens the archive for itself, so one may be handed to forked workers. Reading a compressed tar
    in the order of its members is fast, going back starts it over.

    Args:
        path: the folder or file.
        option: the option it came from, for messages ('--voc').

    Raises:
        UserError: when it is missing or damaged, or a member would leave the folder that it is
            unpacked to.
    """

    def __init__(self, path: str | Path, option: str) -> None:
        self.path, self.option = Path(path), option
        # Name -> size, and where its data start in a tar or its name as a zip has it.
        self._files: dict[str, tuple[int, int | str]] = {}
        self._children: dict[str, dict[str, None]] = {}  # folder -> names in it, in order
        self._opened: tuple[int, zipfile.ZipFile | tarfile.TarFile] | None = None
        if self.path.is_dir():
            self._kind = "folder"
            return
        if not self.path.is_file():
            raise UserError(f"{option} {path}: no such file or folder; check the path")
        self._kind = "zip" if zipfile.is_zipfile(self.path) else "tar"
        try:
            self._read_index()
        except _DAMAGE as error:
            raise UserError(
                f"{option} {path}: is no whole tar or zip ({error}); fetch it again"
            ) from None

    def folders(self) -> Iterator[str]:
        """Yields the folders, shallow ones first, down to a limited depth.

        A folder on disk that is reached a second time, through a link, is left out.
        """
        level, seen = [""], set()
        for _ in range(_DEPTH + 1):
            below = []
            for folder in level:
                if self._kind == "folder":
                    place = os.stat(self.path / folder)
                    if (place.st_dev, place.st_ino) in seen:
                        continue
                    seen.add((place.st_dev, place.st_ino))
                yield folder
                below += [join(folder, name) for name in self._folders_in(folder)]
            level = below

    def find(self, *wanted: str, prefer: str = "") -> str | None:
        """Returns the shallowest folder that holds each wanted file or folder, None without one.

        Of several at one depth it is the one called `prefer`, or the first by name.
        """
        holds = [f for f in self.folders() if all(self.has(join(f, name)) for name in wanted)]
        return min(
            holds,
            key=lambda f: (len(PurePosixPath(f).parts), PurePosixPath(f).name != prefer, f),
            default=None,
        )

    def has(self, name: str) -> bool:
        """Says whether there is a file or folder of that name."""
        if self._kind == "folder":
            return (self.path / name).exists()
        return name in self._files or name in self._children

    def files(self, folder: str, suffix: str) -> dict[str, int]:
        """Returns names (without the folder) and sizes in bytes of the files of a folder.

        They come in the order of the archive, or sorted from a folder. Hidden files are left out.

        Args:
            folder: the folder; empty when there is none of that name.
            suffix: what the names end in, '.jpg'.
        """
        if self._kind == "folder":
            try:
                with os.scandir(self.path / folder) as entries:
                    found = {e.name: _size(e) for e in entries if _shown(e.name, suffix)}
            except (FileNotFoundError, NotADirectoryError):
                return {}
            except OSError as error:
                raise UserError(self._unreadable(folder, error)) from None
            return {name: found[name] for name in sorted(found) if found[name] is not None}
        names = (name for name in self._children.get(folder, {}) if _shown(name, suffix))
        sizes = {name: self._files.get(join(folder, name)) for name in names}
        return {name: place[0] for name, place in sizes.items() if place}

    def read(self, name: str) -> bytes:
        """Returns the content of a file.

        Raises:
            UserError: when it cannot be read or is damaged.
        """
        try:
            if self._kind == "folder":
                return (self.path / name).read_bytes()
            handle, (size, place) = self._handle(), self._files[name]
            if isinstance(handle, zipfile.ZipFile):
                return handle.read(place)
            handle.fileobj.seek(place)
            content = handle.fileobj.read(size)
            if len(content) < size:
                raise EOFError("it ends too early")
            return content
        except _DAMAGE as error:
            raise UserError(self._unreadable(name, error)) from None

    def where(self, name: str) -> Path | None:
        """Returns the absolute path of a file or folder on disk; None in a tar or zip."""
        return Path(os.path.abspath(self.path / name)) if self._kind == "folder" else None

    def _unreadable(self, name: str, error: Exception) -> str:
        return f"{self.path / name}: cannot be read ({error}); fetch or copy it again"

    def _folders_in(self, folder: str) -> list[str]:
        if self._kind != "folder":
            names = self._children.get(folder, {})
            return sorted(name for name in names if join(folder, name) in self._children)
        try:
            with os.scandir(self.path / folder) as entries:
                return sorted(e.name for e in entries if _shown(e.name, "") and _is_folder(e))
        except OSError:  # not ours to read, such as lost+found
            return []

    def _handle(self) -> zipfile.ZipFile | tarfile.TarFile:
        if self._opened is None or self._opened[0] != os.getpid():
            opened = zipfile.ZipFile if self._kind == "zip" else tarfile.open
            self._opened = os.getpid(), opened(self.path)
        return self._opened[1]

    def _read_index(self) -> None:
        if self._kind == "zip":
            with zipfile.ZipFile(self.path) as archive:
                for info in archive.infolist():
                    is_link = stat.S_ISLNK(info.external_attr >> 16)
                    if info.flag_bits & 1:
                        raise UserError(f"{self.path}: has a password; fetch the original archive")
                    self._add(info.filename, info.file_size, info.filename, info.is_dir(), is_link)
        else:
            with tarfile.open(self.path) as archive:
                for info in archive:
                    special = info.issparse() or not (info.isreg() or info.isdir())
                    self._add(info.name, info.size, info.offset_data, info.isdir(), special)
                while archive.fileobj.read(1 << 20):  # to the checksum of a compressed tar
                    pass

    def _add(self, name: str, size: int, place: int | str, is_folder: bool, special: bool) -> None:
        path = PurePosixPath(name)
        if special or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
            what = "is a link or no plain file" if special else "leads out of its folder"
            raise UserError(f"{self.path}: its member {name!r} {what}; fetch the original archive")
        if not path.parts:  # './'
            return
        if is_folder:
            self._children.setdefault(str(path), {})
        else:
            self._files[str(path)] = size, place
        for part in [path, *path.parents][:-1]:
            self._children.setdefault(_parent(part), {})[part.name] = None


def join(folder: str, name: str) -> str:
    """Returns the name of what lies in a folder of an archive."""
    return f"{folder}/{name}" if folder else name


def _parent(path: PurePosixPath) -> str:
    return "" if str(path.parent) == "." else str(path.parent)


def _shown(name: str, suffix: str) -> bool:
    return name.endswith(suffix) and not name.startswith(".")


def _size(entry: os.DirEntry) -> int | None:
    try:
        return entry.stat().st_size if entry.is_file() else None
    except OSError:  # a link to nothing or to itself
        return None


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
