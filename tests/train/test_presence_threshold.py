"""Validations calibrate a threshold of presence; checkpoints hold it, also after a resume."""

from pathlib import Path

import numpy as np
import pytest
from helpers.entries import call
from helpers.runs import StopAt, make_data, same

import test as test_entry
import train as train_entry
from util.checkpoint.file import read_checkpoint, write_checkpoint
from util.evaluate.presence import calibrate


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    words = make_data(tmp_path_factory.mktemp("data"))
    more = ["Data.workers=0", "Train.seed_deterministic=true", "Eval.absent=0.5"]
    return [*words, *more, "Eval.val_episodes=4"]


@pytest.fixture(scope="module")
def whole(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert call(train_entry.train, *words, f"Train.save_path={folder}") == 0
    return folder


def test_threshold_is_that_of_the_validation_and_the_run_is_that_without_it(
    words: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def recorded(present: np.ndarray, absent: np.ndarray) -> float:
        assert (len(present), len(absent)) == (4, 2)
        made.append(calibrate(present, absent))
        return made[-1]

    monkeypatch.setattr(train_entry, "calibrate", recorded)
    assert call(train_entry.train, *words, f"Train.save_path={tmp_path}/a") == 0
    assert len(made) == 2
    states = [read_checkpoint(tmp_path / f"a/{name}.pth") for name in ("best", "last")]
    assert states[1]["presence_threshold"] == made[1]
    assert states[0]["presence_threshold"] == made[states[0]["iteration"] > 5]
    assert call(train_entry.train, *words, f"Train.save_path={tmp_path}/b", "Eval.absent=0") == 0
    other = read_checkpoint(tmp_path / "b/last.pth")
    assert "presence_threshold" not in other
    for state in (states[1], other):
        state.pop("presence_threshold", None)
    write_checkpoint(tmp_path / "1.pth", **states[1])
    write_checkpoint(tmp_path / "2.pth", **other)
    same(tmp_path / "1.pth", tmp_path / "2.pth")


def test_run_stopped_after_a_validation_keeps_its_threshold(
    words: list[str], whole: Path, tmp_path: Path
) -> None:
    words = [*words, f"Train.save_path={tmp_path}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_entry, "Stop", StopAt(5 + 7))  # in iteration 6, after a validation
        assert call(train_entry.train, *words) == 0
    stopped = read_checkpoint(tmp_path / "last.pth")
    assert stopped["iteration"] == 6 and isinstance(stopped["presence_threshold"], float)
    assert call(train_entry.train, *words, "Train.resume=auto") == 0
    same(tmp_path / "last.pth", whole / "last.pth")
    same(tmp_path / "best.pth", whole / "best.pth")


def test_test_uses_the_threshold_of_the_checkpoint(
    words: list[str], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    more = ["Eval.episodes=4", "Eval.seeds=[1]", f"Train.save_path={tmp_path}"]
    weight = f"Eval.weight={whole}/best.pth"
    assert call(test_entry.test, *words, *more, weight) == 0
    threshold = read_checkpoint(whole / "best.pth")["presence_threshold"]
    out = capsys.readouterr().out
    assert f"threshold {threshold:.3f}, of the checkpoint" in out
    state = read_checkpoint(whole / "best.pth")
    del state["presence_threshold"]
    write_checkpoint(tmp_path / "other.pth", **state)
    assert call(test_entry.test, *words, *more, f"Eval.weight={tmp_path}/other.pth") == 0
    assert "calibrated on these episodes, so too good" in capsys.readouterr().out
