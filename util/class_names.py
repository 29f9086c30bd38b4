"""Names of classes: how they are written, and which of them mean the same class."""

import unicodedata
from functools import cache

from util.runtime.log import log

COCO_NAMES = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
"""PASCAL's name of a class -> COCO's; the other fourteen names are the same in both."""


def clean_name(name: str) -> str:
    """Return a class name as a line of a text file can hold it: '' if nothing remains of it.

    Line breaks and other control characters become spaces, and several spaces become one; none
    remains at the ends. A letter and its accent become one character (NFC).
    """
    blank = ("Cc", "Cs")  # control characters, and halves of characters
    bare = "".join(" " if unicodedata.category(c) in blank else c for c in name)
    return unicodedata.normalize("NFC", " ".join(bare.split()))


@cache
def warn_of_background(path: str, names: tuple[str, ...]) -> None:
    """Warn, once for a file, if its first class name says that it means no class."""
    if _bare(names[0]) == "background":
        log.warning(
            "%s: its first class is %r, so that pixels of 1 are an object of this name; 0 is"
            " background in any mask, so remove the name if 1 means %s there",
            path, names[0], repr(names[1]) if len(names) > 1 else "another class",
        )  # fmt: skip


def canonical_name(name: str) -> str:
    """Return a form of a class name that is equal for all names of that class.

    Case, spaces, `_` and `-` do not count, and PASCAL's names are COCO's (`COCO_NAMES`). Other
    synonyms are different names.
    """
    bare = _bare(name)
    return _SYNONYMS.get(bare, bare)


def _bare(name: str) -> str:
    return "".join(name.casefold().replace("_", " ").replace("-", " ").split())


_SYNONYMS = {_bare(pascal): _bare(coco) for pascal, coco in COCO_NAMES.items()}
