"""What earlier runs left in a folder that is prepared again."""

import os
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from util.data.image_io import SUFFIXES
from util.data.listing import as_id, is_picture
from util.runtime.errors import UserError
from util.runtime.files import Outputs
from util.runtime.log import log

CLASSES_FILE = "classes.txt"
_PICTURES, _MASKS = "images/", "masks/"
_ELSEWHERE = "name another --out"
_ADVICE = {
    None: "",
    False: "; --prune removes those that this command made and nobody changed",
    True: ", which another made, or which was changed; move away what is wrong",
}
"""`prune` -> what a warning says of files that stay."""


def old_files(
    outputs: Outputs,
    names: Collection[str],
    renumbered: bool,
    prune: bool | None,
    inputs: Collection[Path] = (),
) -> list[str]:
    """Return the pictures and masks of earlier runs to remove: with `prune`, all but `names`.

    `names` are the files of this run. What is not removed is named in a warning, whoever made it:
    several exports of labels may be prepared in one folder. Raises `UserError` if a mask would stay
    although the classes are `renumbered`, or one of the same name, or a picture. Nothing is removed
    here, nor ever from a folder of `inputs`: the photographs there may be the only ones.
    """
    listed = set(outputs.listed())
    held = _held(outputs.folder, _PICTURES, SUFFIXES)
    for folder in sorted({str(PurePosixPath(name).parent) + "/" for name in names}):
        if folder.startswith(_MASKS):  # COCO has one for each subset
            held += _held(outputs.folder, folder, (".png",))
    old = [name for name in held if name not in names]
    read = {os.path.realpath(path) for path in inputs}
    made = [name for name in old if name in listed and outputs.may_replace(name)]
    own = [n for n in made if os.path.realpath((outputs.folder / n).parent) not in read]
    stay = {_key(name)[1] for name in old if name not in own and name.startswith(_MASKS)}
    # A mask that somebody corrected keeps its picture.
    own = [n for n in own if not (n.startswith(_PICTURES) and _key(n)[1] in stay)]
    removed = own if prune else []
    kept = [name for name in old if name not in removed]
    successors = {_key(name): name for name in names}
    for name in kept:
        if successor := successors.get(_key(name)):
            what = f"{outputs.folder / name}: is not of this run, and {successor}"
            raise UserError(f"{what} would get the same name; {_remedy([name], outputs, prune)}")
    masks = [name for name in kept if name.startswith(_MASKS)]
    if renumbered and masks:
        what = f"the classes change, but {len(masks)} masks would keep their numbers, such as"
        remedy = _remedy(masks, outputs, prune)
        raise UserError(f"{outputs.folder / CLASSES_FILE}: {what} {masks[0]}; {remedy}")
    used = {_key(name)[1] for name in masks}
    if kept := [name for name in kept if name in listed or _key(name)[1] in used]:
        text = "%s: keeps %d files that this run does not make, such as %s%s"
        log.warning(text, outputs.folder, len(kept), kept[0], _ADVICE[prune])
    return removed


def _held(folder: Path, inside: str, suffixes: Collection[str]) -> list[str]:
    """Return the names of the files in one of the folders that a data set would use, sorted."""
    try:
        names = sorted(os.listdir(folder / inside))
    except OSError:  # new, or no folder: creating it will tell
        return []
    return [inside + name for name in names if is_picture(name, suffixes)]


def _key(name: str) -> tuple[str, str]:
    """Return what two files that a data set takes for one have in common: folder and id."""
    path = PurePosixPath(name)
    return str(path.parent), as_id(path.stem)


def _remedy(stay: list[str], outputs: Outputs, prune: bool | None) -> str:
    """Return what helps against files that must not stay."""
    foreign = next((name for name in stay if not outputs.may_replace(name)), None)
    if foreign:
        what = f"{foreign}, which this command did not make, or which was changed"
        return f"{_ELSEWHERE}, or move away {what}"
    return _ELSEWHERE if prune is None else f"{_ELSEWHERE}, or add --prune to remove what is old"
