"""Puts the pictures of a download where the data set wants them: linked, copied or unpacked."""

import os
from functools import partial
from pathlib import Path

from util.data.prepare.archive import Archive, join
from util.data.prepare.jobs import Job, note
from util.runtime.errors import UserError

_END_WITHIN = 1024  # bytes: some cameras write a little after a JPEG's end


def picture_jobs(
    archive: Archive, folder: str, wanted: dict[str, str], target: Path, copy: bool
) -> list[Job]:
    """Says what to make for the pictures of a folder to be there.

    From a folder on disk `target` becomes one link, or a folder of links where the names differ.

    Args:
        archive: where the pictures are.
        folder: their folder in it.
        wanted: name under `target` -> name in `folder`, of the pictures that have a mask. What is
            not in `folder` is left out, with a note.
        target: their folder in the data set.
        copy: copies from a folder on disk, too.

    Raises:
        UserError: when `target` is there in another form.
    """
    sizes, source = archive.files(folder, ".jpg"), archive.where(folder)
    there = {name: old for name, old in wanted.items() if old in sizes}
    note_absent(target, [name for name in wanted if name not in there], len(wanted))
    require_outside(archive, folder, target)
    if source and target.exists() and os.path.samefile(source, target):
        return []
    if source and not copy and all(name == old for name, old in wanted.items()):
        print(f"{target}: a link to {source}; it has to stay where it is (--copy copies)")
        _require_link(source, target)
        return [Job(target, source)]
    if target.is_symlink():
        raise UserError(
            f"{target}: is a link to {os.readlink(target)}; remove the link, for files to be"
            " written there"
        )
    jobs = []
    for name, old in there.items():
        if source and not copy:
            jobs.append(Job(target / name, source / old))
        else:
            read = partial(_read_jpeg, archive, join(folder, old))
            jobs.append(Job(target / name, read, sizes[old], is_copy=True))
    # A compressed tar is read forwards only.
    place = {old: i for i, old in enumerate(sizes)}
    order = sorted(zip(jobs, there.values(), strict=True), key=lambda pair: place[pair[1]])
    return [job for job, _ in order]


def require_outside(archive: Archive, folder: str, target: Path) -> None:
    """Refuses to write into a folder that is read.

    Raises:
        UserError: when `target` lies below the folder of the download.
    """
    source = archive.where(folder)
    if source and os.path.realpath(target).startswith(os.path.realpath(source) + os.sep):
        raise UserError(f"--out: {target} lies inside the download {source}; give another --out")


def note_absent(target: Path, absent: list[str], total: int) -> None:
    """Says on stderr that pictures of a folder are not to be had, if so."""
    if absent:
        note(
            f"{target}: {len(absent)} of {total} pictures are absent from the download,"
            f" {absent[0]} the first; Data.missing=skip trains without them"
        )


def _require_link(source: Path, target: Path) -> None:
    if target.is_symlink() and os.readlink(target) != str(source):
        raise UserError(
            f"{target}: is a link to {os.readlink(target)}, not to {source}; remove the link"
        )
    if target.exists() and not target.is_symlink():
        raise UserError(
            f"{target}: is there and is no link to {source}; remove it, or use --copy to fill it"
        )


def _read_jpeg(archive: Archive, name: str) -> bytes:
    content = archive.read(name)
    if content[:2] != b"\xff\xd8" or b"\xff\xd9" not in content[-_END_WITHIN:]:
        raise UserError(
            f"{archive.path / name}: is no whole JPEG; fetch it again, or unpack the archive and"
            " give its folder, whose pictures are linked as they are"
        )
    return content
