"""Checkpoint files: complete or absent; a wrong one is refused in one line."""

import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.processes import on_processes
from torch import nn

from util.checkpoint import file as checkpoint_file
from util.checkpoint.file import (
    load_state_dict_strictly,
    read_checkpoint,
    read_checkpoint_once,
    write_checkpoint,
)
from util.checkpoint.origin import training_of_stages
from util.runtime.distributed import Ranks
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


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (torch.full((3,), torch.nan), "bias: values that are not finite"),
        (torch.tensor([1.0, torch.inf, 0.0]), "bias: values that are not finite"),
        (torch.ones(3, dtype=torch.int64), "bias holds numbers of another kind (torch.int64)"),
        (torch.ones(3, dtype=torch.complex64), "bias holds numbers of another kind (torch.complex"),
        (torch.ones(3).to(torch.float8_e4m3fn), "bias holds numbers of another kind (torch.float8"),
        (torch.full((3,), 1e300, dtype=torch.float64), "bias: values that are not finite"),
        (torch.ones(3, dtype=torch.bool), "bias holds numbers of another kind (torch.bool)"),
    ],
)
def test_weights_that_give_no_scores_are_refused_and_nothing_is_loaded(
    values: torch.Tensor, said: str
) -> None:
    module = nn.Linear(2, 3)
    before = module.weight.clone()
    message = refused(
        load_state_dict_strictly, module, {"weight": torch.ones(3, 2), "bias": values}, "a.pth"
    )
    assert message.startswith(f"a.pth: {said}") and torch.equal(module.weight, before)


def test_real_numbers_where_a_counter_belongs_are_refused() -> None:
    module = nn.BatchNorm1d(2)
    state = module.state_dict() | {"num_batches_tracked": torch.tensor(0.5)}
    assert "num_batches_tracked holds numbers of another" in refused(
        load_state_dict_strictly, module, state, "a.pth"
    )


@pytest.mark.parametrize("kind", ["half", "double", "bfloat16"])
def test_real_numbers_of_any_precision_are_loaded(kind: str) -> None:
    module, other = nn.Linear(2, 3), getattr(nn.Linear(2, 3), kind)()
    load_state_dict_strictly(module, other.state_dict(), "best.pth")
    assert torch.equal(module.weight, other.weight.float())


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.eye(3).to_sparse(), "sparse"),
        (torch.eye(3).to_sparse_csr(), "sparse"),
        (torch.empty(3, device="meta"), "meta"),
        (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested"),
        (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "quantized"),
    ],
)
def test_tensor_that_is_no_plain_array_is_named(
    tensor: torch.Tensor, kind: str, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "a.pth", model={"fine": torch.ones(1)}, more=[{"odd": tensor}])
    told = refused(read_checkpoint, tmp_path / "a.pth")
    assert f"a.pth: more.0.odd is a {kind} tensor; save" in told


def test_pipe_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "best.pth")
    assert "best.pth: is a pipe or a device" in refused(read_checkpoint, tmp_path / "best.pth")


def test_hash_is_of_the_bytes_that_were_loaded_whatever_happens_to_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "best.pth"
    write_checkpoint(path, step=1)
    first = hashlib.sha256(path.read_bytes()).hexdigest()
    parse = checkpoint_file.parse_weights

    def replaced(content: bytes, path: Path) -> object:
        write_checkpoint(path, step=2)  # a training that goes on
        return parse(content, path)

    monkeypatch.setattr(checkpoint_file, "parse_weights", replaced)
    assert read_checkpoint_once(path) == ({"step": 1}, first)


def read_on_rank(ranks: Ranks) -> tuple[dict, str]:
    path = Path(os.environ["CHECKPOINT_OF_THE_TEST"])
    if not ranks.is_main:
        path = path.with_name("of_another_rank.pth")
    return read_checkpoint_once(path)


def test_all_ranks_load_what_rank_0_has_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "best.pth", step=1, weight=torch.arange(5))
    monkeypatch.setenv("CHECKPOINT_OF_THE_TEST", str(tmp_path / "best.pth"))
    (first, hash_1), (second, hash_2) = on_processes(2, read_on_rank, tmp_path)
    assert first["step"] == second["step"] == 1 and hash_1 == hash_2
    assert torch.equal(first["weight"], second["weight"])


def test_random_generators_continue_from_their_saved_state(tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float, float]:
        return torch.rand(1).item(), np.random.rand(), random.random(), random.gauss(0, 1)

    draw()
    write_checkpoint(tmp_path / "last.pth", random=random_state())
    expected = draw()
    draw()
    set_random_state(read_checkpoint(tmp_path / "last.pth")["random"])
    assert draw() == expected


def test_variance_below_zero_is_refused(tmp_path: Path) -> None:
    norm = nn.BatchNorm2d(3)
    state = norm.state_dict() | {"running_var": torch.tensor([1.0, -1.0, 1.0])}
    what = refused(load_state_dict_strictly, norm, state, tmp_path / "x.pth")
    assert "running_var holds a variance below 0" in what
    assert (norm.running_var == 1).all()


@pytest.mark.parametrize("record", [5, ["config"], "text"])
def test_record_of_training_that_is_no_record_is_refused(record: object, tmp_path: Path) -> None:
    what = refused(training_of_stages, {"base_learner": record}, tmp_path / "x.pth")
    assert "is no record" in what
