"""Tables of the masks: how many pixels of each class every image has.

Each mask is read once; the table is stored in `<list_dir>/<train|val>.json`. The lists of all folds
are derived from it (`lists.py`).
"""

import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from model.constants import IGNORE
from util.data.mixed import id_in_mix
from util.data.source import AnySource, Source
from util.runtime.errors import UserError
from util.runtime.files import Outputs, require_not_held, unwritable
from util.runtime.parallel import on_all_cores

_AT_ONCE = 1 << 20  # pixels; NumPy takes eight bytes for each that it counts

Table = dict[str, dict[int, int]]
"""Image id -> {class id: pixels}, in the order of the ids; background and 255 are left out."""


def fingerprint(ids: Iterable[str]) -> int:
    """Return the CRC-32 of ids; their order matters."""
    return zlib.crc32("\n".join(ids).encode("utf-8", "surrogateescape"))  # of any bytes


def load_table(source: AnySource, list_dir: str | Path, build: bool = True) -> Table:
    """Return the table of a subset; read the masks only if it is not stored in `list_dir` yet.

    That of a mix is made of those of its data sets, each in a folder of its name in `list_dir`.
    Without `build`, no mask is read, and a table that is not stored is an error, too.

    A stored table of a custom data set is replaced when a mask was added or changed, but it never
    replaces that of another data set, nor a file that this function did not write. Raises
    `UserError` if the stored table belongs to other images, it cannot be written, `list_dir` holds
    a data set or a run, or a mask cannot be read.
    """
    parts = source.parts.items()
    return unite(source, {n: _load_part(part, Path(list_dir, n), build) for n, part in parts})


def _load_part(source: Source, list_dir: Path, build: bool) -> Table:
    """Return the table of one data set, as `load_table`."""
    path, ids = list_dir / f"{source.subset}.json", source.image_ids()
    checksum = fingerprint([*ids, *source.mask_versions(ids)])
    header = {"data_set": source.data_set, "crc32": checksum}
    if path.is_file():
        stored, table = _read_table(path)
        root = stored.pop("root", "")
        if stored == header and list(table) == ids:
            return table
        if source.data_set != "custom" or stored.get("data_set") != "custom":
            remedy = "delete it to rebuild it, or set Data.list_dir"
            raise UserError(f"{path}: made from other images than {source.root} lists; {remedy}")
        if root != _root(source) and os.path.isdir(root):  # else it was moved
            remedy = "set Data.list_dir to a folder of its own, or delete it to rebuild it"
            raise UserError(f"{path}: made from {root}, not from {source.root}; {remedy}")
    if not build:
        remedy = "python -m util.data.lists CONFIG makes it"
        raise UserError(f"{path}: no table of the masks of {source.root}; {remedy}")
    if source.data_set == "custom":
        header |= {"root": _root(source)}
    outputs = Outputs(list_dir, "lists", "Data.list_dir")
    _claim(outputs, path.name, source)
    table = build_table(source, ids)
    _write_table(outputs, path.name, header, table)
    return table


def _root(source: Source) -> str:
    return os.path.realpath(source.root)


def _claim(outputs: Outputs, name: str, source: Source) -> None:
    """Refuse to write a table over what another made, or into a data set."""
    require_not_held(outputs.folder, outputs.option)
    for folder in (source.images, source.masks):
        if Path(os.path.realpath(outputs.folder)).is_relative_to(os.path.realpath(folder)):
            what = f"{outputs.option} {outputs.folder}: is in the data set ({folder})"
            raise UserError(f"{what}, where nothing else may be written; name another place")
    outputs.claim([name])


def unite(source: AnySource, tables: dict[str, Table]) -> Table:
    """Return the table of a data source, given those of its `parts`."""
    united: Table = {}
    for name, table in tables.items():
        numbers = source.tables[name].tolist()
        for image_id, pixels in table.items():
            united[id_in_mix(name, image_id)] = {numbers[c]: n for c, n in pixels.items()}
    return united


def _read_table(path: Path) -> tuple[dict[str, Any], Table]:
    """Return the header and the table of a file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        images = content.pop("images")
        table = {i: {int(c): int(n) for c, n in pixels.items()} for i, pixels in images.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        what = "not a table of mask contents, so another made it"
        raise UserError(f"{path}: {what}; move it away, or set Data.list_dir") from None
    return content, table


def build_table(source: AnySource, ids: list[str]) -> Table:
    """Read every mask once, on all cores, with a progress bar on stderr.

    Raises `UserError` if a mask cannot be read or contains a class that the data set does not have.
    """
    limit, table = source.classes, {}

    def read_pixels(image_id: str) -> dict[int, int]:
        return pixels_by_class(source.read_label(image_id))

    counts = on_all_cores(read_pixels, ids, f"reading masks of {source.subset}")
    for image_id, pixels in zip(ids, counts, strict=True):
        if max(pixels, default=0) > limit:
            what = f"contains class {max(pixels)}, but the data set has {limit}"
            what = f"{source.label_path(image_id)}: {what}"
            raise UserError(f"{what}; save a palette mask with its palette indices")
        table[image_id] = pixels
    return table


def pixels_by_class(label: np.ndarray) -> dict[int, int]:
    """Return {class id: pixels} of a mask, all its layers, without background and 255."""
    pixels: Counter[int] = Counter()
    flat = label.ravel()
    for start in range(0, len(flat), _AT_ONCE):
        counts = np.bincount(flat[start : start + _AT_ONCE])
        pixels.update({int(c): int(counts[c]) for c in np.flatnonzero(counts)})
    return {c: pixels[c] for c in sorted(pixels) if c not in (0, IGNORE)}


def _write_table(outputs: Outputs, name: str, header: dict[str, Any], table: Table) -> None:
    rows = ",\n".join(f"{json.dumps(i)}: {json.dumps(pixels)}" for i, pixels in table.items())
    text = f'{json.dumps(header)[:-1]}, "images": {{\n{rows}\n}}}}\n'
    try:
        outputs.write(name, text.encode())
    except OSError as error:
        raise unwritable(
            outputs.folder / name, error, "set Data.list_dir to a writable folder"
        ) from None
