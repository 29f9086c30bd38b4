"""Files that are complete or absent, and that replace nothing that someone else made."""

import errno
import hashlib
import itertools
import json
import os
import platform
import re
import secrets
import stat
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from util.runtime.errors import UserError
from util.runtime.system import flush_folder, hold

_LONG_NAME = 200
"""Bytes of a name; a disk takes 255, and a temporary name is longer than that of its file."""

_PART = re.compile(r"\.(.+)\.[\w-]*\.[0-9a-f]{16}\.part", re.DOTALL | re.ASCII)
"""What `part_name` returns; the first group is the name, or its SHA-256."""


def atomic_write(
    path: str | Path,
    content: bytes | Callable[[BinaryIO], object],
    *,
    keep: Path | None = None,
    durable: bool = True,
) -> None:
    """Write under a temporary name, flush, then rename: `path` is always a complete file.

    `content` is the bytes, or a function that writes them. The folder is created. A symbolic link
    is replaced, not followed. A killed process may leave a file of `part_name` behind.

    With `keep`, the current file stays under that name, in the same folder. `durable` flushes file
    and folder to the disk. It takes milliseconds; use it for results that cannot be recreated.
    Raises `OSError` if `path`, its `filename`, cannot be written; the current file is then
    unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_name(path)
    try:
        with open(part, "xb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        if keep and path.exists():
            _keep(path, keep)
        os.replace(part, path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink()
        if isinstance(error, OSError):
            error.filename = str(path)
        raise
    if durable:
        flush_folder(path.parent)


def _keep(path: Path, keep: Path) -> None:
    """Give a file a second name, without a moment in which the first one is missing."""
    link = part_name(keep)
    try:
        os.link(path, link)
    except OSError:  # no hard links here: for a moment, only `keep` exists
        os.replace(path, keep)
        return
    os.replace(link, keep)
    link.unlink(missing_ok=True)  # it remains if both were already one file


def part_name(path: Path, suffix: str = ".part") -> Path:
    """Return a temporary name beside `path`: `.NAME.HOST.RANDOM.part`.

    No other process or thread has it, on any machine that shares the folder. It is never too long
    where the file's own name is not: a long NAME is replaced by its SHA-256.
    """
    host = re.sub(r"\W", "-", platform.node(), flags=re.ASCII)[:16]
    return path.with_name(f".{_short(path.name)}.{host}.{secrets.token_hex(8)}{suffix}")


def _short(name: str) -> str:
    is_long = len(os.fsencode(name)) > _LONG_NAME
    return hashlib.sha256(os.fsencode(name)).hexdigest() if is_long else name


def sweep(folder: Path, names: Collection[str]) -> None:
    """Remove the half-written copies of these files that killed processes left in a folder."""
    short = {_short(name) for name in names}
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            part = _PART.fullmatch(entry.name)
            if part and part[1] in short and not entry.is_dir(follow_symlinks=False):
                Path(entry.path).unlink(missing_ok=True)


def _is_inside(name: str) -> bool:
    """Return whether a name leads to a place in the folder that it starts from, not to it."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _entry(line: bytes) -> list[tuple[str, str, str]]:
    """Return name, digest and stamp ('': none) in a line of a tool's list.

    There is none if a kill or a stranger wrote it.
    """
    try:
        entry = json.loads(line)
        if isinstance(entry, list) and set(map(type, entry)) == {str} and len(entry) in (2, 3):
            os.fsencode(entry[0])
            name, digest, *stamp = entry
            return [(name, digest, "".join(stamp))]
    except ValueError:  # no JSON, or no name that a disk takes
        pass
    return []


