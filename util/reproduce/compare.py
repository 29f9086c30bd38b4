"""Do two configs, or two records, differ in what changes a number?"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def tree_differences(then: dict[str, Any], now: dict[str, Any], name: str = "") -> list[str]:
    """`key then -> now` of all that differs in two trees of plain values; what one lacks is not."""
    lines = []
    for key in then.keys() & now.keys():
        before, after = then[key], now[key]
        path = f"{name}.{key}" if name else key
        if isinstance(before, dict) and isinstance(after, dict):
            lines += tree_differences(before, after, path)
        elif before != after and path not in _FREE:
            lines.append(f"{path} {before} -> {after}")
    return sorted(lines)


_FREE = {  # keys that do not change what is learnt
    "config.Train.resume",
    "config.Train.save_path",
    "config.Train.save_minutes",
    "config.Train.print_freq",
    "config.Data.workers",
    "config.Data.cache",
}


# Where things lie, how they are shown, how fast they are read: none changes a number.
NO_NUMBERS = {
    *("Data.data_root", "Data.list_dir", "Data.cache", "Data.workers", "Method.pre_weight"),
    *("Train.save_path", "Train.save_minutes", "Train.resume", "Train.print_freq"),
    *("Train.replay", "Eval.visualize", "Eval.weight", "Eval.cache_gb", "Eval.verify"),
}


def config_hash(config: Mapping[str, Mapping[str, Any]]) -> str:
    """SHA-256 of a resolved config as `to_dict` gives it, without the keys of `NO_NUMBERS`."""
    text = json.dumps(numeric_keys(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def numeric_keys(config: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """`Section.key` -> value of every key that may change a number."""
    flat = {f"{s}.{key}": value for s, keys in config.items() for key, value in keys.items()}
    return {name: value for name, value in flat.items() if name not in NO_NUMBERS}
