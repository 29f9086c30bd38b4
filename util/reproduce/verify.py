"""Is a `result.json` repeated here? `python test.py --verify exp/.../result.json`."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from util.reproduce.compare import numeric_keys, tree_differences
from util.runtime.errors import UserError

NUMBERS = ("summary", "seeds", "confusion")
ABSENT = "absent"  # stands for a number that one of two results lacks
SHOWN = 20  # numbers that differ, by name; the rest is counted


def refuse_another(path: str, now: Mapping[str, Any]) -> dict[str, Any]:
    """Reads a result, and refuses one that a test here could not repeat.

    Args:
        path: the file.
        now: the record of this test: `config`, `checkpoint_sha256`, `environment`.

    Returns:
        What the file holds.

    Raises:
        UserError: it is no result, or one of another config, checkpoint or list.
    """
    wanted = (*NUMBERS, "config", "environment", "checkpoint_sha256")
    then = read_result(Path(path), wanted, "Eval.verify: ")
    changed = tree_differences(numeric_keys(then["config"]), numeric_keys(now["config"]))
    changed = [f"config {line}" for line in changed]
    if then["checkpoint_sha256"] != now["checkpoint_sha256"]:
        changed.append(f"checkpoint {now['checkpoint']} is not the one that was tested")
    lists = (record["environment"]["lists"] for record in (then, now))
    changed += [f"list of {line}" for line in tree_differences(*lists)]
    if changed:
        raise UserError(f"{path}: of another measurement: {'; '.join(changed)}")
    return then


def read_result(path: Path, wanted: Iterable[str], prefix: str = "") -> dict[str, Any]:
    """Reads a `result.json`.

    Args:
        path: the file.
        wanted: keys that it has to hold.
        prefix: what a message begins with.

    Raises:
        UserError: it is missing, torn, or not test.py's.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{prefix}{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise UserError(f"{prefix}{path}: torn, or no JSON; run test.sh again") from None
    held = result if isinstance(result, dict) else {}
    if absent := [key for key in wanted if key not in held]:
        raise UserError(
            f"{prefix}{path}: {absent[0]!r} is missing, not a result of test.py; run test.sh again"
        )
    return result


def compare(
    path: str, then: Mapping[str, Any], now: Mapping[str, Any], say: Callable[[str], None]
) -> None:
    """Compares the numbers of two results of one measurement, and says how they were made.

    Args:
        path: of the earlier one.
        then: the earlier one.
        now: as it would be written now.
        say: takes a line.

    Raises:
        UserError: a number differs, or only one of the two has it.
    """
    for kind in ("code", "packages", "machine"):
        made = (record["environment"][kind] for record in (then, now))
        for line in tree_differences(*made, kind):
            say(f"made otherwise: {line}")
    pair = ({name: record[name] for name in NUMBERS} for record in (then, now))
    old, new = (_leaves(json.loads(json.dumps(numbers))) for numbers in pair)
    values = ((name, old.get(name, ABSENT), new.get(name, ABSENT)) for name in sorted(old | new))
    lines = [f"{name} {before} -> {after}" for name, before, after in values if before != after]
    for line in lines[:SHOWN]:
        say(f"differs: {line}")
    if len(lines) > SHOWN:
        say(f"differs: {len(lines) - SHOWN} more")
    if lines:
        raise UserError(f"{path}: {len(lines)} numbers differ, as told above")
    say(f"{path}: equal, every number")


def _leaves(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """What a tree of mappings comes down to, by the names that lead there, joined by dots."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{above}{key}"
        leaves |= _leaves(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return leaves
