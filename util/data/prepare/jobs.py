"""Create many files on several processes: each is complete or absent, and a run can continue."""

import errno
import filecmp
import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from util.data.prepare.archive import Archive, damaged, join
from util.data.prepare.earlier import CLASSES_FILE, old_files
from util.runtime.errors import UserError
from util.runtime.files import Outputs, unwritable
from util.runtime.log import log
from util.runtime.parallel import on_processes
from util.runtime.progress import bar
from util.runtime.system import file_version, locked

_BLOCK = 4096  # bytes: the space a file takes on disk is a multiple of it
_JPEG_END = b"\xff\xd9"
_JPEG_END_WITHIN = 1024  # bytes: some cameras write a little after a JPEG's end
_ELSEWHERE = "choose another --out"
_KILLED = "run the same command again to continue; --workers 1 needs the least memory"


@dataclass(frozen=True)
class Job:
    """A file to create, unless it exists and is current.

    `content` is its bytes; or a function that returns them, called in a worker process; or the
    absolute path that `target` becomes a symbolic link to. `size` is about that of the file in
    bytes. What a function returns is current if it equals the file `source`; if there is none, if
    an earlier run wrote it with the same `stamp` (`stamp_of`), and nobody changed it since.
    """

    target: Path
    content: bytes | Callable[[], bytes] | Path
    size: int = 0
    source: Path | None = None
    stamp: str = ""


def stamp_of(*made_from: object) -> str:
    """Return a text that changes with these values, and with the files that are among them.

    Paths stand for files, on their own or as values of a mapping. They are not read
    (`file_version`).
    """
    return hashlib.sha256(repr([_version(each) for each in made_from]).encode()).hexdigest()


def _version(value: object) -> object:
    if isinstance(value, Mapping):
        return [(key, _version(each)) for key, each in value.items()]
    if not isinstance(value, Path):
        return value
    try:
        return value.name, file_version(value)
    except OSError:  # reading it will tell
        return value.name


def build(
    out: Path,
    phases: list[list[Job]],
    workers: int,
    what: str,
    overwrite: bool | None = False,
    prune: bool | None = None,
    inputs: Collection[Path] = (),
) -> list[str]:
    """Create the missing files of `out`, phase after phase; return their names below it.

    It begins if the disk has enough space. A file appears under its name once it is complete. So
    the process may be killed at any moment, and the next run continues. Files that are current are
    left alone. A phase may read the files of an earlier one. With one worker, this process does the
    work. `what` names the files in the line that is logged at the end. Only one process at a time
    may build in `out`. Files that another than `util.data.prepare` made are only replaced with
    `overwrite` (None: the command has no such option), and never those that the jobs read, nor
    `inputs`, which may be folders.

    Pictures and masks of earlier runs that are not among the jobs are named, and with `prune`
    removed (None: the command has no such option), but none that was changed since. If the jobs
    change `out`/classes.txt, every mask is created anew. That file must not come after the masks.

    Raises:
        UserError: the first one that a job raises, in the order of the jobs; or a file cannot be
            written, or the disk is too small; or something else made it; or a mask would keep the
            numbers of other classes.
        RunStopped: a worker was killed.
    """
    outputs = Outputs(out, "prepare", overwrite=overwrite)
    every = [job for jobs in phases for job in jobs]
    table = next((job for job in every if job.target == out / CLASSES_FILE), None)
    renumbered = table is not None and not _is_current(table, outputs)
    undone = set()
    with bar(len(every), "comparing files") as progress:
        for job in every:
            if not _is_current(job, outputs):
                undone.add(_name(job, out))
            progress.update()
    # Removed before the classes change: so they are created anew, even after a kill.
    stale = [_name(job, out) for job in every if renumbered and _is_computed_mask(job, out)]
    undone.update(stale)
    pending = [[job for job in jobs if _name(job, out) in undone] for jobs in phases]
    created = [_name(job, out) for jobs in pending for job in jobs]
    given = (path for job in every for path in (job.source, job.content) if isinstance(path, Path))
    outputs.claim(created, (*given, *inputs))
    names = {_name(job, out) for job in every}
    replaced = [name for name in created if os.path.lexists(out / name)]
    removed = old_files(outputs, names, renumbered, prune, inputs)
    if count := len(created):
        _check_space(out, [job for jobs in pending for job in jobs])
    folders = sorted({job.target.parent for jobs in phases for job in jobs} | {out})
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error, _ELSEWHERE) from None
    with locked(out) as free, bar(count, "creating files") as progress:
        if not free:
            raise UserError(f"{out}: another run is writing here; wait until it ends")
        outputs.sweep(names)
        for name in (*removed, *stale):
            outputs.remove(name)
        for jobs in pending:
            for _ in on_processes(partial(_create, outputs), jobs, workers, _KILLED):
                progress.update()
    if replaced:  # two exports of labels may hold the same image
        text = "%s: %d files replace those of an earlier run, such as %s"
        log.info(text, out, len(replaced), max(replaced, key=lambda name: name.endswith(".png")))
    done = [f"{count} files created"] if count else []
    done += [f"{len(removed)} removed"] if removed else []
    log.info("%s; %s", what, ", ".join(done) or "nothing to do")
    return created


