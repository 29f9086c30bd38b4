"""What earlier runs left in a folder that is prepared again."""

from collections.abc import Collection

from util.runtime.errors import UserError
from util.runtime.files import Outputs
from util.runtime.log import log

CLASSES_FILE = "classes.txt"
_FOLDERS = ("images", "masks")


def old_files(
    outputs: Outputs, names: Collection[str], renumbered: bool, prune: bool | None
) -> list[str]:
    """Return the pictures and masks of earlier runs to remove: with `prune`, all but `names`.

    `names` are the files of this run. What is not removed is named in a warning: several exports of
    labels may be prepared in one folder. If the classes are `renumbered`, a mask must not stay.
    Raises `UserError` if one would. Nothing is removed here.
    """
    old = [n for n in outputs.listed() if n.startswith(tuple(f"{f}/" for f in _FOLDERS))]
    old = [name for name in old if name not in names]
    own = [name for name in old if outputs.may_replace(name)]
    removed = own if prune else []
    if renumbered:
        _refuse_old_masks(outputs, names, removed, prune)
    if kept := [name for name in old if name not in removed]:
        remedy = "" if prune is None else "; --prune removes those that nobody changed"
        text = "%s: keeps %d files of an earlier run that this one does not make, such as %s%s"
        log.warning(text, outputs.folder, len(kept), kept[0], remedy)
    return removed


def _refuse_old_masks(
    outputs: Outputs, names: Collection[str], removed: list[str], prune: bool | None
) -> None:
    """Raise `UserError` if a mask would keep the numbers of classes that have others."""
    masks = sorted(f"masks/{path.name}" for path in outputs.folder.glob("masks/*.png"))
    stay = [name for name in masks if name not in names and name not in removed]
    if not stay:
        return
    what = f"the classes change, but {len(stay)} masks would keep their numbers, such as {stay[0]}"
    foreign = [name for name in stay if not outputs.may_replace(name)]
    remedy = "name another --out"
    if foreign:
        remedy += f", or move away {foreign[0]}, which this command did not make or was changed"
    elif prune is False:
        remedy += ", or add --prune to remove them"
    raise UserError(f"{outputs.folder / CLASSES_FILE}: {what}; {remedy}")
