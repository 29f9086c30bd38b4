"""Repeat a test: does it give the numbers of an earlier `result.json`?

python test.py --verify exp/.../result.json
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from util.config import flatten
from util.config.yaml_file import read_bytes
from util.reproduce.compare import numeric_keys, tree_differences
from util.runtime.errors import UserError

NUMBERS = ("summary", "seeds", "confusion")
"""Parts of a result that must be equal."""

BESIDE = ("controls", "absent")
"""Parts that must be equal, too, if the earlier result has them."""

MAX_SHOWN = 20
"""Differing numbers that are shown one by one; further ones are counted."""


def read_comparable(path: str, now: Mapping[str, Any]) -> dict[str, Any]:
    """Read an earlier result, and refuse one that this test cannot repeat.

    `now` is the record of this test: `config`, `checkpoint`, `checkpoint_sha256`, `environment`.
    Raises `UserError` if the file is no result, or if its config, checkpoint or lists differ.
    """
    wanted = (*NUMBERS, "config", "environment", "checkpoint_sha256")
    then = read_result(Path(path), wanted, "Eval.verify: ")
    config, recorded = then["config"], then["environment"]
    lists = recorded.get("lists") if isinstance(recorded, Mapping) else None
    if not isinstance(config, Mapping) or not isinstance(lists, Mapping):
        raise UserError(f"{path}: is not a result of test.py; run test.sh again")
    changed = tree_differences(numeric_keys(then["config"]), numeric_keys(now["config"]))
    changed = [f"config {line}" for line in changed]
    if then["checkpoint_sha256"] != now["checkpoint_sha256"]:
        changed.append(f"checkpoint {now['checkpoint']} is not the one that was tested")
    before, after = (record["environment"]["lists"] for record in (then, now))
    changed += [f"list of {line}" for line in tree_differences(before, after)]
    if changed:
        raise UserError(f"{path}: the result of another measurement: {'; '.join(changed)}")
    return then


def read_result(path: Path, wanted: Iterable[str], prefix: str = "") -> dict[str, Any]:
    """Read a `result.json`, which must hold the `wanted` keys.

    Raises `UserError`, which begins with `prefix`, if it is missing, torn, or not written by
    test.py.
    """
    try:
        result = json.loads(read_bytes(path, "result"))
    except UserError as error:
        raise UserError(f"{prefix}{error}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{prefix}{path}: torn, or no JSON; run test.sh again") from None
    held = result if isinstance(result, dict) else {}
    if missing := [key for key in wanted if key not in held]:
        what = f"{prefix}{path}: has no {missing[0]!r}, so it is not a result of test.py"
        raise UserError(f"{what}; run test.sh again")
    return result


def compare_results(
    path: str, then: Mapping[str, Any], now: Mapping[str, Any], say: Callable[[str], None]
) -> None:
    """Compare the numbers of this test with the earlier ones, and show how environments differ.

    `say` is called with each line of output. Raises `UserError` if a number differs, or if only one
    of the results has it.
    """
    for kind in ("code", "packages", "machine"):
        before, after = ({kind: record["environment"][kind]} for record in (then, now))
        for line in tree_differences(before, after):
            say(f"another environment: {line}")
    names = [*NUMBERS, *(name for name in BESIDE if name in then)]
    numbers = ({name: record.get(name, {}) for name in names} for record in (then, now))
    old, new = (flatten(json.loads(json.dumps(tree))) for tree in numbers)
    absent = dict.fromkeys(old | new, "missing")  # a number that only one has differs, too
    lines = tree_differences(absent | old, absent | new)
    for line in lines[:MAX_SHOWN]:
        say(f"differs: {line}")
    if len(lines) > MAX_SHOWN:
        say(f"differs: {len(lines) - MAX_SHOWN} more")
    if lines:
        raise UserError(f"{path}: {len(lines)} numbers differ, see above")
    say(f"{path}: every number is equal")
