"""What lies in a run's folder: config, curves, the test's result, pictures, environment."""

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from google.protobuf.message import DecodeError
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from util.evaluate.visualize import GALLERIES
from util.reproduce import verify
from util.runtime.errors import UserError

Points = list[tuple[int, float]]  # (iteration, value)
HEADER, FOOTER = 12, 4  # bytes around a record: its length with a CRC, the CRC of its content


@dataclass
class Record:
    """A run as its folder tells it.

    Attributes:
        name: short, for titles.
        config: section -> key -> value.
        curves: tag such as `train/loss_g` -> points, ascending.
        seconds: from the first to the last record of the curves; pauses between starts left out.
        result: what test.py wrote; None before a test.
        pictures: name in `GALLERIES` -> PNG.
        environment: of the test, the record of `util.reproduce.environment`.
    """

    name: str
    folder: Path
    config: dict[str, dict[str, Any]]
    curves: dict[str, Points]
    seconds: float
    result: dict[str, Any] | None
    pictures: dict[str, Path]
    environment: dict[str, Any] | None


def read_runs(folders: list[Path]) -> list[Record]:
    """Reads runs; their names are the parts of their paths in which they differ.

    Raises:
        UserError: a folder holds no run, is given twice, or a file in it is torn.
    """
    resolved = [folder.resolve() for folder in folders]
    for folder, path in zip(folders, resolved, strict=True):
        if resolved.count(path) > 1:
            raise UserError(f"{folder}: this run is named twice; name each once")
    above = os.path.commonpath(resolved) if len(resolved) > 1 else resolved[0].parent
    return [
        read_run(folder, path.relative_to(above).as_posix())
        for folder, path in zip(folders, resolved, strict=True)
    ]


def read_run(folder: Path, name: str) -> Record:
    """Reads one run's folder; see `read_runs`."""
    result_path, config_path = folder / "result.json", folder / "config.yaml"
    files = sorted(folder.glob("events.out.tfevents.*"))
    if not files and not result_path.is_file():
        raise UserError(
            f"{folder}: no run is here, neither curves nor result.json; name a folder that "
            "train.sh made, such as exp/pascal/split0_resnet50"
        )
    result = read_result(result_path) if result_path.is_file() else None
    if config_path.is_file():
        config = _read_config(config_path)
    elif result:
        config = result["config"]
    else:
        raise UserError(f"{config_path}: missing; the run was moved without it, copy it too")
    curves, seconds = read_curves(files)
    pictures = {name: folder / f"{name}.png" for name in GALLERIES}
    return Record(
        name=name,
        folder=folder,
        config=config,
        curves=curves,
        seconds=seconds,
        result=result,
        pictures={name: path for name, path in pictures.items() if path.is_file()},
        environment=(result or {}).get("environment"),
    )


def _read_config(path: Path) -> dict[str, dict[str, Any]]:
    """As it was written: the keys of an older run need not be today's."""
    try:
        config = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError:
        config = None
    if not isinstance(config, dict):
        raise UserError(f"{path}: torn, or no config; copy the run anew, or leave the file out")
    return config


def read_result(path: Path) -> dict[str, Any]:
    """What the report shows of a `result.json`; raises as `verify.read_result`."""
    return verify.read_result(path, ("checkpoint", "summary", "seeds", "config"))


def read_curves(files: list[Path]) -> tuple[dict[str, Points], float]:
    """Reads tensorboard files of one run, in the order in which they were begun.

    Where a run was started or resumed, its file begins with a mark: what files before it say of
    that iteration and later ones is void. The last record of a run that is under way may be
    unfinished and is left out, as are values that are not finite.

    Returns:
        Tag -> points, and the seconds that the files of the run span, each for itself.
    """
    curves: dict[str, Points] = {}
    seconds = 0.0
    for path in files:
        times = []
        for event in _events(path.read_bytes()):
            if event.session_log.status == SessionLog.START:
                curves = {tag: _before(event.step, points) for tag, points in curves.items()}
                seconds = seconds if event.step > 1 else 0.0
            for value in event.summary.value:
                if value.HasField("simple_value") and math.isfinite(value.simple_value):
                    curves.setdefault(value.tag, []).append((event.step, value.simple_value))
                    times.append(event.wall_time)
        seconds += max(times) - min(times) if times else 0.0
    return {tag: points for tag, points in curves.items() if points}, seconds


def _before(step: int, points: Points) -> Points:
    return [point for point in points if point[0] < step]


def _events(data: bytes):
    """The whole records of a tensorboard file, up to the first one that is not."""
    start = 0
    while start + HEADER <= len(data):
        length, crc = struct.unpack_from("<QI", data, start)
        end = start + HEADER + length
        if crc != masked_crc32c(data[start : start + 8]) or end + FOOTER > len(data):
            return
        try:
            yield Event.FromString(data[start + HEADER : end])
        except DecodeError:
            return
        start = end + FOOTER
