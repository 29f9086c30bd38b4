"""Create many files: on several processes, each file complete or absent, and resumable."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from util.runtime.errors import UserError
from util.runtime.files import atomic_write
from util.runtime.log import log
from util.runtime.parallel import on_processes
from util.runtime.progress import bar

_BLOCK = 4096  # bytes: the space a file takes on disk is a multiple of it
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_KILLED = "run the same command again to continue; --workers 1 needs the least memory"


@dataclass(frozen=True)
class Job:
    """A file to create, unless it exists and is complete.

    Attributes:
        target: its path.
        content: its bytes; or a function that returns them, called in a worker process; or the
            absolute path that `target` becomes a symbolic link to.
        size: of the file in bytes; approximate unless `is_copy`.
        is_copy: `size` is exact, so an existing file of this size is complete. Otherwise, a file
            with computed content is complete if it ends as a PNG does.
    """

    target: Path
    content: bytes | Callable[[], bytes] | Path
    size: int = 0
    is_copy: bool = False


def build(out: Path, phases: list[list[Job]], workers: int, what: str) -> None:
    """Create the missing files, phase after phase, if the disk has enough space.

    A file appears under its name once it is complete. So the process may be killed at any moment,
    and the next run continues. Existing complete files are left alone.

    Args:
        out: the folder of all the files. Only one process at a time may build in it.
        phases: the files of each phase; a phase may read the files of an earlier one.
        workers: processes; with 1, this process does the work.
        what: what the files are, for the line that is logged at the end.

    Raises:
        UserError: the first one that a job raises, in the order of the jobs; or a file cannot be
            written, or the disk is too small.
        RunStopped: a worker was killed.
    """
    pending = [[job for job in jobs if not _is_complete(job)] for jobs in phases]
    if count := sum(map(len, pending)):
        _check_space(out, [job for jobs in pending for job in jobs])
    folders = sorted({job.target.parent for jobs in phases for job in jobs} | {out})
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, f"cannot be written ({error.strerror})") from None
    with _lock(out), bar(count, "creating files") as progress:
        for folder in folders:
            for part in folder.glob(".*.part"):  # from a run that was killed
                part.unlink()
        for jobs in pending:
            for _ in on_processes(_create, jobs, workers, _KILLED):
                progress.update()
    log.info("%s; %s", what, f"{count} files created" if count else "nothing to do")


def _is_complete(job: Job) -> bool:
    target, content = job.target, job.content
    try:
        if isinstance(content, Path):
            return os.readlink(target) == str(content) if target.is_symlink() else target.exists()
        if isinstance(content, bytes):
            return target.read_bytes() == content
        size = os.stat(target).st_size
        if job.is_copy or size < len(_PNG_END):
            return job.is_copy and size == job.size
        with open(target, "rb") as file:
            file.seek(-len(_PNG_END), os.SEEK_END)
            return file.read() == _PNG_END
    except OSError:
        return False


def _check_space(out: Path, jobs: list[Job]) -> None:
    needed = sum(-(-job.size // _BLOCK) * _BLOCK for job in jobs)
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    log.info("%s: needs about %s, %s free", out, _size(needed), _size(free))
    if needed > free:
        raise _unwritable(out, f"needs about {_size(needed)}, but only {_size(free)} are free")


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


@contextmanager
def _lock(out: Path) -> Iterator[None]:
    """Keep other runs out of a folder. The folder itself is locked: no lock file lies among data.

    Forked workers share the lock, so it is held until the last of them has ended.
    """
    folder = os.open(out, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network folders support no locks
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{out}: another run is writing here; wait until it ends") from None
        yield
    finally:
        os.close(folder)


def _create(job: Job) -> None:
    target, content = job.target, job.content() if callable(job.content) else job.content
    try:
        if isinstance(content, Path):
            part = target.with_name(f".{target.name}.{os.getpid()}.part")
            os.symlink(content, part)
            os.replace(part, target)
        else:
            atomic_write(target, content, durable=False)
    except OSError as error:
        raise _unwritable(target, f"cannot be written ({error.strerror})") from None


def _unwritable(path: Path, what: str) -> UserError:
    return UserError(f"{path}: {what}; make room there, or choose another --out")
