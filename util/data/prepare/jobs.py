"""Makes many files at once: by several processes, each file whole or absent, and resumable."""

import fcntl
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

from tqdm import tqdm

from util.runtime.errors import RunStopped, UserError
from util.runtime.files import atomic_write
from util.runtime.parallel import bar

_CHUNK = 16  # files a worker makes before it asks for more
_BLOCK = 4096  # bytes: what a small file takes on disk is a multiple of it
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


@dataclass(frozen=True)
class Job:
    """A file that has to be there.

    Attributes:
        target: its path.
        content: its bytes; or what makes them, in a worker process; or the absolute path that
            `target` becomes a symbolic link to.
        size: of the file in bytes; of a made one about.
        is_copy: `size` is exact: a file that is there is whole when it has this size. Without it,
            a made file is whole when it ends as a PNG does.
    """

    target: Path
    content: bytes | Callable[[], bytes] | Path
    size: int = 0
    is_copy: bool = False


def note(text: str) -> None:
    """Prints a line on stderr about something that the user may want to look into."""
    print(f"note: {text}", file=sys.stderr)


def build(out: Path, phases: list[list[Job]], workers: int) -> int:
    """Makes the files that are not there, phase after phase, after a look at the free space.

    A file appears under its name when it is whole, so a run may be killed at any moment and the
    next one goes on. Files that are there and whole stay as they are.

    Args:
        out: the folder that all of them lie in; only one process at a time may build in it.
        phases: the files of each phase; a phase may read what the one before it made.
        workers: processes; 1 works in this one.

    Returns:
        How many files were made.

    Raises:
        UserError: when a job does, the first of them in order; when a file cannot be written, or
            the space will not do.
        RunStopped: when a worker was killed.
    """
    pending = [[job for job in jobs if not _is_whole(job)] for jobs in phases]
    count = sum(map(len, pending))
    if count:
        _check_space(out, [job for jobs in pending for job in jobs])
    folders = sorted({job.target.parent for jobs in phases for job in jobs} | {out})
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(_unwritable(folder, error)) from None
    with _alone(out):
        for folder in folders:
            _sweep(folder)
        with bar(count, "making files") as progress:
            for jobs in pending:
                _make_all(jobs, min(workers, -(-len(jobs) // _CHUNK)), progress)
    return count


def _is_whole(job: Job) -> bool:
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
    need = sum(-(-job.size // _BLOCK) * _BLOCK for job in jobs)
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    print(f"needs about {_size(need)} in {out}, {_size(free)} free", flush=True)
    if need > free:
        raise UserError(
            f"{out}: needs about {_size(need)} and has {_size(free)} free; make room there,"
            " or give another --out"
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keeps a second run out of a folder. Workers hold the lock too, for as long as they live."""
    place = os.open(out, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network folders know no locks
            try:
                fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{out}: another run is writing here; wait for its end") from None
        yield
    finally:
        os.close(place)


def _sweep(folder: Path) -> None:
    """Removes what a killed run left half written."""
    with os.scandir(folder) as entries:
        left = [e.path for e in entries if e.name.startswith(".") and e.name.endswith(".part")]
    for path in left:
        os.unlink(path)


def _make_all(jobs: list[Job], workers: int, progress: tqdm) -> None:
    if workers <= 1:
        for job in jobs:
            _make(job)
            progress.update()
        return
    # fork: the jobs, and all that they refer to, are in the workers without being sent there.
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(jobs,))
    # Workers start with SIGINT blocked and keep it so: a Ctrl-C is this process's to answer.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        starts = range(0, len(jobs), _CHUNK)
        futures = [pool.submit(_make_chunk, start, start + _CHUNK) for start in starts]
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        for future in as_completed(futures):
            progress.update(future.result())
    except BrokenProcessPool:
        raise RunStopped(
            "a worker process was killed, for want of memory perhaps; the same command goes on"
            " where this one was, --workers 1 takes the least memory"
        ) from None
    except ValueError:
        pool.shutdown(cancel_futures=True)
        failed = (f.exception() for f in futures if not f.cancelled())
        raise UserError(str(next(e for e in failed if isinstance(e, ValueError)))) from None
    finally:
        pool.shutdown(cancel_futures=True)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


_jobs: list[Job] = []  # a worker's


def _start_worker(jobs: list[Job]) -> None:
    global _jobs
    _jobs = jobs
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends a worker whose parent was killed; it would wait for work for ever."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _make_chunk(start: int, stop: int) -> int:
    for job in _jobs[start:stop]:
        _make(job)
    return len(_jobs[start:stop])


def _make(job: Job) -> None:
    content = job.content
    if callable(content):
        content = content()
    try:
        if isinstance(content, Path):
            _link(job.target, content)
        else:
            atomic_write(job.target, content, durable=False)
    except OSError as error:
        raise UserError(_unwritable(job.target, error)) from None


def _link(target: Path, source: Path) -> None:
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    os.symlink(source, part)
    os.replace(part, target)


def _unwritable(path: Path, error: OSError) -> str:
    return f"{path}: cannot be written ({error.strerror}); make room there, or give another --out"
