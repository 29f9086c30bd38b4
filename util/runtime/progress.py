"""Progress of long work, shown by tqdm: a bar on a terminal, plain lines elsewhere."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, SupportsFloat, TypeVar

from tqdm import tqdm

from util.runtime.log import FILE_ONLY, log

_Batch = TypeVar("_Batch")

tqdm.monitor_interval = 0  # no extra thread: loader workers are forked from this process


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Log with `-v` how long a block took, by the host's clock; also works as a decorator."""
    begin = time.monotonic()
    yield
    log.debug("%s: %.1f s", what, time.monotonic() - begin)


def clock(seconds: float) -> str:
    """Seconds as [h:]mm:ss."""
    return tqdm.format_interval(seconds)


class _Bar(tqdm):
    """A bar that a line of the log does not bring out before its `delay`: tqdm would not end it."""

    def refresh(self, *args: Any, **options: Any) -> None:
        now = time.time()
        if now >= self.start_t + (self.delay or 0):
            self.last_print_t = now
            super().refresh(*args, **options)


def bar(total: int, text: str) -> tqdm:
    """A bar on stderr that counts files; elsewhere than on a terminal, a line every 10 seconds."""
    period, delay = (0.1, 0.0) if sys.stderr.isatty() else (10.0, 10.0)
    return _Bar(total=total, desc=text, unit="file", mininterval=period, delay=delay)


class Progress:
    """Iterations of a run: mean losses since the last line, learning rate, speed, time to go.

    On a terminal a bar on stdout shows them; elsewhere a line is logged every `period` iterations,
    and after the first and the last one of `total`. A log file gets the lines in both cases. After
    a resume, `start` iterations are done already. Ranks that are not `active` show nothing.
    """

    def __init__(self, total: int, period: int, start: int = 0, active: bool = True) -> None:
        self.total, self.period, self.start, self.active = total, period, start, active
        self.on_terminal = active and sys.stdout.isatty()
        self.bar = tqdm(
            total=total, initial=start, unit="it", dynamic_ncols=True, file=sys.stdout,
            disable=not self.on_terminal,
        )  # fmt: skip
        # Name -> [sum, count]. Sums stay tensors, so that nothing waits for the device.
        self.sums: dict[str, list] = {}
        self.waited: float | None = None  # seconds since the last line that batches took
        self.last_done = start
        self.begin = self.last_time = time.monotonic()

    def waiting(self, batches: Iterable[_Batch]) -> Iterator[_Batch]:
        """Pass on batches; with `-v` the line shows which part of the time they took to arrive.

        That is reading and the frozen encoder, by the host's clock: a GPU may still be at work.
        """
        self.waited = 0.0 if log.isEnabledFor(logging.DEBUG) else None
        source, begin = iter(batches), time.monotonic()
        for batch in source:
            if self.waited is not None:
                self.waited += time.monotonic() - begin
            yield batch
            begin = time.monotonic()

    def step(self, done: int, losses: Mapping[str, SupportsFloat], lr: float | None = None) -> None:
        """Record that `done` iterations are finished, the last one with these (detached) losses."""
        if not self.active:
            return
        for name, value in losses.items():
            entry = self.sums.setdefault(name, [0.0, 0])
            entry[0] = entry[0] + value
            entry[1] += 1
        if done % self.period and done not in (self.start + 1, self.total):
            return
        now = time.monotonic()
        taken = max(now - self.last_time, 1e-9)
        parts = [f"{name} {float(sum_) / count:.4f}" for name, (sum_, count) in self.sums.items()]
        parts += [] if lr is None else [f"lr {lr:.2e}"]
        if self.waited is not None:
            parts.append(f"batches {self.waited / taken:.0%}")
            self.waited = 0.0
        self.sums.clear()
        self.bar.set_postfix_str("  ".join(parts), refresh=False)
        self.bar.update(done - self.last_done)
        pace = (done - self.last_done) / taken
        to_go = (self.total - done) * (now - self.begin) / (done - self.start)
        line = [f"{done}/{self.total}", *parts, f"{pace:.2f} it/s", f"ETA {clock(to_go)}"]
        self.last_done, self.last_time = done, now
        log.info("  ".join(line), extra=FILE_ONLY if self.on_terminal else None)

    def close(self) -> None:
        """End the bar."""
        self.bar.close()
