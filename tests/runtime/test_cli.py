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

from util.config import load_config
from util.runtime.cli import main
from util.runtime.errors import RunStopped
from util.runtime.files import atomic_write


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
