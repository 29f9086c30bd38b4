"""A run survives the loss of its terminal or of what it prints to."""

import fcntl
import os
import pty
import shlex
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.runs import CONFIG, make_data

from util.checkpoint.file import read_checkpoint
from util.train.run import LOG

TRAIN = [sys.executable, "train.py", "--config", str(CONFIG), "--gpus", "0"]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*make_data(tmp_path_factory.mktemp("data")), "Train.max_iterations=3"]


@pytest.mark.parametrize(
    ("redirection", "said"),
    [
        pytest.param(">/dev/full 2>&1", "stderr cannot be written (No space left", id="both full"),
        pytest.param("<&- >&- 2>&-", "checkpoints in", id="none"),
    ],
)
def test_run_goes_on_whatever_becomes_of_its_output(
    redirection: str, said: str, words: list[str], tmp_path: Path
) -> None:
    command = shlex.join([*TRAIN, *words, f"Train.save_path={tmp_path}"])
    status = subprocess.run(["sh", "-c", f"exec {command} {redirection}"], cwd=ROOT).returncode
    assert status == 0 and read_checkpoint(tmp_path / "last.pth")["iteration"] == 3
    text = (tmp_path / LOG).read_text()
    assert text.count(said) == 1 and "INFO 3/3" in text and "Traceback" not in text


def wait_for(done: Callable[[], bool], process: subprocess.Popen) -> None:
    end = time.monotonic() + 120
    while not done():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)


def test_closed_terminal_ends_the_iteration_and_the_run_is_saved(
    words: list[str], tmp_path: Path
) -> None:
    main, terminal = pty.openpty()
    process = subprocess.Popen(
        [*TRAIN, *words, f"Train.save_path={tmp_path}", "Train.max_iterations=5000"],
        cwd=ROOT, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(terminal)
    os.set_blocking(main, False)

    def goes() -> bool:
        try:
            os.read(main, 1 << 20)  # a full terminal would make the run wait
        except BlockingIOError:
            pass
        return (tmp_path / LOG).exists() and "INFO 2/5000" in (tmp_path / LOG).read_text()

    wait_for(goes, process)
    os.close(main)
    assert process.wait(120) == 0
    done = read_checkpoint(tmp_path / "last.pth")["iteration"]
    assert f"stopped at iteration {done}; resume with" in (tmp_path / LOG).read_text()


def test_run_under_nohup_ignores_the_closed_terminal(words: list[str], tmp_path: Path) -> None:
    command = ["nohup", *TRAIN, *words, f"Train.save_path={tmp_path}"]
    with open(tmp_path / "out", "w") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, stdin=out)
        log = tmp_path / LOG
        wait_for(lambda: log.exists() and "INFO 1/3" in log.read_text(), process)
        process.send_signal(1)
        assert process.wait(120) == 0
    assert read_checkpoint(tmp_path / "last.pth")["iteration"] == 3
