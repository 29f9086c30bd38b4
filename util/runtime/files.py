"""Atomic files: a file is complete, or it is absent."""

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
    """Write under a temporary name, flush, then rename: `path` is always a complete file.

    `content` is the bytes, or a function that writes them. The folder is created. A symbolic link
    is replaced, not followed. A killed process may leave `.NAME.PID.part` behind.

    With `keep`, the current file stays under that name, in the same folder. `durable` flushes file
    and folder to the disk. It takes milliseconds; use it for results that cannot be recreated.
    Raises `OSError` if `path`, its `filename`, cannot be written; the current file is then
    unchanged.
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
    """Give a file a second name, without a moment in which the first one is missing."""
    link = keep.with_name(f".{keep.name}.{os.getpid()}.part")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # no hard links here: for a moment, only `keep` exists
        os.replace(path, keep)
        return
    os.replace(link, keep)
    link.unlink(missing_ok=True)  # it remains if both were already one file


def sweep(path: Path) -> None:
    """Remove the half-written copies of a file that killed processes left behind."""
    for part in path.parent.glob(f".{path.name}.*.part"):
        part.unlink(missing_ok=True)
