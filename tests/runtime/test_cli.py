"""The progress line, and what becomes of a user's mistake."""

import errno
import io
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from util.config import load_config
from util.runtime.cli import main
from util.runtime.files import atomic_write
from util.runtime.progress import Progress, clock


class Broken(Dataset):
    """A data set whose first image cannot be read."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        load_config("nowhere.yaml", [])


def ended(entry) -> int:
    with pytest.raises(SystemExit) as caught:
        main(entry)
    return caught.value.code


def test_a_users_mistake_is_one_line_and_status_2(capsys) -> None:
    assert ended(lambda: load_config("nowhere.yaml", [])) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: nowhere.yaml: cannot read") and error.count("\n") == 1


def test_a_mistake_found_in_a_loading_process_is_the_same_line(capsys) -> None:
    assert ended(lambda: next(iter(DataLoader(Broken(), num_workers=1)))) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: nowhere.yaml: cannot read") and error.count("\n") == 1


def test_a_fault_of_a_library_call_keeps_its_traceback() -> None:
    with pytest.raises(ValueError, match="kernel"):
        main(lambda: torch.nn.Conv2d(1, 1, 1, padding_mode="kernel"))


def test_an_interrupt_ends_with_status_130(capsys) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert ended(interrupted) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


def test_a_termination_ends_with_status_143(capsys) -> None:
    assert ended(lambda: os.kill(os.getpid(), signal.SIGTERM)) == 143
    assert capsys.readouterr().err == "\ninterrupted\n"


def test_a_disk_that_fails_is_one_line_that_names_the_file(tmp_path: Path, capsys) -> None:
    def full(file: BinaryIO) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "result.json"
    assert ended(lambda: atomic_write(path, full)) == 1
    told = f"stopped: {path}: cannot be written (No space left on device); make room there\n"
    assert capsys.readouterr().err == told and not list(tmp_path.iterdir())


def test_progress_prints_means_since_the_last_line() -> None:
    stream = io.StringIO()
    progress = Progress(5, 2, stream=stream)
    for done in range(1, 6):
        progress.step(done, {"main": torch.tensor(float(done)), "plain": 1.0}, lr=2e-4)
    lines = stream.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["1/5", "2/5", "4/5", "5/5"]
    assert "main 3.5000  plain 1.0000  lr 2.00e-04" in lines[2]
    assert lines[3].endswith("ETA 0:00:00")


def test_a_terminals_line_rewrites_itself() -> None:
    stream = io.StringIO()
    stream.isatty = lambda: True
    progress = Progress(2, 1, stream=stream)
    progress.step(1, {"main": 1.0}, lr=1.0)
    progress.step(2, {"main": math.pi}, lr=1.0)
    progress.note("done")
    assert stream.getvalue().count("\r") == 2
    assert stream.getvalue().endswith("\ndone\n")


def test_an_inactive_progress_says_nothing(capsys) -> None:
    progress = Progress(1, 1, active=False)
    progress.step(1, {"main": 1.0}, lr=1.0)
    progress.note("done")
    assert capsys.readouterr().out == ""


def test_clock() -> None:
    assert clock(3 * 3600 + 61.4) == "3:01:01"


def says(script: str, *options: str, **environment: str) -> str:
    """What a script prints to stderr behind a command line of `options`."""
    head = "from util.runtime.cli import Parser, Progress, timed\nParser('text').parse_args()\n"
    words = [sys.executable, "-c", head + script, *options]
    done = subprocess.run(
        words, cwd=Path(__file__).parent.parent, env={**os.environ, **environment},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout + done.stderr


LIBRARY = "import logging, warnings; warnings.warn('old'); logging.getLogger('lib')"


def test_libraries_warn_with_v_only() -> None:
    for option in ((), ("-v",)):
        assert ("UserWarning: old" in says(f"{LIBRARY}.warning('odd')", *option)) == bool(option)
        assert ("lib: odd" in says(f"{LIBRARY}.warning('odd')", *option)) == bool(option)
        assert "grave" in says(f"{LIBRARY}.error('grave')", *option)
    assert "UserWarning: old" in says(LIBRARY, PYTHONWARNINGS="default")


def test_times_of_the_parts_are_told_with_v_on_the_main_rank_only() -> None:
    script = "with timed('model'): pass"
    assert says(script) == "" == says(script, "-v", RANK="1")
    assert says(script, "-v") == "amformer: model: 0.0 s\n"
    silenced = f"from mmcv.utils import get_logger; get_logger('mmcv')\n{script}"
    assert says(silenced, "-v").endswith("amformer: model: 0.0 s\n")


def test_the_line_says_with_v_how_long_batches_took() -> None:
    script = """
import time
def batches():
    time.sleep(0.3)
    yield 1
progress = Progress(1, 1)
for batch in progress.waiting(batches()):
    time.sleep(0.1)
    progress.step(batch, {}, 1.0)"""
    assert says(script).rstrip().endswith("ETA 0:00:00")
    share = says(script, "-v").rstrip().rpartition("  batches ")[2]
    assert share.endswith("%") and 50 < int(share[:-1]) < 100
