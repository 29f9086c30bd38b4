"""Read the files of a folder, a tar (compressed or not) or a zip through the same methods."""

import lzma
import os
import stat
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from util.runtime.errors import UserError

_DEPTH = 4  # levels of folders below the given one that are searched
LARGEST_MEMBER = 2 * 10**9  # bytes; the labels of COCO have a quarter of it
_AGAIN = "download or copy it again"
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError,
           NotImplementedError)  # fmt: skip


def open_archive(path: Path, option: str) -> "Archive":
    """Open a folder, .tar, .tgz or .zip that a command-line option ('--voc') names.

    Raises `UserError` if it is missing or damaged, or a member is a link or points outside.
    """
    if path.is_dir():
        return Archive(path)
    if not path.is_file():
        raise UserError(f"{option} {path}: no such file or folder; check the path")
    try:
        return _PackedArchive(path)
    except _DAMAGE as error:
        raise damaged(f"{option} {path}", f"not a complete tar or zip ({error})") from None


class Archive:
    """A downloaded folder. Use `open_archive`, which opens a tar or zip with the same methods.

    Names are relative to the top folder, which is "", and have forward slashes. An archive may be
    passed to workers: each process and thread opens a tar or zip for itself.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def folders(self) -> Iterator[str]:
        """Yield the folders to a limited depth, upper levels first.

        A folder on disk that a link reaches a second time is left out.
        """
        found, seen = [""], set()
        for folder in found:  # grows meanwhile
            path = self.where(folder)
            identity = os.path.realpath(path) if path else folder
            if identity not in seen:
                seen.add(identity)
                yield folder
                if len(PurePosixPath(folder).parts) < _DEPTH:
                    found += [join(folder, name) for name in self._subfolders(folder)]

    def find(self, *wanted: str, prefer: str = "") -> str | None:
        """Return the uppermost folder that holds all the wanted files and folders, if any.

        Of several on one level it is the one called `prefer`, otherwise the first by name.
        """

        def rank(folder: str) -> tuple[int, bool, str]:
            path = PurePosixPath(folder)
            return len(path.parts), path.name != prefer, folder

        found = (f for f in self.folders() if all(self.has(join(f, name)) for name in wanted))
        return min(found, key=rank, default=None)

    def has(self, name: str) -> bool:
        """Return whether there is a file or folder of that name."""
        return (self.path / name).exists()

    def files(self, folder: str, suffix: str) -> dict[str, int]:
        """Return the names (without the folder) and sizes in bytes of a folder's files.

        They come in the order of the archive, or sorted from a folder on disk. Hidden files and
        files that do not end in `suffix` ('.jpg') are left out. A missing folder has no files.
        """
        try:
            with os.scandir(self.path / folder) as entries:
                listed = (e for e in entries if _is_listed(e.name, suffix) and os.path.isfile(e))
                return dict(sorted((entry.name, entry.stat().st_size) for entry in listed))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise damaged(self.path / folder, f"cannot be read ({error})", _AGAIN) from None

    def read(self, name: str) -> bytes:
        """Return a file's content, or raise `UserError` if it cannot be read or is damaged.

        Read a compressed tar in its own order: each step back starts it over.
        """
        try:
            return self._read(name)
        except _DAMAGE as error:
            raise damaged(self.path / name, f"cannot be read ({error})", _AGAIN) from None

    def where(self, name: str) -> Path | None:
        """Return the absolute path of a file or folder on disk; None in a tar or zip."""
        return Path(os.path.abspath(self.path / name))

    def holder(self, name: str) -> Path:
        """Return the path of the file on disk that holds a file: itself, or the tar or zip."""
        return self.where(name) or self.path

    def _subfolders(self, folder: str) -> list[str]:
        # Nothing, if there is no permission, as for lost+found.
        _, names, _ = next(os.walk(self.path / folder), ("", [], []))
        return sorted(name for name in names if _is_listed(name))

    def _read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()


class _PackedArchive(Archive):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        # Name -> size in bytes, and what tarfile or zipfile knows of the member.
        self._members: dict[str, tuple[int, Any]] = {}
        self._children: dict[str, dict[str, None]] = {}  # folder -> names in it, in order
        # Process and thread -> the archive as it has opened it, since a file has one position.
        self._opened: dict[tuple[int, int], zipfile.ZipFile | tarfile.TarFile] = {}
        self._open: Callable[[Path], zipfile.ZipFile | tarfile.TarFile] = (
            zipfile.ZipFile if zipfile.is_zipfile(path) else tarfile.open
        )
        with self._open(path) as archive:
            if isinstance(archive, zipfile.ZipFile):
                for info in archive.infolist():
                    if info.flag_bits & 1:
                        raise UserError(f"{path}: has a password; download the original archive")
                    is_link = stat.S_ISLNK(info.external_attr >> 16)
                    self._add(info.filename, info.file_size, info, info.is_dir(), is_link)
                return
            for member in archive:
                is_special = not (member.isreg() or member.isdir())
                self._add(member.name, member.size, member, member.isdir(), is_special)
            assert archive.fileobj is not None
            while archive.fileobj.read(1 << 20):  # to the checksum of a compressed tar
                pass

    def has(self, name: str) -> bool:
        return name in self._members or name in self._children

    def files(self, folder: str, suffix: str) -> dict[str, int]:
        names = [name for name in self._children.get(folder, {}) if _is_listed(name, suffix)]
        members = {name: self._members.get(join(folder, name)) for name in names}
        return {name: member[0] for name, member in members.items() if member}

    def where(self, name: str) -> None:
        return None

    def _subfolders(self, folder: str) -> list[str]:
        names = self._children.get(folder, {})
        return sorted(name for name in names if join(folder, name) in self._children)

    def _read(self, name: str) -> bytes:
        place = os.getpid(), threading.get_ident()
        if place not in self._opened:
            self._opened[place] = self._open(self.path)
        archive, (size, member) = self._opened[place], self._members[name]
        if size > LARGEST_MEMBER:
            what = f"{name} has {size / 1e9:.1f} GB, more than any picture or list"
            raise UserError(f"{self.path}: {what}; fetch the archive again")
        if isinstance(archive, zipfile.ZipFile):
            return archive.read(member)
        file = archive.extractfile(member)
        assert file is not None, "members are regular files"
        return file.read()

    def _add(self, name: str, size: int, member: Any, is_folder: bool, is_special: bool) -> None:
        # tarfile's own filters are made for extraction: they let links and absolute names pass.
        path = PurePosixPath(name)
        if is_special or path.is_absolute() or ".." in path.parts or {"\\", "\0"} & set(name):
            what = "is a link or a device" if is_special else "points outside the archive"
            raise UserError(f"{self.path}: member {name!r} {what}; download the original archive")
        if not path.parts:  # './'
            return
        if is_folder:
            self._children.setdefault(str(path), {})
        else:
            self._members[str(path)] = size, member
        rest = str(path)
        while rest:
            folder, _, last = rest.rpartition("/")
            self._children.setdefault(folder, {})[last] = None
            rest = folder


def join(folder: str, name: str) -> str:
    """Return the name of a folder's file in an archive."""
    return f"{folder}/{name}" if folder else name


def damaged(path: Path | str, what: str, remedy: str = "download it again") -> UserError:
    """Return the error for a download, or a file of it, that is damaged or incomplete."""
    return UserError(f"{path}: {what}; {remedy}")


def _is_listed(name: str, suffix: str = "") -> bool:
    return name.endswith(suffix) and not name.startswith(".")
