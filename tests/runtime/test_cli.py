"""How a command ends: exit statuses, one line for a user's mistake, tracebacks for faults."""

import errno
import os
import re
import resource
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from helpers.entries import call

import predict
import train
from util.config import load_config
from util.data.check import _main as check
from util.data.prepare.__main__ import run_prepare
from util.report.__main__ import report
from util.runtime.cli import main
from util.runtime.errors import RunStopped
from util.runtime.files import atomic_write
from util.runtime.texts import read_lines


def read_in_pool() -> None:
    with ProcessPoolExecutor(1) as pool:
        pool.submit(load_config, "nowhere.yaml", []).result()


def exit_status(entry: Callable[[], object]) -> int | str | None:
    with pytest.raises(SystemExit) as caught:
        main(entry)
    return caught.value.code


@pytest.mark.parametrize(
    "entry", [lambda: load_config("nowhere.yaml", []), read_in_pool], ids=["here", "process pool"]
)
def test_user_error_is_one_line_and_status_2_wherever_it_is_raised(
    entry: Callable[[], object], capsys: pytest.CaptureFixture
) -> None:
    assert exit_status(entry) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: nowhere.yaml: cannot read") and error.count("\n") == 1


def test_error_of_a_library_call_keeps_its_traceback() -> None:
    with pytest.raises(ValueError, match="kernel"):
        main(lambda: torch.nn.Conv2d(1, 1, 1, padding_mode="kernel"))


def test_stopped_run_is_one_line_and_status_1(capsys: pytest.CaptureFixture) -> None:
    def stop() -> None:
        raise RunStopped("iteration 3: the loss is nan")

    assert exit_status(stop) == 1
    assert capsys.readouterr().err == "stopped: iteration 3: the loss is nan\n"


def test_sigint_exits_with_status_130(capsys: pytest.CaptureFixture) -> None:
    assert exit_status(lambda: os.kill(os.getpid(), signal.SIGINT)) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


def test_sigterm_exits_with_status_143(capsys: pytest.CaptureFixture) -> None:
    assert exit_status(lambda: os.kill(os.getpid(), signal.SIGTERM)) == 143
    assert capsys.readouterr().err == "\ninterrupted\n"


def test_full_disk_is_one_line_that_names_the_file_and_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def full(file: BinaryIO) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "result.json"
    assert exit_status(lambda: atomic_write(path, full)) == 1
    line = f"stopped: {path}: cannot be written (No space left on device); make room there\n"
    assert capsys.readouterr().err == line and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "allocate", [lambda: np.zeros(1 << 55, np.uint8), lambda: torch.zeros(1 << 55)]
)
def test_memory_that_runs_out_is_one_line_that_says_for_what(
    allocate: Callable[[], object], capsys: pytest.CaptureFixture
) -> None:
    assert exit_status(allocate) == 1
    error = capsys.readouterr().err
    assert error.startswith("stopped: memory ran out (") and error.count("\n") == 1
    assert re.search("allocate|memory", error) and "use a smaller size" in error


def test_low_limit_of_open_files_is_one_line(capsys: pytest.CaptureFixture) -> None:
    def exhaust() -> None:
        old = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (os.dup(0) + 1, old[1]))
        try:
            open(os.devnull)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, old)

    assert exit_status(exhaust) == 2
    line = "error: this process may open no more files; allow more (ulimit -n 4096), or set"
    assert capsys.readouterr().err.startswith(line)


@pytest.mark.parametrize(
    ("entry", "words", "place"),
    [
        (run_prepare, ("custom", "--images", "a", "--labels", "b", "--out", ""), "--out"),
        (run_prepare, ("custom", "--images", " ", "--labels", "b", "--out", "c"), "--images"),
        (run_prepare, ("coco", "--coco=", "--out", "c"), "--coco"),
        (train.train, ("--config", ""), "--config"),
        (predict.predict, ("--checkpoint", "a", "--support", "b:c", "--query", ""), "--query"),
        (predict.predict, ("--out=", "--checkpoint", "a"), "--out"),
        (check, ("",), "python _main"),
        (report, ("exp/a", ""), "exp/a"),
    ],
)  # fmt: skip
def test_empty_word_is_refused_by_every_tool_and_nothing_is_written(
    entry: Callable[[], object], words: tuple[str, ...], place: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """`Path("")` would be the current folder."""
    monkeypatch.chdir(tmp_path)
    assert call(entry, *words, config=False) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"nothing stands after {place}; is a variable" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a", "folder/b"])
def test_link_that_leads_nowhere_is_said_to_be_that(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.symlink_to("gone")
    for read in (path.stat, path.read_bytes, lambda: read_lines(path)):
        assert exit_status(read) == 2
        assert f"{path}: is a link to gone, which is not there; " in capsys.readouterr().err
