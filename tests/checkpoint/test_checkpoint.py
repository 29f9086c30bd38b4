"""Checkpoint files: complete or absent; a wrong one is refused in one line."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from util.checkpoint.file import load_state_dict_strictly, read_checkpoint, write_checkpoint
from util.runtime.errors import UserError
from util.runtime.rng import random_state, set_random_state


def refused(call: Callable[..., object], *args: object) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new/folder/last.pth"
    write_checkpoint(
        path, model=nn.Linear(2, 3).state_dict(), step=7, config={"Train": {"lr": 1.0}}
    )
    state = read_checkpoint(path)
    assert state["step"] == 7 and state["config"] == {"Train": {"lr": 1.0}}
    assert state["model"]["weight"].shape == (3, 2)
    assert [file.name for file in path.parent.iterdir()] == ["last.pth"]


def test_failing_write_leaves_the_old_file_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    write_checkpoint(path, step=1)
    with pytest.raises(Exception, match="pickle"):
        write_checkpoint(path, step=2, bad=lambda: None)
    assert read_checkpoint(path) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.pth"]


def test_missing_file_is_refused(tmp_path: Path) -> None:
    message = refused(read_checkpoint, tmp_path / "best.pth")
    assert "best.pth: no such checkpoint" in message


@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.99])
def test_torn_file_is_refused(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "last.pth"
    write_checkpoint(path, weight=torch.rand(100, 100))
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    assert "last.pth: torn, or not a PyTorch checkpoint" in refused(read_checkpoint, path)


def test_file_that_is_no_checkpoint_is_refused_and_runs_no_code(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("no checkpoint at all")
    assert "not a PyTorch checkpoint" in refused(read_checkpoint, tmp_path / "text.pth")
    torch.save({"module": nn.Linear(1, 1)}, tmp_path / "module.pth")
    told = refused(read_checkpoint, tmp_path / "module.pth")
    assert "holds a Python object besides weights (torch.nn.modules.linear.Linear)" in told
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    assert "holds a Tensor" in refused(read_checkpoint, tmp_path / "tensor.pth")


def test_weights_of_another_architecture_are_refused_and_nothing_is_loaded() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4), nn.Linear(4, 5))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    other = nn.Sequential(nn.Linear(2, 7)).state_dict() | {"extra": torch.zeros(1)}
    message = refused(load_state_dict_strictly, module, other, "best.pth")
    assert message.startswith("best.pth: a checkpoint of another architecture")
    assert "4 missing (1.weight, 1.bias, 2.weight, ...)" in message
    assert "1 surplus (extra)" in message
    assert "2 of another shape (0.weight [7, 2] for [3, 2], 0.bias [7] for [3])" in message
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_weights_of_the_same_architecture_are_loaded() -> None:
    module, other = nn.Linear(2, 3), nn.Linear(2, 3)
    load_state_dict_strictly(module, other.state_dict(), "best.pth")
    assert torch.equal(module.weight, other.weight)


def test_random_generators_continue_from_their_saved_state(tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float, float]:
        return torch.rand(1).item(), np.random.rand(), random.random(), random.gauss(0, 1)

    draw()
    write_checkpoint(tmp_path / "last.pth", random=random_state())
    expected = draw()
    draw()
    set_random_state(read_checkpoint(tmp_path / "last.pth")["random"])
    assert draw() == expected
