"""What the masks of a data set hold.

Each mask is read once; what it holds is kept in `<list_dir>/<train|val>.json`: {class: pixels} for
each image, in the order of the ids. The lists of every fold follow from it (`lists.py`).
"""

import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from model.constants import IGNORE
from util.data.image_io import read_label
from util.data.source import Source
from util.runtime.errors import UserError
from util.runtime.files import atomic_write
from util.runtime.parallel import on_all_cores

Table = dict[str, dict[int, int]]
"""Image id -> {class id: pixels}, in the order of the ids; background and 255 are left out."""


def fingerprint(ids: Iterable[str]) -> int:
    """Returns the CRC-32 of ids, order included."""
    return zlib.crc32("\n".join(ids).encode())


def load_table(source: Source, list_dir: str | Path) -> Table:
    """Returns what the masks of a subset hold, reading them only if no earlier run has.

    Args:
        source: the data.
        list_dir: folder of the tables, one folder per data set. Written to on the first use.

    Raises:
        UserError: when the file there is not of these ids or cannot be written, or a mask cannot
            be read. A table of one's own data is made anew when a mask was added or changed, but
            never takes the place of another data set's.
    """
    path, ids = Path(list_dir) / f"{source.subset}.json", source.image_ids()
    made_from = [*ids, *source.stamps(ids)]
    head = {"data_set": source.data_set, "crc32": fingerprint(made_from)}
    if path.is_file():
        kept, table = _read_table(path)
        if kept == head and list(table) == ids:
            return table
        if source.data_set != "custom" or kept.get("data_set") != "custom":
            raise UserError(
                f"{path}: made from other images than {source.root} lists; delete it to rebuild"
                " it, or set Data.list_dir"
            )
    table = build_table(source, ids)
    _write_table(path, head, table)
    return table


def _read_table(path: Path) -> tuple[dict[str, Any], Table]:
    """What a file says it was made from, and its table."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        table = {i: {int(c): n for c, n in has.items()} for i, has in kept.pop("images").items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: not a table of mask contents; delete it to rebuild it") from None
    return kept, table


def build_table(source: Source, ids: list[str]) -> Table:
    """Reads every mask once, on all cores, with a bar of progress on stderr.

    Raises:
        UserError: when a mask cannot be read or holds a class the data set does not have.
    """
    paths = [str(source.label_path(i)) for i in ids]
    limit, table = source.classes, {}
    counts = on_all_cores(_count, paths, f"reading masks of {source.subset}")
    for image_id, path, has in zip(ids, paths, counts, strict=True):
        if max(has, default=0) > limit:
            raise UserError(
                f"{path}: holds class {max(has)}, but {source.data_set} has {limit}; a palette"
                " mask must keep its palette indices"
            )
        table[image_id] = has
    return table


def _count(path: str) -> dict[int, int]:
    return pixels_by_class(read_label(path))


def pixels_by_class(label: np.ndarray) -> dict[int, int]:
    """Returns {class id: pixels} of a mask, background and 255 left out."""
    pixels = np.bincount(label.ravel(), minlength=256)
    return {int(c): int(pixels[c]) for c in np.flatnonzero(pixels) if c not in (0, IGNORE)}


def _write_table(path: Path, head: dict[str, Any], table: Table) -> None:
    rows = ",\n".join(f"{json.dumps(i)}: {json.dumps(has)}" for i, has in table.items())
    write_text(path, f'{json.dumps(head)[:-1]}, "images": {{\n{rows}\n}}}}\n')


def write_text(path: Path, text: str) -> None:
    """Writes a file of the list folder, whole or not at all.

    Raises:
        UserError: when it cannot be written.
    """
    try:
        atomic_write(path, text.encode())
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); set Data.list_dir to a folder of yours"
        ) from None
