"""Fault-tolerant loading: unreadable samples and dying workers stop the run or are skipped.

`Data.broken` decides. With `skip` another sample is used instead; it depends only on the number of
the sample, and each case is logged and counted. Validation and test always stop: their scores would
be those of other episodes.
"""

import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from multiprocessing.queues import Queue
from typing import Any, NoReturn, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from util.data.batches import Batches, FixedBatches
from util.data.image_io import UnreadableFile
from util.runtime import distributed
from util.runtime.distributed import Ranks, all_reduce_sum
from util.runtime.errors import RunStopped, UserError
from util.runtime.log import log
from util.runtime.stop import guard_worker, stop_requested, unchanged_child_handler
from util.runtime.system import small_shared_memory

REPLACEMENT_STRIDE = 10**9
"""From a sample's number to that of its replacement; no run has so many samples."""

MAX_ATTEMPTS = 10
"""Samples that are tried, the first one and its replacements, before the run stops."""

MAX_WORKER_DEATHS = 2
"""Workers that may die on one batch."""

SILENCE = 600.0
"""Seconds after which a batch that does not come ends the run."""

GRACE, GRACE_OF_RANKS = 3.0, 60.0
"""Seconds that a run that was asked to stop still waits for a batch: alone, and with other ranks.

Ranks can only stop together, after an iteration.
"""

Sample = TypeVar("Sample")
Made = TypeVar("Made")


class SkippingDataset(Dataset[Sample]):
    """An endless data set, indexed from 0; with `skip` it replaces samples that it cannot read.

    A subclass implements `make`.
    """

    def __init__(self, skip: bool) -> None:
        self.skip, self._skipped = skip, multiprocessing.Value("q", 0)

    def make(self, index: int) -> Sample:
        """Return sample `index` >= 0.

        Raises `UnreadableFile` if a file of it is missing or damaged.
        """
        raise NotImplementedError

    def __getitem__(self, index: int) -> Sample:
        """Return sample `index` >= 0, or its replacement."""
        return self.first_readable(self.make, index)

    def first_readable(self, make: Callable[[int], Made], index: int) -> Made:
        """Return `make(index)`; if it cannot be read and may be skipped, that of a replacement.

        Raises `UnreadableFile` if skipping is not allowed, or no replacement can be read either.
        """
        for attempt in range(MAX_ATTEMPTS):
            try:
                return make(index + attempt * REPLACEMENT_STRIDE)
            except UnreadableFile as error:
                if not self.skip:
                    raise
                self.count_skipped(1, f"sample {index}: {error}")
        what = f"sample {index}: it and {MAX_ATTEMPTS - 1} replacements cannot be read"
        raise UnreadableFile(f"{what}; check that the disk of Data.data_root is mounted")

    def count_skipped(self, samples: int, reason: str) -> None:
        """Count and log skipped samples."""
        with self._skipped.get_lock():
            self._skipped.value += samples
            log.warning("%s; skipped, %d so far", reason, self._skipped.value)

    @property
    def skipped(self) -> int:
        """Samples that all worker processes of this rank have skipped."""
        return self._skipped.get_obj().value  # without the lock: a killed worker may hold it


def skipped_by_all_ranks(dataset: SkippingDataset, ranks: Ranks) -> int:
    """Return how many samples all ranks together have skipped; every rank has to call this."""
    return int(all_reduce_sum(torch.tensor(dataset.skipped, device=ranks.device)))


