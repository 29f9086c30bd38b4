"""Which samples make a batch."""

from collections.abc import Iterator

from util.runtime.distributed import Ranks
from util.runtime.errors import UserError


class Batches:
    """The batch sampler of one rank: which samples it takes at each iteration of the run.

    An epoch is a pass over the samples, without the rest that fills no batch (as published); the
    samples are numbered through over all epochs. The ranks share a batch, evenly up to one sample.

    Args:
        samples: number of samples of one pass.
        batch_size: samples of a step over all ranks.
        epochs: passes.
        ranks: this process.
        limit: iterations of the run in place of `epochs`, if not 0.

    Attributes:
        start: iterations already done; a resumed run sets it.
        per_epoch: iterations of an epoch.
        total: iterations of the run; the sampler yields `total - start` lists of sample numbers.

    Raises:
        UserError: the batch is larger than a pass or smaller than the number of ranks.
    """

    def __init__(
        self, samples: int, batch_size: int, epochs: int, ranks: Ranks, limit: int = 0
    ) -> None:
        if batch_size > samples:
            raise UserError(f"batch_size {batch_size}: the list has {samples} images; make it less")
        if batch_size < ranks.world:
            raise UserError(f"batch_size {batch_size}: {ranks.world} ranks share it; make it more")
        self.samples, self.batch_size, self.ranks, self.start = samples, batch_size, ranks, 0
        self.per_epoch = samples // batch_size
        self.total = limit or epochs * self.per_epoch

    def __len__(self) -> int:
        return self.total - self.start

    def ends_epoch(self, done: int, period: int) -> bool:
        """Whether `done` iterations are all, or a multiple of `period` whole epochs."""
        return done == self.total or done % (period * self.per_epoch) == 0

    def __iter__(self) -> Iterator[list[int]]:
        rank, world = self.ranks.rank, self.ranks.world
        begin, end = (self.batch_size * part // world for part in (rank, rank + 1))
        for iteration in range(self.start, self.total):
            epoch, step = divmod(iteration, self.per_epoch)
            first = epoch * self.samples + step * self.batch_size
            yield list(range(first + begin, first + end))


class FixedBatches:
    """These batches of sample numbers, as a schedule that is at its start."""

    start = 0

    def __init__(self, batches: list[list[int]]):
        self.batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)
