"""Several ranks take the training step that one rank would take."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.processes import on_processes
from torch import Tensor, nn

from model import AMFormer
from util.config import Config
from util.data.batches import Batches
from util.data.dataset import EpisodeBatch
from util.features import encode
from util.runtime.distributed import Ranks
from util.train.adversarial import AdversarialTrainer, choose_parts

GLOBAL_BATCH, SIZE = 5, 65
ONE = Ranks(0, 1, torch.device("cpu"))


def config() -> Config:
    cfg = Config()
    return replace(cfg, Train=replace(cfg.Train, batch_size=GLOBAL_BATCH, lr=1e-3))


def model() -> AMFormer:
    """Build a small model in float64, without dropout: only the sharing of the batch can differ."""
    torch.manual_seed(0)
    net = AMFormer("timm/resnet18", 15, 1).double()
    for module in net.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            module.p = 0.0
    return net


def batch(rows: list[int]) -> EpisodeBatch:
    """Return rows of one fixed global batch; the number of 255s differs from row to row."""
    rng = torch.Generator().manual_seed(1)
    shape = (GLOBAL_BATCH, SIZE, SIZE)
    mask = (torch.rand(shape, generator=rng) < 0.4).long()
    for row in range(GLOBAL_BATCH):
        mask[row, : 5 * row] = 255
    images = torch.randn(2, GLOBAL_BATCH, 3, SIZE, SIZE, generator=rng).double()
    return EpisodeBatch(
        query=images[0][rows],
        query_mask=mask[rows],
        query_base_mask=(mask * (torch.arange(GLOBAL_BATCH) + 1)[:, None, None]).clamp(max=255)[
            rows
        ],
        support=images[1][rows][:, None],
        support_mask=mask.roll(1, 0)[rows][:, None],
        class_index=torch.arange(GLOBAL_BATCH)[rows],
        plans=[f"row {row}" for row in rows],
    )


def four_steps(ranks: Ranks) -> dict[str, Tensor]:
    """Return the parameters after two steps of G and two of D on the same batch."""
    net = model()
    trainer = AdversarialTrainer(net, config(), 10, ranks)
    rows = [i % GLOBAL_BATCH for i in next(iter(Batches(GLOBAL_BATCH, GLOBAL_BATCH, 1, ranks)))]
    mine = encode(net.encoder, batch(rows))
    for iteration in range(4):
        trainer.step(mine, iteration, in_epoch=iteration)
    return {name: value.detach() for name, value in net.named_parameters()}


SLOW = pytest.mark.slow


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=SLOW), pytest.param(4, marks=SLOW)])
def test_training_step_is_the_same_on_any_number_of_ranks(world: int, tmp_path: Path) -> None:
    """The batch of 5 does not divide evenly."""
    alone, start = four_steps(ONE), dict(model().named_parameters())
    changed = 0
    for rank in on_processes(world, four_steps, tmp_path):
        for name, value in alone.items():
            torch.testing.assert_close(rank[name], value, rtol=1e-9, atol=1e-9)
            changed += not torch.equal(value, start[name])
    assert changed > 100


def test_part_maps_of_the_diversity_loss_are_a_function_of_seed_and_iteration() -> None:
    first = choose_parts(3, 7)
    assert torch.equal(first, choose_parts(3, 7)) and not torch.equal(first, choose_parts(3, 8))
    assert first.shape == (3, 2, 9)
    assert all(len(set(row.tolist())) == 9 and row.max() < 14 for row in first.flatten(0, 1))
