"""The record of a test: one row per evaluated episode, `episodes.parquet` or `episodes.csv`."""

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from util.config import Config
from util.runtime.errors import UserError
from util.runtime.files import atomic_write, open_file

SCHEMA = pa.schema(
    [
        *[("seed", pa.int64()), ("number", pa.int64()), ("control", pa.string())],
        *[("query", pa.string()), ("class_id", pa.int32()), ("class_name", pa.string())],
        *[("supports", pa.list_(pa.string())), ("height", pa.int32()), ("width", pa.int32())],
        ("object_pixels", pa.int64()),
        *[
            (f"{kind}_{area}", pa.int64())
            for kind in ("final", "meta")
            for area in ("i", "u", "bg_i", "bg_u")
        ],
        ("presence", pa.float64()),
    ]
)

FORMATS = ("parquet", "csv")

_MOST_ROWS = 10_000_000  # a file of a few kB can say that it has more


def records_path(cfg: Config, images: Iterable[str]) -> Path:
    """Return the file of a test; raise `UserError` if it could not hold the images' names."""
    spaced = next((name for name in images if " " in name), None)
    if cfg.Eval.records == "csv" and spaced is not None:
        what = "has a space in its name, and a CSV file joins names by spaces"
        raise UserError(f"Eval.records csv: image {spaced!r} {what}; use parquet")
    return Path(cfg.Train.save_path, f"episodes.{cfg.Eval.records}")


def write_records(
    path: Path,
    rows: Iterable[Mapping[str, Any]],
    meta: Mapping[str, Any],
    keep: Path | None = None,
) -> None:
    """Write rows, sorted by (control, seed, number); `meta` goes into the schema of a parquet file.

    Supports are joined by spaces in a CSV file. With `keep`, the current file stays under that
    name.
    """
    table = pa.Table.from_pylist(list(rows), SCHEMA)
    table = table.sort_by([(name, "ascending") for name in ("control", "seed", "number")])
    file = io.BytesIO()
    if path.suffix == ".csv":
        joined = pa.array([" ".join(names) for names in table["supports"].to_pylist()])
        at = table.schema.get_field_index("supports")
        pa.csv.write_csv(table.set_column(at, "supports", joined), file)
    else:
        held = {b"amformer": json.dumps(meta).encode()}
        pa.parquet.write_table(table.replace_schema_metadata(held), file, compression="zstd")
    atomic_write(path, file.getvalue(), keep=keep)


def read_records(path: Path) -> pa.Table:
    """Read what `write_records` wrote; raises `UserError` if the file is torn or another one."""
    try:
        if path.suffix != ".csv":
            if (rows := pa.parquet.ParquetFile(open_file(path)).metadata.num_rows) > _MOST_ROWS:
                raise UserError(f"{path}: has {rows:,} rows; a test has at most {_MOST_ROWS:,}")
            return _whole(pa.parquet.read_table(path).cast(SCHEMA))
        open_file(path).close()
        types = {f.name: f.type for f in SCHEMA} | {"supports": pa.string()}
        table = pa.csv.read_csv(
            path, convert_options=pa.csv.ConvertOptions(column_types=types, include_columns=types)
        )
        at = table.schema.get_field_index("supports")
        names = pa.array([text.split() for text in table["supports"].to_pylist()])
        return _whole(table.set_column(at, "supports", names).cast(SCHEMA))
    except UserError:
        raise
    except (pa.ArrowException, ValueError, KeyError):
        raise UserError(f"{path}: torn, or no record of episodes; run test.sh again") from None


def _whole(table: pa.Table) -> pa.Table:
    """Return the table; raise `ValueError` if a value is missing where each row has one."""
    if any(table[name].null_count for name in table.column_names if name != "presence"):
        raise ValueError
    return table