def _is_computed_mask(job: Job, out: Path) -> bool:
    return callable(job.content) and job.target.parent == out / "masks"


def _is_current(job: Job, outputs: Outputs) -> bool:
    target, content = job.target, job.content
    try:
        if isinstance(content, Path):
            is_same = os.path.samefile(target, content)
            return is_same or not target.is_symlink() and _is_equal(target, content)
        if not target.is_file():  # a pipe, of which reading never ends
            return False
        if isinstance(content, bytes):
            return target.read_bytes() == content
        if job.source:
            return not target.is_symlink() and _is_equal(target, job.source)
        return outputs.is_current(_name(job, outputs.folder), job.stamp)
    except OSError:
        return False


def _is_equal(target: Path, source: Path) -> bool:
    return os.path.samefile(target, source) or filecmp.cmp(target, source, shallow=False)


def _check_space(out: Path, jobs: list[Job]) -> None:
    needed = sum(-(-job.size // _BLOCK) * _BLOCK for job in jobs)
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    total, _, free = shutil.disk_usage(existing)
    sizes = [f"{n / 1e9:.1f} GB" if n >= 1e8 else f"{n / 1e6:.1f} MB" for n in (needed, free)]
    log.info("%s: needs about %s, %s free", out, *sizes)
    if needed > free and total:  # a folder of the system has no size
        what = f"needs about {sizes[0]}, but only {sizes[1]} are free"
        raise UserError(f"{out}: {what}; make room there, or {_ELSEWHERE}")


def _create(outputs: Outputs, job: Job) -> None:
    content = job.content() if callable(job.content) else job.content
    name = _name(job, outputs.folder)
    try:
        if isinstance(content, Path):
            outputs.link(name, content)
        else:
            outputs.write(name, content, durable=False, stamp=job.stamp)
    except OSError as error:
        if isinstance(content, Path) and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            what = f"cannot be a link, maybe its disk takes none ({error.strerror})"
            raise UserError(f"{job.target}: {what}; add --copy to copy the pictures") from None
        raise unwritable(job.target, error, _ELSEWHERE) from None


def _name(job: Job, out: Path) -> str:
    return job.target.relative_to(out).as_posix()


def picture_jobs(
    archive: Archive, folder: str, wanted: dict[str, str], target: Path, copy: bool
) -> list[Job]:
    """Return the jobs that create `target`, a folder of pictures of a download's `folder`.

    Unless `copy` is set, `target` becomes a link to a folder on disk, or a folder of links where
    names differ. `wanted` maps names in `target` to names in `folder`, for the pictures that have a
    mask. Pictures missing from `folder` are left out, with a warning. Raises `UserError` if
    `target` exists in another form.
    """
    sizes, source = archive.files(folder, ".jpg"), archive.where(folder)
    found = {name: old for name, old in wanted.items() if old in sizes}
    warn_missing(target, [name for name in wanted if name not in found], len(wanted))
    require_outside(archive, folder, target)
    if source and target.exists() and os.path.samefile(source, target):
        return []
    linked = os.readlink(target) if target.is_symlink() else ""
    if source and not copy and all(name == old for name, old in wanted.items()):
        if linked and linked != str(source):
            raise UserError(f"{target}: is a link to {linked}, not to {source}; remove the link")
        if target.exists() and not linked:
            what = f"exists and is not a link to {source}"
            raise UserError(f"{target}: {what}; remove it, or use --copy to fill it")
        log.info("%s: a link to %s, which must stay in place (--copy copies)", target, source)
        return [Job(target, source)]
    if linked:
        raise UserError(f"{target}: is a link to {linked}; remove the link to write files there")
    if source and not copy:
        return [Job(target / name, source / old) for name, old in found.items()]
    # In the order of the archive: a compressed tar can only be read forwards.
    position = {old: i for i, old in enumerate(sizes)}
    return [
        Job(
            target / name,
            partial(_read_jpeg, archive, join(folder, old)),
            sizes[old],
            source and source / old,
            "" if source else stamp_of(archive.holder(old), old),
        )
        for name, old in sorted(found.items(), key=lambda item: position[item[1]])
    ]


def require_outside(archive: Archive, folder: str, target: Path) -> None:
    """Raise `UserError` if `target` is inside that folder of the download, which is only read."""
    source = archive.where(folder)
    if source and os.path.realpath(target).startswith(os.path.realpath(source) + os.sep):
        raise UserError(f"--out: {target} is inside the download {source}; choose another --out")


def warn_missing(target: Path, missing: list[str], total: int) -> None:
    """Warn about pictures that the download lacks, if any."""
    if missing:
        log.warning(
            "%s: %d of %d pictures are missing from the download, the first is %s; set"
            " Data.missing=skip to train without them", target, len(missing), total, missing[0],
        )  # fmt: skip


def _read_jpeg(archive: Archive, name: str) -> bytes:
    content = archive.read(name)
    if content[:2] != b"\xff\xd8" or _JPEG_END not in content[-_JPEG_END_WITHIN:]:
        remedy = "unpack the archive and give its folder: its pictures are linked without a check"
        raise damaged(archive.path / name, "not a complete JPEG", f"download it again, or {remedy}")
    return content
