"""Start units as soon as there is room, and say how each has ended."""

import time
from collections.abc import Sequence

from util.runtime.log import log
from util.runtime.progress import clock
from util.runtime.stop import Stop
from util.sweep.plan import Run, Unit
from util.sweep.pools import Pool


class Schedule:
    """Works on base learners and runs until all have ended, or `stop` is requested.

    `finished` are the runs that are complete, now or from the start; `failed` what has failed.
    """

    def __init__(self, runs: Sequence[Run], pool: Pool, stop: Stop) -> None:
        """Find out what there is to do; raise `UserError` if a folder holds another run."""
        for unit in (*{run.base for run in runs}, *runs):
            unit.check()
        self.finished = {run for run in runs if run.is_finished()}
        self.failed: list[Unit] = []
        self._pool, self._stop, self._begin = pool, stop, time.monotonic()
        left = [run for run in runs if run not in self.finished]
        bases = dict.fromkeys(run.base for run in left if not run.base.is_finished())
        self._waiting: list[Unit] = [*bases, *left]
        self._total, self._running = len(self._waiting), dict[Unit, float]()
        todo = f"{len(left)} to do; base learners to train first: {len(bases)}"
        log.info(f"{len(runs)} runs: {len(self.finished)} are finished, {todo}")

    def run(self) -> None:
        """Work until all has ended."""
        stopping = False
        while self._running or self._waiting and not stopping:
            if self._stop.requested and not stopping:
                stopping = True
                self._pool.stop()
            if not stopping:
                self._start()
            time.sleep(self._pool.period)
            for unit in self._pool.ended():
                self._end(unit, stopping)

    def _start(self) -> None:
        for unit in list(self._waiting):
            base = unit.base if isinstance(unit, Run) else None
            if base in self.failed:
                self._waiting.remove(unit)
                self.failed.append(unit)
            elif self._pool.free() and base not in self._waiting and base not in self._running:
                self._waiting.remove(unit)
                self._running[unit] = time.monotonic()
                log.info(f"{unit.name}: {self._pool.start(unit)}")

    def _end(self, unit: Unit, stopping: bool) -> None:
        """Say how a unit has ended, and how long the rest may take."""
        taken = clock(time.monotonic() - self._running.pop(unit))
        if unit.is_finished():
            if isinstance(unit, Run):
                self.finished.add(unit)
            left = len(self._waiting) + len(self._running)
            ended = self._total - left
            seconds = (time.monotonic() - self._begin) / ended * left
            rest = f"{ended} of {self._total} done" + (
                f", about {clock(seconds)} to go" * bool(left)
            )
            log.info(f"{unit.name}: {unit.summary()}, {taken}; {rest}")
        elif stopping:
            log.info(f"{unit.name}: stopped")
        else:
            self.failed.append(unit)
            log.warning(f"{unit.name}: failed after {taken}: {unit.last_line()} ({unit.log})")
