"""Faults in the middle of a run: damaged images, numbers that are not finite."""

import os
import re
import signal
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.entries import call
from helpers.runs import CONFIG, at_work, make_data, same, start
from torch import Tensor

import train as train_entry
import train_base as base_entry
from util.checkpoint.file import read_checkpoint, write_checkpoint
from util.config import load_config
from util.data.base_images import open_base_images
from util.data.dataset import open_episodes
from util.runtime.errors import RunStopped
from util.train import base_learner
from util.train.adversarial import AdversarialTrainer


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*make_data(tmp_path_factory.mktemp("data")), "Data.workers=0", "Train.val_period=9"]


# --- runs ---------------------------------------------------------------------------------------


@pytest.fixture
def damaged(words: list[str]) -> Iterator[SimpleNamespace]:
    """Damage an image that episode `first` (2 to 7) is the first to use; restore it at the end."""
    cfg = load_config(CONFIG, words)
    episodes, _ = open_episodes(cfg, "train", cfg.Train.seed)
    first: dict[str, int] = {}
    for plan in map(episodes.sampler.plan, range(8)):
        for name in (plan.query, *plan.supports):
            first.setdefault(name, plan.index)
    name = max(first, key=first.get)
    assert first[name] >= 2
    path = episodes.source.image_path(name)
    content = path.read_bytes()
    path.write_bytes(content[:100])
    yield SimpleNamespace(path=path, first=first[name], restore=lambda: path.write_bytes(content))
    path.write_bytes(content)


