"""Signals to a run and to its launcher: which of them is a second one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from helpers.runs import ROOT

from util.runtime import launch
from util.runtime.stop import APART, ASK, STOP_SIGNALS

DEAF = """
import time
from util.runtime.stop import Stop
with Stop() as stop:
    print("waits", flush=True)
    time.sleep(3)  # as a long call of PyTorch
    print(stop.requested)
"""


@pytest.fixture
def run() -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        [sys.executable, "-c", DEAF], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_that_comes_twice_at_once_is_one(
    number: signal.Signals, run: subprocess.Popen
) -> None:
    for _ in range(3):
        run.send_signal(number)
        time.sleep(0.1)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 0 and out == "True\n"
    assert err.count(f"{number.name}: this iteration is finished") == 1


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_second_signal_ends_the_run_at_once(
    number: signal.Signals, run: subprocess.Popen
) -> None:
    run.send_signal(number)
    time.sleep(APART + 0.1)
    begin = time.monotonic()
    run.send_signal(number)
    assert run.wait(60) == 128 + number
    assert time.monotonic() - begin < 1


@pytest.fixture
def handlers() -> Iterator[None]:
    old = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, ASK)}
    yield
    for number, handler in old.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    "numbers", [[ASK], [ASK, ASK], [signal.SIGTERM, signal.SIGTERM], [signal.SIGINT, ASK]]
)
def test_the_launcher_passes_requests_on(
    numbers: list[signal.Signals], handlers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here `sleep` stands for a rank, and ends of what it gets."""
    asked = launch._Signals()
    with subprocess.Popen(["sleep", "60"]) as rank:
        monkeypatch.setattr(launch, "_children", lambda: [rank.pid])
        for number in numbers:
            os.kill(os.getpid(), number)
        assert rank.wait(60) == -ASK
    assert asked.came == numbers[-1]
