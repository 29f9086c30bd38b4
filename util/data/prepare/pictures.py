"""Put the pictures of a download where the data set needs them: linked, copied or unpacked."""

import os
from functools import partial
from pathlib import Path

from util.data.prepare.archive import Archive, damaged, join
from util.data.prepare.jobs import Job
from util.runtime.errors import UserError
from util.runtime.log import log

_END_WITHIN = 1024  # bytes: some cameras write a little after a JPEG's end


def picture_jobs(
    archive: Archive, folder: str, wanted: dict[str, str], target: Path, copy: bool
) -> list[Job]:
    """Return the jobs that create `target`, a folder of pictures of a download's `folder`.

    For a folder on disk, `target` becomes one link, or a folder of links where names differ.

    Args:
        archive: the download.
        folder: the folder of the pictures in it.
        wanted: name in `target` -> name in `folder`, for the pictures that have a mask. Pictures
            missing from `folder` are left out, with a warning.
        target: the folder to create.
        copy: copy pictures from a folder on disk too, instead of linking to it.

    Raises:
        UserError: `target` exists in another form.
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
        remedy = "remove the link, so that files can be written there"
        raise UserError(f"{target}: is a link to {linked}; {remedy}")
    if source and not copy:
        return [Job(target / name, source / old) for name, old in found.items()]
    # In the order of the archive: a compressed tar can only be read forwards.
    position = {old: i for i, old in enumerate(sizes)}
    return [
        Job(target / name, partial(_read_jpeg, archive, join(folder, old)), sizes[old], True)
        for name, old in sorted(found.items(), key=lambda item: position[item[1]])
    ]


def require_outside(archive: Archive, folder: str, target: Path) -> None:
    """Refuse to write into the folder that is read.

    Raises:
        UserError: `target` is inside that folder of the download.
    """
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
    if content[:2] != b"\xff\xd8" or b"\xff\xd9" not in content[-_END_WITHIN:]:
        remedy = "unpack the archive and give its folder: its pictures are linked without a check"
        raise damaged(archive.path / name, "not a complete JPEG", f"download it again, or {remedy}")
    return content