def test_damaged_image_stops_the_run_which_resumes_without_a_loss(
    words: list[str], damaged: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    stopped, whole = (f"Train.save_path={tmp_path}/{name}" for name in ("stopped", "whole"))
    assert call(train_entry.train, *words, stopped) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {damaged.path}: cannot be read as an image: ")
    assert error.endswith("; replace it with a whole copy, or leave it out\n")
    assert read_checkpoint(tmp_path / "stopped/last.pth")["iteration"] == damaged.first
    damaged.restore()
    assert call(train_entry.train, *words, stopped, "Train.resume=auto") == 0
    assert call(train_entry.train, *words, whole) == 0
    same(tmp_path / "stopped/last.pth", tmp_path / "whole/last.pth")


def test_damaged_image_is_skipped_alike_with_any_number_of_workers(
    words: list[str], damaged: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for workers in (0, 2):
        more = f"Train.save_path={tmp_path}/{workers}", f"Data.workers={workers}"
        assert call(train_entry.train, *words, *more, "Data.broken=skip") == 0
        output = capsys.readouterr()
        assert "episodes that could not be read were skipped" in output.out
    same(tmp_path / "0/last.pth", tmp_path / "2/last.pth")


def test_feature_store_and_stage_one_skip_a_damaged_image_too(
    words: list[str], damaged: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    more = f"Train.save_path={tmp_path}/run", "Data.augment=false", "Train.feature_store=true"
    assert call(train_entry.train, *words, *more, "Data.broken=skip") == 0
    assert str(damaged.path) in capsys.readouterr().err
    base = "Base.epochs=1", "Base.batch_size=4", "Base.augment=true"
    base += (f"Method.pre_weight={tmp_path}/base.pth",)
    assert call(base_entry.train_base, *words, *base, "Data.broken=skip") == 0
    output = capsys.readouterr()
    assert str(damaged.path) in output.err and (tmp_path / "base.pth").exists()
    assert "images that could not be read were skipped" in output.out


# --- stage one ----------------------------------------------------------------------------------


@pytest.fixture
def stage_one(words: list[str], tmp_path: Path) -> Callable[..., int]:
    """Return a function that runs stage one for four iterations and returns its exit status."""
    more = "Base.max_iterations=4", "Base.augment=true", "Base.batch_size=2"

    def run(name: str, *options: str) -> int:
        path = f"Method.pre_weight={tmp_path}/{name}.pth"
        return call(base_entry.train_base, *words, *more, path, *options)

    return run


def assert_resumes(stage_one: Callable[..., int], folder: Path) -> None:
    """Assert that a stage one that failed after two iterations resumes without a loss."""
    assert read_checkpoint(folder / "base/last.pth")["iteration"] == 2
    assert not (folder / "base.pth").exists()
    assert stage_one("base", "Train.resume=auto") == 0
    assert stage_one("whole") == 0
    same(folder / "base.pth", folder / "whole.pth")


def test_damaged_image_stops_stage_one_which_resumes_without_a_loss(
    words: list[str], stage_one: Callable[..., int], tmp_path: Path
) -> None:
    cfg = load_config(CONFIG, words)
    images, _ = open_base_images(
        cfg, "train", base_learner.transform(cfg, train=True), cfg.Base.seed
    )
    path = images.source.image_path(images.name(4))
    content = path.read_bytes()
    path.write_bytes(content[:100])
    try:
        assert stage_one("base") == 2
    finally:
        path.write_bytes(content)
    assert_resumes(stage_one, tmp_path)


def test_nonfinite_loss_stops_stage_one_which_resumes_without_a_loss(
    stage_one: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failed forward pass changes neither batch norm statistics nor random states."""
    seen: list[Tensor] = []
    whole = base_learner.loss_of

    def poisoned(*given: object) -> tuple[Tensor, Tensor]:
        loss, areas = whole(*given)
        seen.append(loss)
        return loss * (torch.nan if len(seen) == 3 else 1), areas

    monkeypatch.setattr(base_learner, "loss_of", poisoned)
    assert stage_one("base") == 1
    assert_resumes(stage_one, tmp_path)


# --- numbers ------------------------------------------------------------------------------------


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """Make the gradients of iteration 4 not finite; returns a list of its losses."""
    seen: list[dict[str, Tensor]] = []
    step, grad = AdversarialTrainer.step, torch.autograd.grad

    def spoiled(*given: object) -> tuple[Tensor, ...]:
        first, *rest = grad(*given)
        return first * torch.nan, *rest

    def watched(
        trainer: AdversarialTrainer, batch: object, iteration: int, in_epoch: int
    ) -> object:
        bad = iteration == 4 and not seen
        monkeypatch.setattr(torch.autograd, "grad", spoiled if bad else grad)
        try:
            return step(trainer, batch, iteration, in_epoch)
        except RunStopped as error:
            seen.append(error.losses)
            raise

    monkeypatch.setattr(AdversarialTrainer, "step", watched)
    return seen


def test_nonfinite_step_is_dumped_and_replayed_to_the_bit(
    words: list[str], tmp_path: Path, poisoned: list, capsys: pytest.CaptureFixture
) -> None:
    run = f"Train.save_path={tmp_path}"
    assert call(train_entry.train, *words, run) == 1
    error, path = capsys.readouterr().err, tmp_path / "nonfinite_4_0.pth"
    assert error.startswith("stopped: iteration 4: ") and error.count("\n") == 1
    assert error.endswith(f"python train.py --replay {path}\n")
    assert read_checkpoint(tmp_path / "last.pth")["iteration"] == 4

    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    assert call(train_entry.train, "--replay", str(path), config=False) == 0
    output = capsys.readouterr().out
    for name, value in poisoned[0].items():
        assert f"  {name} {value.item():.9g}\n" in output, output
    assert "first module whose output is not finite: none" in output
    assert "weights: finite" in output and "every gradient is finite here" in output
    assert before == {p: p.read_bytes() for p in tmp_path.iterdir()}

    assert call(train_entry.train, *words, run, "Train.resume=auto") == 0  # the step is finite now
    capsys.readouterr()
    assert call(train_entry.train, "--replay", str(path), "Train.lr=1", config=False) == 2
    assert "another config: Train.lr" in capsys.readouterr().err
    assert call(train_entry.train, "--replay", str(tmp_path / "last.pth"), config=False) == 2
    assert "holds no step" in capsys.readouterr().err


@pytest.fixture
def nan(words: list[str], tmp_path: Path) -> str:
    """The override that uses a base learner whose outputs are not finite."""
    [base] = [word.partition("=")[2] for word in words if word.startswith("Method.pre_weight")]
    state = read_checkpoint(base)
    state["state_dict"]["cls.4.weight"][:] = 3e38  # finite, as weights must be
    write_checkpoint(tmp_path / "nan.pth", **state)
    return f"Method.pre_weight={tmp_path}/nan.pth"


def test_replay_names_the_first_module_whose_output_is_not_finite(
    words: list[str], nan: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert call(train_entry.train, *words, nan, f"Train.save_path={tmp_path}/run") == 1
    path = tmp_path / "run/nonfinite_0_0.pth"
    assert str(path) in capsys.readouterr().err
    assert call(train_entry.train, "--replay", str(path), config=False) == 1
    output = capsys.readouterr()
    assert "weights: finite\n" in output.out
    assert "first module whose output is not finite: encoder.base.classifier (finite" in output.out
    assert "  main nan\n" in output.out and output.err.startswith(
        "stopped: not finite again: iteration 0"
    )


# --- ends of runs with workers ------------------------------------------------------------------


def ended(process: BaseProcess, log: Path, seconds: float = 120) -> tuple[int, str]:
    """Wait for a run to end with all its workers; return its status and its error line."""
    process.join(seconds)
    left = at_work(process)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    output = log.read_text()
    assert not left, output
    [line] = re.findall(r"^(?:error|stopped): .*", output, re.M)
    assert "Traceback" not in output and output.endswith(line + "\n")
    return process.exitcode, line


def test_damaged_image_ends_a_run_and_its_workers(
    words: list[str], damaged: SimpleNamespace, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    process = start([*words, f"Train.save_path={tmp_path}/run", "Data.workers=2"], log)
    status, line = ended(process, log)
    assert status == 2 and str(damaged.path) in line
    assert read_checkpoint(tmp_path / "run/last.pth")["iteration"] == damaged.first


def test_nonfinite_step_ends_a_run_and_its_workers(
    words: list[str], nan: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    process = start([*words, nan, f"Train.save_path={tmp_path}/run", "Data.workers=2"], log)
    status, line = ended(process, log)
    assert status == 1 and line.endswith("nonfinite_0_0.pth")