def load_batches(
    dataset: SkippingDataset, batches: Batches | FixedBatches, workers: int, **options: Any
) -> Iterator[Any]:
    """Yield one batch per iteration; `batches` yields the lists of sample numbers.

    They end early if the run is asked to stop while none comes. When a worker process dies, new
    workers load its batch again. If they die too, the run stops, or, with `Data.broken: skip`,
    another batch is used instead. Without `workers`, this process loads. `options` are those of the
    DataLoader, such as `collate_fn`.

    Raises:
        RunStopped: `MAX_WORKER_DEATHS` workers have died on the same batch, or none comes.
        UserError: raised by the data set, also in a worker; the message stays one line.
        OSError: raised by the data set; in a worker, it becomes such a `UserError`.
    """
    done, deaths, replaced = 0, 0, set[int]()

    def remaining() -> Iterator[list[int]]:
        for number, indices in enumerate(islice(batches, done, None), done):
            yield [i + REPLACEMENT_STRIDE for i in indices] if number in replaced else indices

    while True:
        try:
            for batch in _until_silent(_start(dataset, remaining(), workers, options)):
                yield batch
                done, deaths = done + 1, 0
            return
        except RuntimeError as error:
            death = _worker_death(error)
        except (UserError, OSError) as error:
            raise _without_traceback(error) from None
        deaths, iteration = deaths + 1, batches.start + done
        if deaths < MAX_WORKER_DEATHS:
            log.warning("iteration %d: %s; starting new workers", iteration, death)
            continue
        if not dataset.skip:
            what = f"iteration {iteration}: {deaths} workers died on its batch ({death})"
            raise RunStopped(f"{what}; {_memory_remedy()}")
        [indices] = islice(batches, done, done + 1)
        dataset.count_skipped(len(indices), f"iteration {iteration}: {death}")
        replaced.add(done)
        deaths = 0


def _start(
    dataset: Dataset, batches: Iterator[list[int]], workers: int, options: dict[str, Any]
) -> Iterator[Any]:
    """Return a loader's iterator, which reports a dead worker only when asked for a batch.

    PyTorch's own handler would raise at any time, also in the middle of a training step.
    """
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        timeout=1 if workers else 0,  # for `_until_silent`
        generator=torch.Generator(),  # a resumed run must not draw a seed from the global one
        worker_init_fn=_start_worker,
        **options,
    )
    with unchanged_child_handler():
        return iter(loader)


def _start_worker(number: int) -> None:
    guard_worker(number)
    # A worker that cannot hand over its batch would print a traceback, and go on without it.
    Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]


def _end_worker(error: Exception, _: object) -> NoReturn:
    print(f"a worker cannot hand over its batch: {error}", file=sys.stderr, flush=True)
    os._exit(1)


def _until_silent(batches: Iterator[Any]) -> Iterator[Any]:
    """Yield batches of a loader that times out; end if the run is asked to stop and none comes.

    Raises `RunStopped` if none comes at all, or if other ranks wait for this one.
    """
    while True:
        begin = time.monotonic()
        while True:
            try:
                batch = next(batches)
                break
            except StopIteration:
                return
            except RuntimeError as error:
                if not str(error).startswith("DataLoader timed out"):  # a worker's own may, too
                    raise
                if not _keeps_waiting(time.monotonic() - begin):
                    return
        yield batch


def _keeps_waiting(waited: float) -> bool:
    """Return whether to wait on for a batch, or raise `RunStopped` with the reason."""
    alone, stop = distributed.count() == 1, stop_requested()
    if stop and alone and waited >= GRACE:
        return False
    if waited >= (GRACE_OF_RANKS if stop else SILENCE):
        reason = f"no batch has come for {waited:.0f} s, and no loader worker has died"
        remedy = "look at the disk of Data.data_root, or set Data.workers=0 to see where it waits"
        raise RunStopped(f"{reason}; {remedy}")
    return True


def _memory_remedy() -> str:
    """Return what helps if a worker's batch does not fit into memory."""
    if size := small_shared_memory():
        what = f"give /dev/shm, where workers leave batches, more than {size / 1e6:.0f} MB"
        return f"{what} (docker run --shm-size=8g), or set Data.workers=0"
    return "check the memory of this machine, or set Data.workers=0 to see the error itself"


def _worker_death(error: RuntimeError) -> str:
    """Return PyTorch's message about a dead worker; raise any other error again."""
    if "shared memory" in str(error):  # in a worker, with a traceback
        what = "a batch does not fit into shared memory"
        raise RunStopped(f"{what}; {_memory_remedy()}") from None
    if not re.search(r"DataLoader worker \(pid", str(error)):
        raise error
    return " ".join(str(error).partition("\n")[0].split())


def _without_traceback(error: UserError | OSError) -> UserError | OSError:
    """Return the error without the traceback that PyTorch puts before a worker's message."""
    kind = type(error)
    text = str(error).rpartition(f"{kind.__name__}: ")[2].strip()
    if isinstance(error, UserError):
        return kind(text)
    if error.errno is not None:  # of this process: it still has its own parts
        return error
    return UserError(f"{text}; check the path and its permissions")