class Outputs:
    """The files that one tool writes into a folder; it replaces only what it made itself.

    `.made_by_TOOL` in the folder has a line for each file that the tool wrote: its name and the
    SHA-256 of its content. So a file that a person or another tool put there, or changed since, is
    told apart from the tool's own. The line is written before the file: a killed run may leave a
    line without its file, and never a file without its line. A third entry of the line, a stamp,
    stands for all that the file was made from.

    `option` is what a message calls the folder. `overwrite` is the option `--overwrite`; None: the
    tool has none.
    """

    def __init__(
        self, folder: str | Path, tool: str, option: str = "--out", overwrite: bool | None = None
    ) -> None:
        self.folder, self.option, self.overwrite = Path(folder), option, overwrite
        self._list = self.folder / f"{_MADE_BY}{tool}"
        # Name -> digest of what the tool wrote there -> the stamps of what that was made from.
        self._own: dict[str, dict[str, set[str]]] = {}
        is_plain = self._list.is_file() and not self._list.is_symlink()
        if os.path.lexists(self._list) and not is_plain:
            what = f"{self._list} is no plain file, so it is not this command's list"
            raise UserError(f"{option}: {what}; move it away, or {_ANOTHER}")
        with suppress(OSError):
            for line in self._list.read_bytes().splitlines():
                for name, digest, stamp in _entry(line):
                    self._own.setdefault(name, {}).setdefault(digest, set()).add(stamp)

    def claim(
        self, names: Iterable[str], inputs: Iterable[str | Path] = (), alone: bool = False
    ) -> None:
        """Refuse what must not be replaced by the files `names`, before any of them is written.

        These are the files that the run reads, `inputs`, with and without `overwrite`; where an
        input is a folder, they are the files in it that the tool did not make. Without `overwrite`,
        these are all files that the tool did not make. With `alone`, the tool also wants the folder
        for itself: one that holds a data set, a run or the output of another tool is refused
        always, one that holds other files unless the tool has used it before. A link in the folder
        may lead to somebody else's: there, such files stay, and with `alone` it is refused. Raises
        `UserError`.
        """
        if alone:
            self._require_own_folder()
        names = list(dict.fromkeys(names))
        self._require_folders(names)
        foreign = [name for name in names if not self.may_replace(name)]
        read = {place for path in inputs for place in _places(os.path.expanduser(path))}
        for name in names:
            path = self.folder / name
            if path.is_dir():
                what = f"{path} is a folder, where a file would be written"
                raise UserError(f"{self.option}: {what}; {_AWAY}")
            if _places(path)[0] in read:
                what = f"{path} is an input of this run and would be replaced"
                raise UserError(f"{self.option}: {what}; {_ANOTHER}")
        for name in foreign:
            path = self.folder / name
            if above := read.intersection(map(str, Path(_places(path)[0]).parents)):
                what = f"{path} is in {above.pop()}, which this run reads, and would be replaced"
                raise UserError(f"{self.option}: {what}; {_ANOTHER}")
        self._refuse_links(names if alone else foreign)
        if foreign and not self.overwrite:
            path = self.folder / foreign[0]
            count = f" ({len(foreign)} such files)" if len(foreign) > 1 else ""
            what = f"{path} exists, and this command did not make it, or it was changed{count}"
            raise UserError(f"{self.option}: {what}; {self._remedy()}")

    def _folders_below(self, names: Iterable[str]) -> list[Path]:
        """Return the folders, inside the tool's own, that these names lead through."""
        folders = {folder for name in names for folder in PurePosixPath(name).parents}
        return [self.folder / folder for folder in sorted(folders) if folder.parts]

    def _require_folders(self, names: Iterable[str]) -> None:
        """Refuse a file, or a link to nothing, where these names need a folder."""
        for path in self._folders_below(names):
            if os.path.lexists(path) and not path.is_dir():
                what = f"{path} is no folder, and files have to be written into it"
                raise UserError(f"{self.option}: {what}; {_ANOTHER}, or move it away")

    def _refuse_links(self, names: Iterable[str]) -> None:
        """Refuse to write these files if a link below the folder leads to them."""
        for path in self._folders_below(names):
            if path.is_symlink():
                what = f"{path} is a link to {os.path.realpath(path)}, whose files must stay"
                raise UserError(f"{self.option}: {what}; {_ANOTHER}, or remove the link")

    def _require_own_folder(self) -> None:
        try:
            held = sorted(os.listdir(self.folder))
        except OSError:  # new, or no folder: creating it will tell
            return
        require_not_held(self.folder, self.option)
        if other := [n for n in held if n.startswith(_MADE_BY) and n != self._list.name]:
            tool = other[0].removeprefix(_MADE_BY)
            what = f"holds the output of another command ({tool})"
            raise UserError(f"{self.option} {self.folder}: {what}; {_ANOTHER}")
        foreign = [name for name in held if not name.startswith(".")]  # .DS_Store and the like
        if foreign and not self.overwrite and not self._list.exists():
            what = f"holds files that this command did not make, such as {foreign[0]}"
            raise UserError(f"{self.option} {self.folder}: {what}; {self._remedy()}")

    def _remedy(self) -> str:
        return _AWAY if self.overwrite is None else f"{_ANOTHER}, or add --overwrite"

    def may_replace(self, name: str) -> bool:
        """Return whether there is no such file, or the tool wrote what is in it."""
        path = self.folder / name
        if not os.path.lexists(path):
            return True
        if not path.is_symlink() and not path.is_file():  # a folder or a pipe is in its place
            return False
        with suppress(OSError):
            return _digest(path) in self._own.get(name, {})
        return False

    def is_current(self, name: str, stamp: str) -> bool:
        """Return whether the file is there as the tool wrote it with this stamp."""
        path, own = self.folder / name, self._own.get(name, {})
        if not any(stamp in stamps for stamps in own.values()):  # nothing is read in vain
            return False
        return path.is_file() and stamp in own.get(_digest(path), ())

    def listed(self) -> list[str]:
        """Return the names that the list holds and that are there, changed since or not."""
        there = ((name, self.folder / name) for name in self._own if _is_inside(name))
        return [n for n, path in there if path.is_symlink() or path.exists() and not path.is_dir()]

    def sweep(self, names: Iterable[str]) -> None:
        """Remove half-written copies of these files and of those of the list (`files.sweep`)."""
        inside: dict[Path, set[str]] = defaultdict(set)
        for name in (*names, *self._own):
            if _is_inside(name):
                path = self.folder / name
                inside[path.parent].add(path.name)
        for folder, own in inside.items():
            sweep(folder, own)

    def remove(self, name: str) -> None:
        """Remove a file that was claimed, or of which `may_replace` is true; it may be gone."""
        (self.folder / name).unlink(missing_ok=True)

    def mark(self) -> None:
        """Make the folder the tool's own, before it has listed anything."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._list.touch()

    def write(self, name: str, content: bytes, durable: bool = True, stamp: str = "") -> None:
        """Write a file as `atomic_write` does, and list it as made by this tool, with a stamp."""
        self._record(name, hashlib.sha256(content).hexdigest(), stamp)
        atomic_write(self.folder / name, content, durable=durable)

    @contextmanager
    def appending(self, name: str, begin: bytes) -> Iterator[Callable[[bytes], None]]:
        """Begin a file anew with these bytes; yield a function that appends to it.

        What an interrupted run has appended stays, and is listed.
        """
        self.write(name, begin)
        digest = hashlib.sha256(begin)
        with open(self.folder / name, "ab", buffering=0) as file:

            def append(piece: bytes) -> None:
                digest.update(piece)
                self._record(name, digest.hexdigest())
                file.write(piece)

            yield append

    def adopt(self, name: str, part: Path) -> None:
        """Give a complete file, which lies in the folder, its name, and list it."""
        self._record(name, _digest(part))
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(part, self.folder / name)

    def link(self, name: str, target: Path) -> None:
        """Make a symbolic link to the absolute path `target`, and list it."""
        path = self.folder / name
        self._record(name, f"link to {target}")
        path.parent.mkdir(parents=True, exist_ok=True)
        part = part_name(path)
        os.symlink(target, part)
        os.replace(part, path)

    def _record(self, name: str, digest: str, stamp: str = "") -> None:
        if stamp in self._own.get(name, {}).get(digest, ()):
            return
        self.mark()
        entry = [name, digest, *filter(None, [stamp])]
        with open(self._list, "ab") as file:  # one write: several processes may add lines
            file.write(f"\n{json.dumps(entry)}".encode())  # a torn line ends first
        self._own.setdefault(name, {}).setdefault(digest, set()).add(stamp)


_MADE_BY = ".made_by_"
_ANOTHER = "name another place"
_AWAY = f"{_ANOTHER}, or move it away"
_HELD = {
    "a data set": (
        *("classes.txt", "images", "JPEGImages", "SegmentationClassAug", "ImageSets"),
        *("VOCdevkit2012", "VOC2012", "MSCOCO2014", "base_annotation", "annotations"),
        *(f"{subset}{year}" for subset in ("train", "val") for year in (2014, 2017)),
    ),
    "a run": ("config.yaml", "result.json", "best.pth", "last.pth"),
}
"""What a folder may hold that tools must keep out of -> names of files and folders that tell."""


def require_not_held(folder: Path, option: str, *, own_run: bool = False) -> None:
    """Raise `UserError` if a folder, which messages call `option`, holds a data set or a run.

    With `own_run`, the run there belongs to the caller.
    """
    for what, marks in _HELD.items():
        if own_run and what == "a run":
            continue
        if found := [name for name in marks if os.path.lexists(folder / name)]:
            where = f"{option} {folder}: holds {what} ({found[0]})"
            raise UserError(f"{where}, where nothing else may be written; {_ANOTHER}")


def require_alone(folder: Path, option: str, kind: str = "run") -> None:
    """Hold a folder, which messages call `option`, as `system.hold` does.

    Raises `UserError` if another process writes there.
    """
    if owner := hold(folder, kind):
        remedy = "wait until it ends, stop it, or name another folder"
        raise UserError(f"{option} {folder}: another {kind} writes there ({owner}); {remedy}")


def _places(path: str | Path) -> tuple[str, str]:
    """Return where a file is, and where what it leads to is if it is a link."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(folder), name), os.path.realpath(path)


def _digest(path: Path) -> str:
    if path.is_symlink():
        return f"link to {os.readlink(path)}"
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_file(path: Path) -> BinaryIO:
    """Open a file to read its bytes.

    Raises `UserError` if it is a pipe or a device, of which reading may never end, or a link to
    nothing, and `OSError` if it cannot be read.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            what = f"{path}: is a link to {os.readlink(path)}, which is not there"
            raise UserError(f"{what}; put the file back, or delete the link") from None
        raise
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UserError(f"{path}: is a pipe or a device; name a file")
    return open(path, "rb")


def unwritable(path: str | Path, error: OSError, remedy: str) -> UserError:
    """Return the error for a file that cannot be written: its true reason, and what helps.

    `remedy` is what helps if the disk is not full, such as "choose another --out".
    """
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    remedy = f"make room there, or {remedy}" if is_full else remedy
    reason = error.strerror or str(error)
    return UserError(f"{path}: cannot be written ({reason}); {remedy}")


def free_name(path: Path) -> Path:
    """Return a name beside `path` that no file has: result.json gives result.1.json, and so on."""
    names = (path.with_name(f"{path.stem}.{n}{path.suffix}") for n in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name))
