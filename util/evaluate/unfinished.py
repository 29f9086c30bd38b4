"""A test that is not finished: what it has counted, in the folder of its run.

All counts are integers and add up, so each rank writes its own, and any number of ranks goes on.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch

from util.checkpoint import read_checkpoint, write_checkpoint
from util.evaluate.order import EvaluationOrder
from util.evaluate.tally import Tally
from util.runtime import Ranks, RunStopped, UserError, distributed
from util.runtime.log import log
from util.runtime.stop import started_by

FILES = "unfinished.*.pth"
PERIOD = 60.0  # seconds between two files of a rank: so much work a power failure costs


class Unfinished:
    """The counts of a test in the files `unfinished.RANK.pth` of a folder.

    `key` tells the test from others: only counts that were written with the same key are used.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], ranks: Ranks, tally: Tally) -> None:
        self.folder, self.key, self.ranks, self.tally = folder, dict(key), ranks, tally
        self.path = folder / f"unfinished.{ranks.rank}.pth"
        self._begin = self._saved_at = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time that the test has taken so far."""
        return time.monotonic() - self._begin

    def remaining(self, order: EvaluationOrder) -> EvaluationOrder:
        """Return what is left of the test, shared out anew; rank 0 gets the counts that are there.

        Every rank has to call this. Raises `OSError` if the files cannot be written.
        """
        if self.ranks.is_main:
            self._read()
        done = set(distributed.gather(sorted(self.tally.groups))[0])
        if done:
            log.info(f"goes on: {sum(len(order.every[n]) for n in done)} episodes are done")
        return order.share([n for n in range(len(order.every)) if n not in done])

    def _read(self) -> None:
        """Add up the counts of all files, and replace these by one file."""
        states = {}
        for path in sorted(self.folder.glob(FILES)):
            try:
                state = read_checkpoint(path)
            except UserError as error:
                log.info(f"not used: {error}")
                continue
            if state.get("key") == self.key:
                states[path] = state
            else:
                log.info(f"{path}: not used, because it is of another test")
        # The largest first: if a start was killed before it had removed the files that it had
        # added up, that sum holds all their groups.
        for state in sorted(states.values(), key=lambda state: -len(state["groups"])):
            if not self.tally.groups >= set(state["groups"]):
                self.tally.add(state)
                self._begin = min(self._begin, time.monotonic() - state["seconds"])
        if states:
            self._write()
        for path in states.keys() - {self.path}:
            path.unlink()

    def _write(self) -> None:
        state = self.tally.state()
        write_checkpoint(self.path, key=self.key, seconds=self.seconds, **state)
        self._saved_at = time.monotonic()

    def save_if_due(self) -> None:
        """Write this rank's counts every `PERIOD` seconds; a disk that fails costs a warning."""
        if time.monotonic() - self._saved_at < PERIOD:
            return
        try:
            self._write()
        except OSError as error:
            log.warning(f"{self.path}: cannot be written ({error.strerror}); the test goes on")
            self._saved_at = time.monotonic()

    def stop(self) -> NoReturn:
        """Write this rank's counts and raise `RunStopped`, which says how to go on."""
        self._write()
        rows = torch.tensor(len(self.tally.rows), device=self.ranks.device)
        done = int(distributed.all_reduce_sum(rows))
        what = f"{done} episodes are done; the same command goes on with the others"
        raise RunStopped(f"{what}: {started_by()}")

    def remove(self) -> None:
        """Remove the files of all ranks."""
        for path in self.folder.glob(FILES):
            path.unlink(missing_ok=True)
        for path in self.folder.glob(f".{FILES}.*.part"):  # half written, by killed processes
            path.unlink(missing_ok=True)
