"""Read the folder of a run: config, curves and the result of its test."""

import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from util.config.yaml_file import read_yaml
from util.reproduce import verify
from util.runtime.errors import UserError
from util.runtime.files import open_file

Points = list[tuple[int, float]]  # (iteration, value)

WRONG_CONTENT = (
    *(LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError),
    StopIteration,
)
"""What using a value of another type or form than that of a result raises."""


@dataclass
class Record:
    """What a run's folder holds."""

    name: str  # short, for titles
    folder: Path
    config: dict[str, dict[str, Any]]
    curves: dict[str, Points]  # tag such as `train/loss_g` -> points, ascending
    seconds: float  # from the first to the last point, without the time from a stop to the resume
    result: dict[str, Any] | None  # what test.py wrote; None before a test
    environment: dict[str, Any] | None  # `util.reproduce.environment`, recorded by the test
    base_learner: dict[str, Any] | None = None  # scores of stage one, if this is a run of it
    leaks: dict[str, Any] | None = None  # `util.data.leaks.Leaks`, recorded beside the scores
    protocols: dict[str, dict[str, Any]] = field(default_factory=dict)  # 2way, ... -> its result


def read_runs(folders: list[Path]) -> list[Record]:
    """Read runs; name each as `name_folders` does.

    Raises `UserError` if a folder holds no run, is named twice, or a file in it is torn.
    """
    return [read_run(*pair) for pair in zip(folders, name_folders(folders), strict=True)]


def name_folders(folders: Sequence[Path]) -> list[str]:
    """Name each folder by the part of its path in which it differs from the others.

    Raises `UserError` if a folder is named twice.
    """
    resolved = [folder.resolve() for folder in folders]
    for folder, path in zip(folders, resolved, strict=True):
        if resolved.count(path) > 1:
            raise UserError(f"{folder}: this run is named twice; name each run once")
    above = common_folder(folders)
    return [path.relative_to(above).as_posix() for path in resolved]


def common_folder(folders: Sequence[Path]) -> Path:
    """Return the folder above several folders, or above the only one."""
    resolved = [folder.resolve() for folder in folders]
    return Path(os.path.commonpath(resolved)) if len(resolved) > 1 else resolved[0].parent


def read_run(folder: Path, name: str) -> Record:
    """Read one run; see `read_runs`."""
    result_path, config_path = folder / "result.json", folder / "config.yaml"
    files = sorted(folder.glob("events.out.tfevents.*"))
    protocols = {path.stem.removeprefix("result_"): path for path in folder.glob("result_*.json")}
    if not files and not protocols and not result_path.is_file():
        remedy = "name a folder that train.sh wrote, such as exp/pascal/split0_resnet50"
        raise UserError(f"{folder}: not a run, it has neither curves nor result.json; {remedy}")
    written = verify.read_result(result_path, ("config",)) if result_path.is_file() else None
    base_learner = (written or {}).get("base_learner")
    result = read_result(result_path) if written and not base_learner else None
    others = {name: read_result(path) for name, path in sorted(protocols.items())}
    if config_path.is_file():
        config = _read_config(config_path)
    elif written:
        config = written["config"]
    elif others:
        config = next(iter(others.values()))["config"]
    else:
        raise UserError(f"{config_path}: missing; copy it from the original folder of the run")
    curves, seconds = read_curves(files)
    environment, leaks = ((written or {}).get(key) for key in ("environment", "leaks"))
    tests = (result, environment, base_learner, leaks, others)
    return Record(name, folder, config, curves, seconds, *tests)


def _read_config(path: Path) -> dict[str, dict[str, Any]]:
    """Read a config without checks: an older run may have keys that no longer exist."""
    config = read_yaml(path)
    if not isinstance(config, dict):
        raise UserError(f"{path}: torn, or not a config; copy it again, or delete it")
    return config


