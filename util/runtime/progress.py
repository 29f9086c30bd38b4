"""Progress of long work."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO, TypeVar

if TYPE_CHECKING:
    import torch

_log = logging.getLogger("amformer")


_Batch = TypeVar("_Batch")


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Says with `-v` how long a part of the run took, by the host's clock; decorates, too."""
    begin = time.monotonic()
    yield
    _log.info("%s: %.1f s", what, time.monotonic() - begin)


class Progress:
    """One line: iteration, mean losses since the last line, learning rate, speed, time to go.

    On a terminal the line rewrites itself; elsewhere it is a new line every `period` iterations.
    Only the main rank should get an active one.

    Args:
        total: iterations of the whole run.
        period: iterations between two lines (the first and the last iteration print too).
        start: iterations already done, after a resume.
        active: False says nothing (the other ranks).
        stream: where the line goes; standard output when None.
    """

    def __init__(
        self,
        total: int,
        period: int,
        start: int = 0,
        active: bool = True,
        stream: TextIO | None = None,
    ) -> None:
        self.total, self.period, self.start, self.active = total, period, start, active
        self.stream = stream or sys.stdout
        self.rewrite = self.stream.isatty()
        self.width = 0  # of the unfinished line on the terminal
        self.sums: dict[str, list] = {}  # name -> [sum, count]; tensors, not to wait for the device
        self.begin = self.last_time = time.monotonic()
        self.last_done = start
        self.waited: float | None = None  # seconds since the last line, for batches

    def waiting(self, batches: Iterable[_Batch]) -> Iterator[_Batch]:
        """Passes on batches; with `-v` the line says which part of the time they took to come.

        That is reading, and the frozen encoder, by the host's clock: a GPU may still be at work.
        """
        self.waited = 0.0 if _log.isEnabledFor(logging.INFO) else None
        source = iter(batches)
        while True:
            begin = time.monotonic()
            try:
                batch = next(source)
            except StopIteration:
                return
            if self.waited is not None:
                self.waited += time.monotonic() - begin
            yield batch

    def step(
        self, done: int, losses: Mapping[str, float | torch.Tensor], lr: float | None = None
    ) -> None:
        """Says that `done` iterations of the run are finished, the last one with these losses."""
        if not self.active:
            return
        for name, value in losses.items():
            entry = self.sums.setdefault(name, [0.0, 0])
            entry[0] = entry[0] + (value.detach() if hasattr(value, "detach") else value)
            entry[1] += 1
        if done % self.period and done not in (self.start + 1, self.total):
            return
        now = time.monotonic()
        taken = max(now - self.last_time, 1e-9)
        speed = (done - self.last_done) / taken
        to_go = (self.total - done) * (now - self.begin) / (done - self.start)
        self.last_done, self.last_time = done, now
        means = [f"{name} {float(sum_) / count:.4f}" for name, (sum_, count) in self.sums.items()]
        self.sums.clear()
        rate = [] if lr is None else [f"lr {lr:.2e}"]
        pace = [f"{speed:.2f} it/s  ETA {clock(to_go)}"]
        if self.waited is not None:
            pace.append(f"batches {self.waited / taken:.0%}")
            self.waited = 0.0
        self._write("  ".join([f"{done}/{self.total}", *means, *rate, *pace]))

    def note(self, text: str) -> None:
        """Prints a line of its own, such as a validation's scores."""
        if self.active:
            self.close()
            print(text, file=self.stream, flush=True)

    def close(self) -> None:
        """Ends the unfinished line of a terminal."""
        if self.width:
            print(file=self.stream, flush=True)
            self.width = 0

    def _write(self, line: str) -> None:
        if self.rewrite:
            print("\r" + line.ljust(self.width), end="", file=self.stream, flush=True)
            self.width = len(line)
        else:
            print(line, file=self.stream, flush=True)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"
