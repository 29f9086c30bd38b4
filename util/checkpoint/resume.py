"""Which checkpoint a run goes on from, and whether it is the same run."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from util.checkpoint.file import read_checkpoint
from util.runtime.errors import UserError

_TRAINING = {
    **dict.fromkeys(("model", "optimizer_g", "optimizer_d"), dict),
    **{"iteration": int, "best": (int, float), "stale": int, "random": list, "run": int},
}
LAST, PREVIOUS, BEST = "last.pth", "last.previous.pth", "best.pth"


@dataclass(frozen=True)
class Found:
    """A good checkpoint in a run's folder.

    Attributes:
        run: which of the runs that had this folder one after the other wrote it, from 1.
        iteration, validated, launch: as `Run.save` wrote them.
    """

    path: Path
    run: int
    iteration: int
    validated: bool
    launch: str | None


def found(folder: Path) -> tuple[list[Found], list[str]]:
    """The good checkpoints in a folder, and a line for each one that is bad."""
    good, bad = [], []
    for path in (folder / name for name in (LAST, PREVIOUS, BEST)):
        if not path.exists():
            continue
        try:
            state = training_state(path)
        except ValueError as error:
            bad.append(str(error))
            continue
        about = state["run"], state["iteration"], state.get("validated", True)
        good.append(Found(path, *about, state.get("launch")))
    return good, bad


def newest(good: Iterable[Found]) -> Path | None:
    """The checkpoint that is furthest on of the folder's latest run; None: there is none.

    A run that replaces another leaves files of both for a moment, in which it may be killed.
    """
    # Of equals the first: `last` before `previous` before `best`.
    latest = max(good, key=lambda one: (one.run, one.iteration, one.validated), default=None)
    return latest.path if latest else None


def training_state(path: Path) -> dict[str, Any]:
    """Reads a checkpoint that training can go on from.

    Raises:
        UserError: it is missing, torn, foreign, or holds weights only.
    """
    state = {"run": 0} | read_checkpoint(path)  # older files hold none
    if not all(isinstance(state.get(name), kind) for name, kind in _TRAINING.items()):
        raise UserError(f"{path}: holds weights only, or is no checkpoint of ours; name last.pth")
    return state


def explicit(path: Path) -> None:
    """Refuses a bad file that `Train.resume` names, and offers a good one of its folder.

    Raises:
        UserError: see `training_state`.
    """
    try:
        training_state(path)
    except ValueError as error:
        other = newest(found(path.parent)[0])
        offer = f"; {other} is good: Train.resume={other}" if other else ""
        raise UserError(f"Train.resume: {error}{offer}") from None


def launch_id() -> str | None:
    """What the launcher calls this run, the same after it has restarted the ranks."""
    return os.environ.get("TORCHELASTIC_RUN_ID")


def restarted() -> bool:
    """Whether the launcher has started the ranks anew after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
