"""The progress of a run: a bar on a terminal, lines elsewhere."""

import io
import logging
import math
import sys
import time
from collections.abc import Iterator

import pytest
import torch

from util.runtime.log import configure, log
from util.runtime.progress import Progress, bar, clock


@pytest.fixture(autouse=True)
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """The messages of the log."""
    old, log.propagate = log.propagate, True
    with caplog.at_level(logging.INFO, logger=log.name):
        yield caplog
    log.propagate = old


def test_line_shows_the_mean_since_the_last_line(lines: pytest.LogCaptureFixture) -> None:
    progress = Progress(5, 2)
    for done in range(1, 6):
        progress.step(done, {"main": torch.tensor(float(done)), "plain": 1.0}, lr=2e-4)
    assert [line.split()[0] for line in lines.messages] == ["1/5", "2/5", "4/5", "5/5"]
    assert "main 3.5000  plain 1.0000  lr 2.00e-04" in lines.messages[2]
    assert lines.messages[3].endswith("ETA 00:00")


def test_terminal_gets_one_bar_and_the_console_no_lines(
    monkeypatch: pytest.MonkeyPatch, lines: pytest.LogCaptureFixture
) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdout", terminal)
    progress = Progress(2, 1)
    progress.step(1, {"main": 1.0}, lr=1.0)
    progress.step(2, {"main": math.pi}, lr=1.0)
    progress.close()
    assert "main 3.1416" in terminal.getvalue() and "2/2" in terminal.getvalue()
    assert "\n" not in terminal.getvalue().rstrip("\n")
    assert all(record.file_only for record in lines.records)  # type: ignore[attr-defined]


def test_resumed_run_counts_its_own_iterations_only(lines: pytest.LogCaptureFixture) -> None:
    progress = Progress(20, 10, start=18)
    time.sleep(0.2)
    progress.step(19, {})
    assert lines.messages[0].startswith("19/20  ") and lines.messages[0].endswith("ETA 00:00")


def test_inactive_progress_shows_nothing(lines: pytest.LogCaptureFixture) -> None:
    Progress(1, 1, active=False).step(1, {"main": 1.0}, lr=1.0)
    assert not lines.messages


def test_verbose_line_shows_the_share_of_time_that_batches_took(
    lines: pytest.LogCaptureFixture,
) -> None:
    def batches() -> Iterator[int]:
        time.sleep(0.3)
        yield 1

    with lines.at_level(logging.DEBUG, logger=log.name):
        progress = Progress(1, 1)
        for batch in progress.waiting(batches()):
            time.sleep(0.1)
            progress.step(batch, {}, 1.0)
    share = lines.messages[0].partition("  batches ")[2].partition("%")[0]
    assert 50 < int(share) < 100


def test_clock_shows_hours_only_if_there_are_any() -> None:
    assert (clock(61.4), clock(3 * 3600 + 61.4)) == ("01:01", "3:01:01")


@pytest.mark.parametrize("seconds", [3.0, 30.0])
def test_line_of_the_log_never_shares_its_line_with_a_bar(
    seconds: float, capsys: pytest.CaptureFixture
) -> None:
    """Elsewhere than on a terminal, where a bar waits for ten seconds before it is drawn."""
    configure()
    with bar(5, "looking") as progress:
        progress.start_t -= seconds
        progress.last_print_t -= seconds
        progress.update()
        log.warning("the first is torn")
    log.error("stopped")
    shown = [line.rsplit("\r", 1)[-1] for line in capsys.readouterr().err.split("\n")]
    assert [line for line in shown if "torn" in line or "stopped" in line] == [
        "warning: the first is torn",
        "error: stopped",
    ]
    assert any("looking:  20%" in line for line in shown) == (seconds > 10)
