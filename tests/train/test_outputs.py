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
from contextlib import suppress
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.entries import call
from helpers.runs import CONFIG, make_data

import train as train_entry
from util.checkpoint.file import read_checkpoint
from util.runtime import log as log_file
from util.train.run import LOG, SOURCE

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


def full_pipe() -> tuple[int, int]:
    """Return the ends of a pipe that takes nothing more."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    with suppress(BlockingIOError):
        while True:
            os.write(write, bytes(1 << 12))
    os.set_blocking(write, True)
    return read, write


def test_run_whose_output_nobody_reads_goes_on_and_a_stop_request_saves_it(
    words: list[str], tmp_path: Path
) -> None:
    read, write = full_pipe()
    process = subprocess.Popen(
        [*TRAIN, *words, f"Train.save_path={tmp_path}", "Train.max_iterations=5000"],
        cwd=ROOT, stdout=write, stderr=write,
    )  # fmt: skip
    try:
        log = tmp_path / LOG
        wait_for(lambda: log.exists() and "INFO 2/5000" in log.read_text(), process)
        process.terminate()
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.wait()
        os.close(read)
        os.close(write)
    done = read_checkpoint(tmp_path / "last.pth")["iteration"]
    assert f"stopped at iteration {done}; resume with" in log.read_text()


def test_lines_without_a_reader_are_in_the_log_file_and_counted_when_he_is_back(
    console: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = full_pipe()
    error, shown = os.pipe()
    monkeypatch.setattr(log_file, "PATIENCE", 0.1)
    with os.fdopen(write, "w") as stdout, os.fdopen(shown, "w") as stderr:
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(sys, "stderr", stderr)
        log_file.add_log_file(tmp_path / "log.txt")
        for number in range(3):
            log_file.log.info("line %d", number)
        os.read(read, 1 << 20)
        log_file.log.info("line 3")
        monkeypatch.undo()
        assert os.read(read, 1 << 20) == b"line 3\n"
        told = "3 lines are only in the log file: nobody read the output"
        assert os.read(error, 1 << 20).decode() == f"warning: {told}\n"
    os.close(read)
    os.close(error)
    text = (tmp_path / "log.txt").read_text()
    assert [f"line {number}" in text for number in range(4)] == [True] * 4


@pytest.mark.parametrize("character", ["x", "\U0001f600"])
def test_line_that_is_longer_than_a_pipe_blocks_nothing(
    character: str, console: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = os.pipe()
    monkeypatch.setattr(log_file, "PATIENCE", 0.1)
    line = 100_000 * character
    with os.fdopen(write, "w", encoding="ascii", errors="backslashreplace") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        log_file.add_log_file(tmp_path / "log.txt")
        log_file.log.info(line)  # returns, although nobody reads
        monkeypatch.undo()
        assert 4096 <= len(os.read(read, 1 << 20)) <= 1 << 16
    os.close(read)
    assert line in (tmp_path / "log.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [LOG, SOURCE, "config.yaml"])
def test_pipe_in_the_folder_of_a_run_is_refused_in_one_line(
    name: str, words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    os.mkfifo(tmp_path / name)
    assert call(train_entry.train, *words, f"Train.save_path={tmp_path}") == 2
    assert f"error: {tmp_path / name}: is a pipe; delete it" in capfd.readouterr().err
    assert not list(tmp_path.glob("*.pth"))


def test_run_under_nohup_ignores_the_closed_terminal(words: list[str], tmp_path: Path) -> None:
    command = ["nohup", *TRAIN, *words, f"Train.save_path={tmp_path}"]
    with open(tmp_path / "out", "w") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, stdin=out)
        log = tmp_path / LOG
        wait_for(lambda: log.exists() and "INFO 1/3" in log.read_text(), process)
        process.send_signal(1)
        assert process.wait(120) == 0
    assert read_checkpoint(tmp_path / "last.pth")["iteration"] == 3
