"""What breaks while samples are loaded, at hour 9 say: tried again, then `Data.broken` decides.

`stop` ends the run with one line; `skip` takes another sample in its place, a function of its
number alone, says so on stderr and counts. Validation and test always stop: their scores would be
of other episodes.
"""

import multiprocessing
import re
import signal
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from util.config import Config
from util.data.batches import Batches, FixedBatches
from util.data.image_io import Unreadable
from util.runtime.distributed import Ranks, all_reduce_sum
from util.runtime.errors import RunStopped
from util.runtime.log import log
from util.runtime.stop import guard_worker

STRIDE = 10**9  # from a sample to the one in its place: beyond what any run counts to
CHAIN = 10  # samples in each other's place before the run stops all the same
DEATHS = 2  # workers that one batch may cost
T = TypeVar("T")


class Skipping:
    """Makes samples, in the place of those that cannot be read another one.

    Args:
        skip: False lets what cannot be read stop the run.
    """

    def __init__(self, skip: bool):
        self.skip, self._skipped = skip, multiprocessing.Value("q", 0)

    @property
    def skipped(self) -> int:
        """How many were, over all worker processes."""
        return self._skipped.get_obj().value  # a worker that was killed may hold the lock

    def count(self, samples: int, text: str) -> None:
        """Counts and says what was skipped."""
        with self._skipped.get_lock():
            self._skipped.value += samples
            log.warning(f"{text}; skipped, {self._skipped.value} so far")

    def __call__(self, make: Callable[[int], T], index: int) -> T:
        """What `make` gives for a sample, or for the one in its place.

        Raises:
            Unreadable: nothing may be skipped, or a whole chain cannot be read.
        """
        for place in range(index, index + CHAIN * STRIDE, STRIDE):
            try:
                return make(place)
            except Unreadable as error:
                if not self.skip:
                    raise
                self.count(1, f"sample {index}: {error}")
        raise Unreadable(
            f"sample {index}: {CHAIN} in a row cannot be read; is the disk of Data.data_root there?"
        )


def skipped(dataset: Any, ranks: Ranks) -> int:
    """How many samples of a data set all ranks have skipped; every rank has to ask."""
    count = torch.tensor(dataset.skipping.skipped, device=ranks.device)
    return int(all_reduce_sum(count))


def loaded(
    dataset: Dataset, schedule: Batches | FixedBatches, cfg: Config, **options: Any
) -> Iterator[Any]:
    """One batch an iteration of the run; a worker process that dies costs time only.

    Its batch is loaded again, by new workers. One that ends them again and again stops the run, or
    with `Data.broken: skip` another takes its place.

    Args:
        dataset: has a `skipping`.
        schedule: lists of sample numbers.
        cfg: the whole config.
        **options: of the DataLoader.

    Raises:
        RunStopped: the same batch has cost `DEATHS` workers.
    """
    done, deaths, replaced = 0, 0, set()

    def rest() -> Iterator[list[int]]:
        for number, indices in enumerate(islice(schedule, done, None), done):
            yield [i + STRIDE for i in indices] if number in replaced else indices

    while True:
        try:
            for batch in _told_when_asked(_loader(dataset, rest(), cfg.workers, options)):
                yield batch
                done, deaths = done + 1, 0
            return
        except RuntimeError as error:
            what = _death(error)
        deaths, iteration = deaths + 1, schedule.start + done
        if deaths < DEATHS:
            log.warning(f"iteration {iteration}: {what}; starting other workers")
            continue
        if not dataset.skipping.skip:
            raise RunStopped(
                f"iteration {iteration}: its batch has ended {DEATHS} workers ({what}); look at the"
                " memory of this machine, or set Data.workers=0 to see the fault itself"
            )
        [indices] = islice(schedule, done, done + 1)
        dataset.skipping.count(len(indices), f"iteration {iteration}: {what}")
        replaced.add(done)
        deaths = 0


def _loader(
    dataset: Dataset, batches: Iterator[list[int]], workers: int, options: dict[str, Any]
) -> DataLoader:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        generator=torch.Generator(),  # a resumed run must not draw a seed from the global one
        worker_init_fn=guard_worker,
        **options,
    )


def _death(error: RuntimeError) -> str:
    """What PyTorch says of a worker that has died; raises any other error again."""
    if not re.search(r"DataLoader worker \(pid", str(error)):
        raise error
    return " ".join(str(error).partition("\n")[0].split())


def _told_when_asked(loader: DataLoader) -> Iterator[Any]:
    """The loader's iterator, which says that a worker has died when the next batch is asked for.

    PyTorch's own handler of SIGCHLD would say so at any time, in the midst of a step.
    """
    old = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, old)
    return batches
