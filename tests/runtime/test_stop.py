"""Stop signals to a run and to its launcher: the first one asks, a second one kills."""

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

BUSY = """
import time
from util.runtime.stop import Stop
with Stop() as stop:
    print("waits", flush=True)
    time.sleep(3)  # like a long call of PyTorch
    print(stop.requested)
"""


@pytest.fixture
def run() -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signal_that_arrives_several_times_within_a_second_counts_once(
    number: signal.Signals, run: subprocess.Popen
) -> None:
    for _ in range(3):
        run.send_signal(number)
        time.sleep(0.1)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 0 and out == "True\n"
    assert err.count(f"{number.name}: finishing this iteration") == 1


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_second_signal_a_second_later_ends_the_run_at_once(
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
def test_launcher_forwards_first_signals_as_stop_requests(
    numbers: list[signal.Signals], handlers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`sleep` plays a rank: the forwarded signal ends it."""
    signals = launch._Signals()
    with subprocess.Popen(["sleep", "60"]) as rank:
        monkeypatch.setattr(launch, "children", lambda _: [rank.pid])
        for number in numbers:
            os.kill(os.getpid(), number)
        assert rank.wait(60) == -ASK
    assert signals.last == numbers[-1]
