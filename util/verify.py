"""Is a `result.json` repeated here? `python test.py --verify exp/.../result.json`."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from util import resume
from util.environment import numeric_keys

NUMBERS = ("summary", "seeds", "confusion")
SHOWN = 20  # numbers that differ, by name; the rest is counted


def refuse_another(path: str, now: Mapping[str, Any]) -> dict[str, Any]:
    """Reads a result, and refuses one that a test here could not repeat.

    Args:
        path: the file.
        now: the record of this test: `config`, `checkpoint_sha256`, `environment`.

    Returns:
        What the file holds.

    Raises:
        ValueError: it is no result, or one of another config, checkpoint or list.
    """
    then = read(Path(path))
    changed = resume.differences(numeric_keys(then["config"]), numeric_keys(now["config"]))
    changed = [f"config {line}" for line in changed]
    if then["checkpoint_sha256"] != now["checkpoint_sha256"]:
        changed.append(f"checkpoint {now['checkpoint']} is not the one that was tested")
    lists = (record["environment"]["lists"] for record in (then, now))
    changed += [f"list of {line}" for line in resume.differences(*lists)]
    if changed:
        raise ValueError(f"{path}: of another measurement: {'; '.join(changed)}")
    return then


def read(path: Path) -> dict[str, Any]:
    """What `test.py` wrote.

    Raises:
        ValueError: the file is missing, torn, or of something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"Eval.verify: {path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise ValueError(f"Eval.verify: {path}: torn, or no JSON; name a result.json") from None
    wanted = {*NUMBERS, "config", "environment", "checkpoint_sha256"}
    if not isinstance(content, dict) or not wanted <= content.keys():
        raise ValueError(f"Eval.verify: {path}: not a result of test.py; test again to get one")
    return content


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
        ValueError: a number differs.
    """
    old, new = (record["environment"] for record in (then, now))
    for kind in ("code", "packages", "machine"):
        for line in resume.differences(old[kind], new[kind], kind):
            say(f"made otherwise: {line}")
    pair = ({name: record[name] for name in NUMBERS} for record in (then, now))
    lines = resume.differences(*(json.loads(json.dumps(numbers)) for numbers in pair))
    for line in lines[:SHOWN]:
        say(f"differs: {line}")
    if len(lines) > SHOWN:
        say(f"differs: {len(lines) - SHOWN} more")
    if lines:
        raise ValueError(f"{path}: {len(lines)} numbers differ, as told above")
    say(f"{path}: equal, every number")
