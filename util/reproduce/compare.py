"""Compare configs and records: what differs, and which keys can change a result."""

import hashlib
import json
from collections.abc import Mapping, Set
from typing import Any

from util.config import flatten, keys_with
from util.folds import without_folders

Tree = Mapping[str, Any]
"""Nested mappings that end in plain values, such as the sections of a config."""

_NEUTRAL = keys_with("neutral")
_NOT_NUMERIC = _NEUTRAL | keys_with("names_input")


def tree_differences(then: Tree, now: Tree, ignored: Set[str] = frozenset()) -> list[str]:
    """Return `name then -> now` for each value that differs.

    `ignored` names, joined by dots, may differ. Values that only one tree has are not compared.
    """
    before, after = flatten(then), flatten(now)
    names = sorted((before.keys() & after.keys()) - ignored)
    return [f"{n} {before[n]} -> {after[n]}" for n in names if before[n] != after[n]]


def setting_differences(then: Tree, now: Tree) -> list[str]:
    """Return what changed between a checkpoint and the trees of the run that resumes it.

    Neutral keys are left out; paths to inputs are not, as their content may differ.
    """
    return tree_differences(then, now, {f"config.{name}" for name in _NEUTRAL})


def numeric_keys(config: Tree) -> dict[str, Any]:
    """Return `Section.key` -> value of each key of a config that can change a number.

    Left out are neutral keys and paths to inputs; `util.config.kinds.key` explains both. Of the
    data sets of a mix, kind, name and order stay. Raises `UserError` as `mixed_sets`.
    """
    values = flatten(config)
    mix = {"Data.mix": without_folders(values["Data.mix"])} if values.get("Data.mix") else {}
    return {name: value for name, value in values.items() if name not in _NOT_NUMERIC} | mix


def config_hash(config: Tree) -> str:
    """Return the SHA-256 of the `numeric_keys` of a config."""
    text = json.dumps(numeric_keys(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
