"""Collective operations: two processes compute what one process would."""

import time
from pathlib import Path

import pytest
import torch
from helpers.processes import on_processes
from torch import nn

from util.runtime import distributed
from util.runtime.errors import UserError


def network() -> nn.Module:
    """Two layers, a parameter that no loss reaches, and one that only rank 1's loss reaches."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    module.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
    module.sometimes = nn.Parameter(torch.ones(2, dtype=torch.float64))
    return module


def loss_of(module: nn.Module, images: torch.Tensor, whole: bool) -> torch.Tensor:
    loss = module(images).square().mean()
    return loss + module.sometimes.sum() if whole else loss


def collective_steps(ranks: distributed.Ranks) -> dict:
    module = network()
    if not ranks.is_main:
        nn.init.zeros_(module[0].weight)
    distributed.broadcast_parameters(module)
    images = torch.arange(24, dtype=torch.float64).view(8, 3) / 24
    loss_of(module, images[ranks.rank * 4 :][:4], ranks.rank == 1).backward()
    distributed.reduce_gradients(module.parameters())
    with distributed.main_first(ranks):
        time.sleep(0.2 if ranks.is_main else 0)
        passed = time.monotonic()
    return {
        "passed": distributed.gather(passed),
        "gradients": {name: value.grad for name, value in module.named_parameters()},
        "sum": distributed.all_reduce_sum(torch.tensor([1, ranks.rank])),
        "mean": distributed.mean_over_ranks(torch.tensor(ranks.rank), ranks).item(),
        "gathered": distributed.gather({"rank": ranks.rank}),
        "ranks": (ranks.rank, ranks.world, ranks.is_main),
    }


def test_collective_operations_on_two_processes_equal_one_process(tmp_path: Path) -> None:
    first, second = on_processes(2, collective_steps, tmp_path)
    module = network()
    images = torch.arange(24, dtype=torch.float64).view(8, 3) / 24
    halves = [loss_of(module, images[:4], False), loss_of(module, images[4:], True)]
    (sum(halves) / 2).backward()
    for got in (first, second):
        for name, parameter in module.named_parameters():
            if parameter.grad is None:
                assert got["gradients"][name] is None and name == "unused"
            else:
                torch.testing.assert_close(
                    got["gradients"][name], parameter.grad, rtol=1e-12, atol=1e-12
                )
        assert got["passed"][0] < got["passed"][1]
        assert got["sum"].tolist() == [2, 1] and got["mean"] == 0.5
        assert got["gathered"] == [{"rank": 0}, {"rank": 1}]
    assert (first["ranks"], second["ranks"]) == ((0, 2, True), (1, 2, False))


def test_one_process_needs_no_process_group() -> None:
    ranks = distributed.init(0)
    assert (ranks.rank, ranks.world, ranks.is_main) == (0, 1, True)
    module = network()
    loss_of(module, torch.ones(1, 3, dtype=torch.float64), False).backward()
    before = module[0].weight.grad.clone()
    distributed.reduce_gradients(module.parameters())
    assert torch.equal(module[0].weight.grad, before)
    assert distributed.mean_over_ranks(torch.tensor(3.0), ranks).item() == 3.0


def test_more_gpus_than_the_machine_has_are_refused() -> None:
    with pytest.raises(ValueError, match="GPUS 64: this machine has"):
        distributed.init(64)


@pytest.mark.parametrize(
    ("left", "said"),
    [
        ({"RANK": "1"}, "RANK=1 and WORLD_SIZE=1 are set, but no launcher"),
        ({"WORLD_SIZE": "4"}, "RANK=0 and WORLD_SIZE=4 are set, but no launcher"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 and WORLD_SIZE=2 are set, but no launcher"),
        ({"RANK": "two"}, "RANK=two in the environment is no rank; unset it"),
    ],
)
def test_environment_of_a_launcher_that_is_gone_is_one_line(
    left: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said) as refusal:
        distributed.init(0)
    assert "\n" not in str(refusal.value)
