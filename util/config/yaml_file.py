"""Read YAML that a stranger may have written, within a second and little memory."""

import json
from pathlib import Path
from typing import Any

import yaml

from model.nesting import holds_more_than
from util.runtime.errors import UserError
from util.runtime.files import open_file
from util.runtime.texts import decode

LARGEST_FILE, LARGEST_JSON = 200_000, 20_000_000
"""Bytes that are read of a YAML file, for which PyYAML takes a second, and of a `result.json`."""

LARGEST_CONTENT = 100_000
"""Values in a document, each as often as it is named."""

UNREADABLE = (yaml.YAMLError, ValueError, RecursionError)
"""What parsing raises; ValueError: a date such as 2001-13-45, a number of over 4,300 digits."""


def read_bytes(path: Path, what: str = "config") -> bytes:
    """Return the bytes of a file of YAML or JSON; `what` is its name in messages.

    Raises `UserError` if it cannot be read, is no ordinary file, or is too large.
    """
    try:
        size = path.stat().st_size
        if size > (LARGEST_JSON if path.suffix == ".json" else LARGEST_FILE):
            mistake = f"{size / 1e6:.1f} MB are too large for a {what}"
            raise UserError(f"{path}: {mistake}; name another file")
        with open_file(path) as file:
            return file.read()
    except UserError:
        raise
    except OSError as error:
        mistake = f"{path}: cannot read this {what} file ({error.strerror}); check the path"
        raise UserError(mistake) from None
    except ValueError:  # a NUL in it
        raise UserError(f"{str(path)!r}: is no path of a file; check the path") from None


def read_yaml(path: Path) -> Any:
    """Return the content of a file of YAML or JSON; raise `UserError` if it cannot be read."""
    return parse(read_bytes(path), path)


def parse(text: bytes, path: Path) -> Any:
    """Return the value of the text of a file; raise `UserError` if there is none."""
    given = decode(text, str(path))
    try:
        value = json.loads(given) if path.suffix == ".json" else yaml.safe_load(given)
    except UNREADABLE as error:
        reason = " ".join(str(error).split())
        kind = "JSON" if path.suffix == ".json" else "YAML"
        raise UserError(f"{path}: not valid {kind}, correct it: {reason}") from None
    if path.suffix != ".json":
        require_small(value, str(path))
    return value


def require_small(value: Any, source: str) -> None:
    """Raise `UserError` if a value holds itself, or more than `LARGEST_CONTENT` values in all."""
    if holds_more_than(LARGEST_CONTENT, value):
        mistake = f"holds more than {LARGEST_CONTENT:,} values, or one within itself"
        raise UserError(f"{source}: {mistake}; write a config without YAML's & and *")
