"""What earlier runs left in a folder that is prepared again."""

from collections.abc import Collection
from pathlib import PurePosixPath

from util.runtime.errors import UserError
from util.runtime.files import Outputs
from util.runtime.log import log

CLASSES_FILE = "classes.txt"
_PICTURES, _MASKS = "images/", "masks/"
_ELSEWHERE = "name another --out"


def old_files(
    outputs: Outputs, names: Collection[str], renumbered: bool, prune: bool | None
) -> list[str]:
    """Return the pictures and masks of earlier runs to remove: with `prune`, all but `names`.

    `names` are the files of this run. What is not removed is named in a warning: several exports of
    labels may be prepared in one folder. Raises `UserError` if a mask would stay although the
    classes are `renumbered`, or a picture beside one of the same name. Nothing is removed here.
    """
    listed = (name for name in outputs.listed() if name.startswith((_PICTURES, _MASKS)))
    old = [name for name in listed if name not in names]
    removed = [name for name in old if outputs.may_replace(name)] if prune else []
    kept = [name for name in old if name not in removed]
    pictures = {_stem(name): name for name in names if name.startswith(_PICTURES)}
    for name in kept:
        if name.startswith(_PICTURES) and _stem(name) in pictures:
            what = f"{outputs.folder / name}: is of an earlier run, and {pictures[_stem(name)]}"
            raise UserError(f"{what} would get the same name; {_remedy([name], outputs, prune)}")
    if renumbered:
        masks = sorted(f"{_MASKS}{path.name}" for path in outputs.folder.glob(f"{_MASKS}*.png"))
        if stay := [name for name in masks if name not in names and name not in removed]:
            what = f"the classes change, but {len(stay)} masks would keep their numbers, such as"
            remedy = _remedy(stay, outputs, prune)
            raise UserError(f"{outputs.folder / CLASSES_FILE}: {what} {stay[0]}; {remedy}")
    if kept:
        remedy = "" if prune is None else "; --prune removes those that nobody changed"
        text = "%s: keeps %d files of an earlier run that this one does not make, such as %s%s"
        log.warning(text, outputs.folder, len(kept), kept[0], remedy)
    return removed


def _stem(name: str) -> str:
    return PurePosixPath(name).stem


def _remedy(stay: list[str], outputs: Outputs, prune: bool | None) -> str:
    """Return what helps against files that must not stay."""
    foreign = next((name for name in stay if not outputs.may_replace(name)), None)
    if foreign:
        what = f"{foreign}, which this command did not make, or which was changed"
        return f"{_ELSEWHERE}, or move away {what}"
    return _ELSEWHERE if prune is None else f"{_ELSEWHERE}, or add --prune to remove what is old"
