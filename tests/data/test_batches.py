"""Which samples each rank takes at each iteration."""

import pytest
import torch

from util.data.batches import Batches
from util.runtime import distributed


def rank_of(rank: int, world: int) -> distributed.Ranks:
    return distributed.Ranks(rank, world, torch.device("cpu"))


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ranks_together_take_the_batches_of_one_process(world: int) -> None:
    alone = list(Batches(10, 4, 3, rank_of(0, 1)))
    shares = zip(*(Batches(10, 4, 3, rank_of(r, world)) for r in range(world)), strict=True)
    assert [sum(share, []) for share in shares] == alone
    assert alone[:3] == [[0, 1, 2, 3], [4, 5, 6, 7], [10, 11, 12, 13]]


def test_resumed_run_takes_the_remaining_batches() -> None:
    whole = Batches(10, 4, 3, rank_of(1, 2))
    rest = Batches(10, 4, 3, rank_of(1, 2), limit=5)
    rest.start = 3
    assert (whole.total, whole.per_epoch, rest.total, len(rest)) == (6, 2, 5, 2)
    assert list(rest) == list(whole)[3:5]


def test_batch_larger_than_the_list_or_smaller_than_the_ranks_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size 11: the list has 10 images"):
        Batches(10, 11, 1, rank_of(0, 1))
    with pytest.raises(ValueError, match="batch_size 2: 3 ranks share it"):
        Batches(10, 2, 1, rank_of(0, 3))
