"""Files that are whole or not there."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO


def atomic_write(
    path: str | Path,
    content: bytes | Callable[[BinaryIO], object],
    *,
    keep: Path | None = None,
    durable: bool = True,
) -> None:
    """Writes under a temporary name, flushes, then renames: `path` is always a whole file.

    A link is replaced, not followed. A process that is killed may leave `.NAME.PID.part`.

    Args:
        path: the file; its folder is made.
        content: what goes in, or a function that writes it.
        keep: the name that the file which is there now gets, in the same folder.
        durable: flush file and folder to the disk, for what could not be made again: milliseconds.

    Raises:
        OSError: with `path` as its filename: it cannot be written; what was there is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
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
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _keep(path: Path, keep: Path) -> None:
    """Gives a file a second name, so that there is no moment without the first."""
    link = keep.with_name(f".{keep.name}.{os.getpid()}.part")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # a file system without links: for a moment there is `keep` alone
        os.replace(path, keep)
        return
    os.replace(link, keep)
    link.unlink(missing_ok=True)  # still there when both were one file already


def sweep(path: Path) -> None:
    """Removes what killed processes left half written of a file."""
    for part in path.parent.glob(f".{path.name}.*.part"):
        part.unlink(missing_ok=True)
