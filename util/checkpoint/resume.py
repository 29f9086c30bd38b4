"""Which checkpoint a run resumes from, and which run wrote it."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from util.checkpoint.file import read_checkpoint
from util.runtime.errors import UserError

CHECKPOINTS = LAST, PREVIOUS, BEST = "last.pth", "last.previous.pth", "best.pth"

Kinds = Mapping[str, type | tuple[type, ...]]
"""Key of a checkpoint -> the types that its value may have."""

_OF_BEST: dict[str, type | tuple[type, ...]] = {
    **{"model": dict, "iteration": int},
    **{"best": (int, float), "stale": int, "run": int},
}


def state_with(optimizers: Iterable[str]) -> Kinds:
    """Return what a stage needs to resume whose optimizers have these names."""
    return {**_OF_BEST, "random": list, **dict.fromkeys(optimizers, dict)}


@dataclass(frozen=True)
class Candidate:
    """A checkpoint in a run's folder."""

    path: Path
    complete: bool  # whether training can resume from it; a `best.pth` is for testing
    run: int  # number of the run that wrote it, from 1; several runs may use one folder in turn
    iteration: int  # iterations that were done
    validated: bool  # whether the validation of this iteration is done
    launch: str | None  # `launch_id` of the run; None if no launcher started it


def find_candidates(folder: Path, kinds: Kinds) -> tuple[list[Candidate], list[str]]:
    """Return the checkpoints of runs in a folder, and one line for each unusable one."""
    good, bad = [], []
    for path in (folder / name for name in CHECKPOINTS if (folder / name).exists()):
        try:
            state = _numbered(path)
            complete = _holds(state, kinds)
            if not (complete or (path.name == BEST and _holds(state, _OF_BEST))):
                raise _incomplete(path)
            at = state["run"], state["iteration"], state.get("validated", True)
            good.append(Candidate(path, complete, *at, state.get("launch")))
        except UserError as error:
            bad.append(str(error))
    return good, bad


def latest(candidates: Iterable[Candidate]) -> Path | None:
    """Return the most advanced checkpoint of the latest run to resume from; None if there is none.

    A run that replaces another one leaves files of both for a moment, and may be killed in it.
    """
    # `max` returns the first of equals: `last` before `previous` before `best`.
    complete = (one for one in candidates if one.complete)
    newest = max(complete, key=lambda c: (c.run, c.iteration, c.validated), default=None)
    return newest.path if newest else None


def training_state(path: Path, kinds: Kinds) -> dict[str, Any]:
    """Read a checkpoint that training can resume from: its keys must have these types of values.

    Raises `UserError` if the file is missing, torn, not ours, or holds weights only.
    """
    state = _numbered(path)
    if not _holds(state, kinds):
        raise _incomplete(path)
    return state


def _numbered(path: Path) -> dict[str, Any]:
    return {"run": 0} | read_checkpoint(path)  # older files have no run number


def _holds(state: dict[str, Any], kinds: Kinds) -> bool:
    return all(isinstance(state.get(name), kind) for name, kind in kinds.items())


def _incomplete(path: Path) -> UserError:
    return UserError(f"{path}: holds weights only, or is no checkpoint of ours; name last.pth")


def check_resume_file(path: Path, kinds: Kinds) -> None:
    """Refuse an unusable file that `Train.resume` names with `UserError`; suggest a good one."""
    try:
        training_state(path, kinds)
    except UserError as error:
        other = latest(find_candidates(path.parent, kinds)[0])
        hint = f"; {other} is good: Train.resume={other}" if other else ""
        raise UserError(f"Train.resume: {error}{hint}") from None


def launch_id() -> str | None:
    """Return the launcher's name for this run; it stays the same when ranks are restarted."""
    return os.environ.get("TORCHELASTIC_RUN_ID")


def was_restarted() -> bool:
    """Return whether the launcher has restarted the ranks after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
