"""What differs between Linux, macOS and Windows; nothing outside util/runtime asks for it."""

import multiprocessing
import os
import platform
import re
import struct
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from util.runtime.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def can_fork() -> bool:
    """Return whether worker processes may be forked: elsewhere a fork may crash in a library."""
    return sys.platform == "linux" and (
        multiprocessing.get_start_method(allow_none=True) in (None, "fork")
    )


def resident_peak() -> int:
    """Return this process's peak memory in bytes; 0 if the system does not tell."""
    # First /proc: elsewhere the peak may start from that of the parent.
    if found := re.search(r"VmHWM:\s+(\d+) kB", _proc("self/status")):
        return int(found[1]) * 1024
    if resource is None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def small_shared_memory() -> int:
    """Return the size of /dev/shm in bytes if it is small: a container of Docker has 64 MB; or 0.

    Loader workers leave their batches there.
    """
    try:
        found = os.statvfs("/dev/shm")
    except (OSError, AttributeError):  # there is none; Windows
        return 0
    size = found.f_frsize * found.f_blocks
    return size if size <= 2**30 else 0


def processor() -> str:
    """Return the processor's model as Linux names it, or else as Python does."""
    found = re.search(r"^model name\s*:\s*(.+)$", _proc("cpuinfo"), re.MULTILINE)
    return found[1].strip() if found else platform.processor()


def children(pid: int) -> list[int]:
    """Return the processes that a process has started, on Linux."""
    return [int(child) for child in _proc(f"{pid}/task/{pid}/children").split()]


def _proc(name: str) -> str:
    """Return a file of Linux's /proc; '' if there is none."""
    with suppress(OSError):
        return Path("/proc", name).read_text(encoding="utf-8")
    return ""


def require_linux(what: str, remedy: str) -> None:
    """Raise `UserError` elsewhere than on Linux."""
    if sys.platform != "linux" or not _proc("self/status"):
        raise UserError(f"{what} need Linux, and this is {platform.system()}; {remedy}")


def require_no_pipe(path: Path) -> None:
    """Raise `UserError` if a file to write is a pipe: opening it waits for a reader."""
    if path.is_fifo():
        raise UserError(f"{path}: is a pipe; delete it, or name another place")


def flush_folder(folder: Path) -> None:
    """Write a folder's entries to the disk."""
    if os.name == "nt":  # Windows opens no folders
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


_held: dict[str, int] = {}
"""Lock files of this process -> their open files."""


def file_version(path: Path) -> bytes:
    """Return what changes with a file: its size and both of its time stamps.

    A copy may keep size and time of writing (`cp -p`, archives); the other time tells it apart.
    Raises `OSError` if there is no such file.
    """
    found = path.stat()
    return struct.pack("<3q", found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def hold(folder: Path, kind: str) -> str:
    """Keep other processes out of a folder until `release`; return who holds it, '' if we do now.

    `kind`, such as "run", names the lock, the file `.KIND.lock` there. Only this process has it: no
    worker, and nothing after its end, even by SIGKILL. It works on network drives that have locks.
    Where there are none, or the folder is read-only, nothing is locked.
    """
    path = os.path.realpath(folder / f".{kind}.lock")
    if fcntl is None or path in _held:
        return ""
    try:
        while True:
            number = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                owner = os.read(number, 1000).decode(errors="replace")
                os.close(number)
                return owner or "another process"
            if _is_at(path, number):
                break
            os.close(number)  # its owner has just removed it
    except OSError:
        return ""
    _held[path] = number
    with suppress(OSError):  # a full disk: it stays unknown who holds it
        os.ftruncate(number, 0)
        os.write(number, f"process {os.getpid()} on {platform.node()}".encode())
    return ""


def _is_at(path: str, number: int) -> bool:
    """Return whether a path still names this open file."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(number))
    return False


def release() -> None:
    """Let others into all folders that this process holds."""
    while _held:
        path, number = _held.popitem()
        with suppress(OSError):
            os.unlink(path)
        os.close(number)


@contextmanager
def locked(folder: Path, *, inherited: bool = False) -> Iterator[bool]:
    """Lock a folder itself, so that no lock file lies in it; yield False if another has the lock.

    Unlike that of `hold`, forked workers share the lock, so it is held until the last of them has
    ended; with `inherited` also programs that are started with `close_fds=False`. Where there are
    no locks, as on some network folders and on Windows, nothing is locked.
    """
    if fcntl is None:
        yield True
        return
    number, free = os.open(folder, os.O_RDONLY), True
    os.set_inheritable(number, inherited)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        except OSError:
            pass
        yield free
    finally:
        os.close(number)


_hearing = threading.Lock()


@contextmanager
def heard() -> Iterator[list[str]]:
    """Collect the lines that libraries write to this process's stderr, past Python.

    The list is filled when the block ends. One thread at a time can be in it.
    """
    lines: list[str] = []
    with _hearing, tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            lines += file.read().decode(errors="replace").splitlines()