@contextmanager
def held_in(path: Path) -> Iterator[None]:
    """Name the file or folder whose content the block cannot use, in a `UserError`.

    Someone may have edited it, or another program has written it: it can fail anywhere.
    """
    try:
        yield
    except UserError:
        raise
    except WRONG_CONTENT as error:
        reason = " ".join(f"{type(error).__name__}: {str(error)[:80]!r}".split())
        what = f"{path}: holds what no run writes ({reason})"
        raise UserError(f"{what}; run test.sh again, or leave it out") from error


def is_base_learner(path: Path) -> bool:
    """Return whether a `result.json` is of stage one; raises as `verify.read_result`."""
    return "base_learner" in verify.read_result(path, ())


def read_result(path: Path) -> dict[str, Any]:
    """Read the parts of a `result.json` that reports show; raises as `verify.read_result`.

    Raises `UserError`, too, if a mean of its summary is not that of its seeds.
    """
    result = verify.read_result(path, ("checkpoint", "summary", "seeds", "config"))
    wrong = []
    with suppress(*WRONG_CONTENT):  # whoever uses such a part names it
        wrong = list(_wrong_means(result["summary"], list(result["seeds"].values())))
    if wrong:
        name, told, right = wrong[0]
        what = f"its summary says {name.strip()} {told:.2f}, and its seeds give {right:.2f}"
        raise UserError(f"{path}: was edited: {what}; run test.sh again, or leave it out")
    return result


def _wrong_means(
    summary: dict[str, dict[str, Any]], seeds: list[dict[str, Any]]
) -> Iterator[tuple[str, float, float]]:
    """Yield name, told and true mean of each score whose mean is not that of the seeds."""
    for name, cell in summary.items():
        kind, _, score = name.strip().partition(" ")
        key = {"mIoU": "miou", "FB-IoU": "fb_iou", "pIoU": "p_iou"}.get(score)
        parts = [seed.get(kind) or {} for seed in seeds if kind in ("final", "meta", "prior")]
        values: list[Any] = [
            part.get(key) if key else part.get("classes", {}).get(score) for part in parts
        ]
        if values and None not in values and abs(fmean(values) - cell["mean"]) > 1e-6:
            yield name, cell["mean"], fmean(values)


def read_curves(files: list[Path]) -> tuple[dict[str, Points], float]:
    """Read the tensorboard files of one run, in the order of the numbers that they begin with.

    Files without a number are older, and in the order of their names. When a run starts or resumes,
    its new file begins with a mark. Points at or after the step of that mark in earlier files are
    discarded. Each file is read up to its first torn record, which a running or killed run may
    leave at the end. Values that are not finite are left out. Returns the points of each tag, and
    the seconds from the first to the last point, summed over the files.
    """
    # Takes half a second to import, so that commands without curves do not wait for it.
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
    from tensorboard.compat.proto.event_pb2 import SessionLog

    curves: dict[str, Points] = {}
    seconds = 0.0
    loaded = []
    for path in files:
        open_file(path).close()  # of a pipe, reading would never end
        with held_in(path):
            loaded.append(list(LegacyEventFileLoader(str(path)).Load()))
    for events in sorted(loaded, key=_file_number):
        times = []
        for event in events:
            if event.session_log.status == SessionLog.START:
                curves = {tag: [p for p in old if p[0] < event.step] for tag, old in curves.items()}
                seconds = seconds if event.step > 1 else 0.0
            for value in event.summary.value:
                if value.HasField("simple_value") and math.isfinite(value.simple_value):
                    curves.setdefault(value.tag, []).append((event.step, value.simple_value))
                    times.append(event.wall_time)
        seconds += max(times) - min(times) if times else 0.0
    return {tag: points for tag, points in curves.items() if points}, seconds


def _file_number(events: list[Any]) -> int:
    """Return the number that `util.train.curves` gave a file of a run; 0: it has none."""
    marks = (re.fullmatch(r"file (\d+)", event.session_log.msg) for event in events[:3])
    return next((int(mark[1]) for mark in marks if mark), 0)
