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
def warn_of_names(path: str, names: tuple[str, ...]) -> None:
    """Warn, once for a file, of class names that may mean no class, or not one of their own."""
    if comment := next((name for name in names if name.startswith("#")), None):
        text = (
            "%s: %r counts as a class, number %d, as every line does; remove it if it is a comment"
        )
        log.warning(text, path, comment, names.index(comment) + 1)
    first: dict[str, str] = {}
    for name in names:
        if (other := first.setdefault(_bare(name), name)) != name:
            text = "%s: %r and %r count as two classes; give both the same number if they are one"
            log.warning(text, path, other, name)
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
