"""Which checkpoint a run goes on from, and whether it is the same run."""

import os
from pathlib import Path
from typing import Any

from util import checkpoint

_TRAINING = {
    **dict.fromkeys(("model", "optimizer_g", "optimizer_d"), dict),
    **{"iteration": int, "best": (int, float), "stale": int, "random": list},
}
LAST, PREVIOUS, BEST = "last.pth", "last.previous.pth", "best.pth"


def newest(folder: Path, launch: str | None = None) -> tuple[Path | None, list[str]]:
    """The good checkpoint of a run that is furthest on, and a line for each one that is bad.

    Args:
        folder: of the run.
        launch: count only what this launch of the run wrote (see `launch_id`).

    Returns:
        None without any file.

    Raises:
        ValueError: there are files, and not one is good.
    """
    good: list[tuple[int, bool, Path]] = []
    bad: list[str] = []
    for path in (folder / name for name in (LAST, PREVIOUS, BEST)):
        if not path.exists():
            continue
        try:
            state = training_state(path)
        except ValueError as error:
            bad.append(str(error))
            continue
        if launch is None or state.get("launch") == launch:
            good.append((state["iteration"], state.get("validated", True), path))
    if bad and not good:
        raise ValueError(f"{bad[0]} (none of {folder} is good; delete it to start anew)")
    # Of equals the first: `last` before `previous` before `best`.
    path = max(good, key=lambda found: found[:2])[2] if good else None
    return path, bad


def training_state(path: Path) -> dict[str, Any]:
    """Reads a checkpoint that training can go on from.

    Raises:
        ValueError: it is missing, torn, foreign, or holds weights only.
    """
    state = checkpoint.load(path)
    if not all(isinstance(state.get(name), kind) for name, kind in _TRAINING.items()):
        raise ValueError(f"{path}: holds weights only, or is no checkpoint of ours; name last.pth")
    return state


def explicit(path: Path) -> None:
    """Refuses a bad file that `Train.resume` names, and offers a good one of its folder.

    Raises:
        ValueError: see `training_state`.
    """
    try:
        training_state(path)
    except ValueError as error:
        try:
            other, _ = newest(path.parent)
        except ValueError:
            other = None
        offer = f"; {other} is good: Train.resume={other}" if other else ""
        raise ValueError(f"Train.resume: {error}{offer}") from None


def launch_id() -> str | None:
    """What the launcher calls this run, the same after it has restarted the ranks."""
    return os.environ.get("TORCHELASTIC_RUN_ID")


def restarted() -> bool:
    """Whether the launcher has started the ranks anew after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def differences(then: dict[str, Any], now: dict[str, Any], name: str = "") -> list[str]:
    """`key then -> now` of all that differs in two trees of plain values; what one lacks is not."""
    lines = []
    for key in then.keys() & now.keys():
        before, after = then[key], now[key]
        path = f"{name}.{key}" if name else key
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differences(before, after, path)
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
