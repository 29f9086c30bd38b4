"""Read a config of AMNet, HDMNet or BAM: what each of its keys is called here, and ours from it.

`published_keys.yaml` has every key of theirs; docs/published_configs.md shows it as a table.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from util.config.schema import KEYS
from util.config.validate import shorten
from util.folds import CLASSES

TABLE: list[dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("published_keys.yaml").read_text(encoding="utf-8")
)
"""Rows with `theirs`, `here`, and where there is one `note`, `two`, `one`; see the file's head."""

_ROWS = {name: row for row in TABLE for name in row["theirs"]}
_WANTED = {
    **dict.fromkeys(("Train.rotate_min", "Train.rotate_max"), "a number"),
    **dict.fromkeys(("Train.base_lr", "Train.epochs"), "a number"),
    **dict.fromkeys(("Train.index_split", "Train.manual_seed"), "an integer"),
    **dict.fromkeys(("Train.resized_val", "Train.SubEpoch_val"), "true or false"),
    **dict.fromkeys(("Train.use_split_coco", "Method.vgg"), "true or false"),
}
"""What values must be that change here; of the others, `schema.py` says it for our keys."""

_MARKS = _ROWS.keys() - KEYS.keys()  # keys that only theirs have


@dataclass(frozen=True)
class Imported:
    """Our keys of a published config.

    Attributes:
        keys: `Section.key` -> value, only those that the file determines.
        lines: a line for each key of the file: what it is called here, and what to know.
        left: lines about keys that are not in `keys` although they should change something.
        mistakes: lines about values that cannot be used; nothing follows from these.
    """

    keys: dict[str, Any]
    lines: list[str]
    left: list[str]
    mistakes: list[str]


def is_published(content: object) -> bool:
    """Return whether the content of a YAML file has keys that only published configs have."""
    return isinstance(content, Mapping) and len(_MARKS & _flat(content).keys()) > 2


def import_published(content: Mapping[str, Any], name: str) -> Imported:
    """Return our keys of a published config; `name` becomes the name of the run's folder."""
    given = _flat(content)
    wrong = {key: text for key, value in given.items() if (text := _mistake(key, value))}
    theirs = {k: value for k, value in given.items() if value is not None and k not in wrong}
    stage = "two" if given.get("Train.shot") is not None else "one"
    keys = {"Train.save_path": f"exp/{name}"}
    left = [
        f"{key}: {value!r} stands outside of a section, such as Train; not imported"
        for key, value in content.items()
        if not isinstance(value, Mapping) and value is not None
    ]
    for key, value in theirs.items():
        row = _ROWS.get(key)
        if row is None:
            left.append(f"{key}: {value!r} is no key of AMNet, HDMNet or BAM; not imported")
        elif (ours := row.get(stage)) and len(row["theirs"]) == 1:
            keys[ours] = value
    keys |= _computed(theirs, stage, left)
    lines = [_line(key, given[key]) for key in given if key in _ROWS]
    return Imported(keys, lines, left, list(wrong.values()))


def _flat(content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"{section}.{key}": value
        for section, keys in content.items()
        if isinstance(keys, Mapping)
        for key, value in keys.items()
    }


def _mistake(key: str, value: Any) -> str:
    """Return what is wrong with the value of a published key; '' if nothing is, or it is none."""
    wanted = _WANTED.get(key, "a single value")
    if key not in _ROWS or value is None:
        return ""
    is_right = not isinstance(value, list | dict | set)
    if wanted == "a number":
        is_right = is_right and _number(value) is not None
    elif wanted != "a single value":
        is_right = type(value) is (int if wanted == "an integer" else bool)
    return "" if is_right else f"{key} wants {wanted}, given {shorten(value)}"


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)  # YAML reads 2e-4 as text
    except (TypeError, ValueError, OverflowError):
        return None


def _line(key: str, value: Any) -> str:
    row = _ROWS[key]
    here = row["here"].replace("`", "")
    note = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", row.get("note", "")).replace("`", "")
    return f"{key} = {value!r}: " + ("; ".join([here, note]) if note else here)


def _computed(theirs: dict[str, Any], stage: str, left: list[str]) -> dict[str, Any]:
    """Return the keys whose values are not theirs unchanged; add to `left` what has none."""
    section = "Data" if stage == "two" else "Base"
    found: dict[str, Any] = {}
    if sides := [theirs[key] for key in ("Train.train_h", "Train.train_w") if key in theirs]:
        found[f"{section}.size"] = sides[0] if len(set(sides)) == 1 else sides
    if "Train.scale_min" in theirs and "Train.scale_max" in theirs:
        found[f"{section}.scale"] = [theirs["Train.scale_min"], theirs["Train.scale_max"]]
    if "Train.rotate_max" in theirs:
        high = float(theirs["Train.rotate_max"])
        found[f"{section}.rotate"] = high
        if "Train.rotate_min" in theirs and (low := float(theirs["Train.rotate_min"])) != -high:
            left.append(f"Train.rotate_min: {low:g} is not -{high:g}; both directions get {high:g}")
    found |= _rates(theirs, stage) | _network(theirs)
    if (data_set := theirs.get("Train.data_set")) in CLASSES:
        found["Data.list_dir"] = f"lists/{data_set}"
    if data_set == "coco" and "Train.use_split_coco" in theirs:
        found["Data.use_split_coco"] = theirs["Train.use_split_coco"]
    resized = theirs.get("Train.resized_val")
    if resized is False:
        left.append("Train.resized_val: False, small images as they are, does not exist here")
    elif resized:  # only BAM has no pre_weight
        stretches = stage == "two" and "Train.pre_weight" in theirs
        key = "Eval.resize" if stage == "two" else "Base.val_resize"
        found[key] = "stretch" if stretches else "keep"
    if "Train.manual_seed" in theirs:
        seeds = ("Train.seed", "Base.seed", "Eval.val_seed")
        found |= dict.fromkeys(seeds, theirs["Train.manual_seed"])
    if theirs.get("Train.SubEpoch_val"):  # as published, it acts up to 100 epochs only
        found["Train.sub_epoch_val"] = float(theirs.get("Train.epochs", 200)) <= 100
    if theirs.get("Train.shot", 1) != 1 and "Method.kshot_trans_dim" in theirs:
        found["Method.kshot_trans_dim"] = theirs["Method.kshot_trans_dim"]  # else it has no effect
    return found


def _rates(theirs: dict[str, Any], stage: str) -> dict[str, Any]:
    """Return the rate of the first group, and how many times as much the others have."""
    if "Train.base_lr" not in theirs:
        return {}
    rate = float(theirs["Train.base_lr"])
    every = theirs.get("Train.index_split") == -1  # every group has ten times the rate
    lr, factor = (10 * rate, 1.0) if every else (rate, 10.0)
    names = ("Train.lr", "Train.lr_multiplier")
    names = names if stage == "two" else ("Base.lr", "Base.head_lr_multiplier")
    return dict(zip(names, (lr, factor), strict=True))


def _network(theirs: dict[str, Any]) -> dict[str, Any]:
    if theirs.get("Method.vgg"):
        return {"Method.backbone": "vgg16"}
    layers = theirs.get("Method.layers")
    return {"Method.backbone": f"resnet{layers}"} if layers else {}
