"""Batch samplers: which samples this rank takes at each iteration."""

from collections.abc import Iterator

from util.runtime.distributed import Ranks
from util.runtime.errors import UserError


class Batches:
    """The batch sampler of one rank over a whole run.

    An epoch is one pass over the samples; the last samples that do not fill a batch are dropped (as
    published). Sample numbers keep counting over all epochs. The ranks share each batch; their
    shares differ by one sample at most.

    A pass has `samples`, an iteration `batch_size` samples over all ranks. With `limit` above 0,
    the run has so many iterations instead of `epochs` passes. Raises `UserError` if the batch is
    larger than a pass or smaller than the number of ranks.

    Attributes:
        start: iterations already done; a resumed run sets it.
        per_epoch: iterations of an epoch.
        total: iterations of the run; the sampler yields `total - start` lists of sample numbers.
    """

    def __init__(
        self, samples: int, batch_size: int, epochs: int, ranks: Ranks, limit: int = 0
    ) -> None:
        if batch_size > samples:
            raise UserError(f"batch_size {batch_size}: the list has {samples} images; lower it")
        if batch_size < ranks.world:
            raise UserError(f"batch_size {batch_size}: {ranks.world} ranks share it; raise it")
        self.samples, self.batch_size, self.ranks, self.start = samples, batch_size, ranks, 0
        self.per_epoch = samples // batch_size
        self.total = limit or epochs * self.per_epoch

    def __len__(self) -> int:
        return self.total - self.start

    def ends_epoch(self, done: int, period: int) -> bool:
        """Whether `done` iterations are the whole run, or a multiple of `period` epochs."""
        return done == self.total or done % (period * self.per_epoch) == 0

    def is_middle(self, done: int) -> bool:
        """Whether `done` iterations end in the middle of an epoch, but not of the first one.

        As published, this is after iteration round(n / 2) of an epoch's n, counted from 0.
        """
        epoch, step = divmod(done, self.per_epoch)
        return epoch > 0 and step == round(self.per_epoch / 2) + 1

    def __iter__(self) -> Iterator[list[int]]:
        rank, world = self.ranks.rank, self.ranks.world
        begin, end = (self.batch_size * part // world for part in (rank, rank + 1))
        for iteration in range(self.start, self.total):
            epoch, step = divmod(iteration, self.per_epoch)
            first = epoch * self.samples + step * self.batch_size
            yield list(range(first + begin, first + end))


class FixedBatches:
    """A batch sampler that yields the given lists of sample numbers, from iteration 0."""

    start = 0

    def __init__(self, batches: list[list[int]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)
