"""A pool of processes: order, errors, kills and signals."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT

from util.runtime.errors import RunStopped, UserError
from util.runtime.parallel import on_all_cores, on_processes

ITEMS = range(200)


def square(number: int) -> int:
    return number**2


def reject(number: int) -> int:
    """Item 150 fails at once, the items before 100 later."""
    if number == 150:
        raise UserError("item 150")
    if number == 70:
        time.sleep(0.2)
        raise UserError("item 70")
    return number


def crash(number: int) -> None:
    if number == 33:
        os.kill(os.getpid(), signal.SIGKILL)


def divide(number: int) -> float:
    return 1 / (number - 40)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(workers: int) -> None:
    assert list(on_processes(square, ITEMS, workers)) == [n**2 for n in ITEMS]
    assert list(on_processes(square, [], workers)) == []


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_first_error_in_order_reaches_the_caller_unchanged(workers: int) -> None:
    with pytest.raises(UserError, match="^item 70$") as error:
        list(on_processes(reject, ITEMS, workers))
    assert type(error.value) is UserError
    with pytest.raises(ZeroDivisionError):  # a fault of ours keeps its type
        list(on_processes(divide, ITEMS, workers))


def test_killed_worker_stops_the_run_with_a_remedy() -> None:
    with pytest.raises(RunStopped, match="a worker process was killed, .*; buy memory$"):
        list(on_processes(crash, ITEMS, 2, remedy="buy memory"))


def test_caller_that_stops_early_does_not_wait_for_the_other_items(tmp_path: Path) -> None:
    def touch(number: int) -> int:
        (tmp_path / str(number)).touch()
        return number

    for number in on_processes(touch, range(5000), 2):
        if number == 3:
            break
    assert len(list(tmp_path.iterdir())) < 500


SCRIPT = """
import sys, time
from pathlib import Path
from util.runtime.cli import main
from util.runtime.parallel import on_processes

def work(number):
    Path(sys.argv[1], str(number)).touch()
    time.sleep(0.02)

main(lambda: list(on_processes(work, range(10_000), 2)))
"""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_signal_ends_the_workers_with_at_most_one_line(
    number: signal.Signals, status: int, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, tmp_path],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not any(tmp_path.iterdir()):
        time.sleep(0.01)
    if number == signal.SIGKILL:
        process.kill()  # the parent only
    else:
        os.killpg(process.pid, number)
    errors = process.communicate(timeout=60)[1]  # returns when the last worker closes its stderr
    assert process.returncode == status
    assert errors.split() == ([] if number == signal.SIGKILL else ["interrupted"])
    assert len(list(tmp_path.iterdir())) < 500


def test_progress_bar_counts_items(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(on_all_cores(square, range(40), "squaring")) == [n**2 for n in range(40)]
    assert not capsys.readouterr().out
