"""The folder of a run: its checkpoints, what resumes from which, and one run at a time."""

import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from helpers.processes import FORKSERVER
from helpers.small_run import iteration, save, start_run, validate

from util.checkpoint import resume
from util.checkpoint.file import read_checkpoint, write_checkpoint
from util.runtime.errors import UserError
from util.runtime.system import hold, release
from util.train.stages import SystemRun

pytestmark = pytest.mark.usefixtures("console")


def test_early_stop_counts_whole_epochs_and_survives_a_resume(tmp_path: Path) -> None:
    """An epoch has five iterations; the validation in the middle of one never ends the run."""
    options = {"sub_epoch_val": True, "stop_interval": 1, "epochs": 4}
    run, _ = start_run(tmp_path, **options)
    validate(run, 5, 5.0)
    assert not run.exhausted()
    validate(run, 8, 4.0)
    assert not run.exhausted()
    run.close()
    resumed, notes = start_run(tmp_path, **options, resume="auto")
    assert resumed.done == 8 and resumed.best_epoch == 1 and "nothing left" not in notes[0]
    validate(resumed, 10, 4.0)
    assert resumed.exhausted() and resumed.stale == 1
    resumed.close()
    better, _ = start_run(tmp_path / "better", **options)
    validate(better, 5, 5.0)
    validate(better, 8, 6.0)  # the best is in the middle of epoch 2
    validate(better, 10, 4.0)
    assert not better.exhausted() and better.best_epoch == 2
    better.close()
    again, _ = start_run(tmp_path / "better", **options, resume="auto")
    assert again.best_epoch == 2
    again.close()


def test_run_keeps_its_last_previous_and_best_checkpoints(tmp_path: Path) -> None:
    run, notes = start_run(tmp_path)
    validate(run, 5, 5.0)
    save(run, 7)
    assert run.stale == 0  # it counts at validations
    validate(run, 10, 4.0)
    run.close()
    assert notes == [] and run.stale == 1
    names = {resume.LAST: 10, resume.PREVIOUS: 7, resume.BEST: 5}
    assert {name: iteration(tmp_path / name) for name in names} == names
    state = read_checkpoint(tmp_path / resume.LAST)
    wanted = {"model", "optimizer_g", "optimizer_d", "scalers", "iteration", "validated", "best"}
    wanted |= {"stale", "random", "config", "versions", "ranks", "images", "launch", "run"}
    wanted |= {"areas", "base_learner"}
    assert state.keys() == wanted
    best = read_checkpoint(tmp_path / resume.BEST)  # to be tested: nothing that only resuming needs
    assert best.keys() == wanted - {"optimizer_g", "optimizer_d", "scalers", "random"}
    with pytest.raises(UserError, match=r"holds weights only.*last\.pth is good: Train\.resume="):
        start_run(tmp_path, resume=str(tmp_path / resume.BEST))
    assert set(state["random"][0]) == {"torch", "cuda", "numpy", "python"}


@pytest.mark.parametrize("fault", ["torn", "foreign", "bit", "gone"])
def test_auto_passes_over_a_bad_file_and_names_it(fault: str, tmp_path: Path) -> None:
    run, _ = start_run(tmp_path)
    save(run, 1, 2, 3)
    last = tmp_path / resume.LAST
    content = bytearray(last.read_bytes())
    if fault == "torn":
        last.write_bytes(content[:-100])
    elif fault == "foreign":
        write_checkpoint(last, state_dict={})
    elif fault == "bit":
        content[content.index(run.trainer.state.numpy().tobytes()) + 5] ^= 1
        last.write_bytes(content)
    else:
        last.unlink()
    resumed, notes = start_run(tmp_path, resume="auto")
    assert resumed.done == 2
    assert f"resumed from {tmp_path}/last.previous.pth: 2 of 10" in notes[-1]
    reason = {"foreign": "holds weights only", "gone": ""}.get(fault, "torn")
    assert len(notes) == (1 if fault == "gone" else 2)
    assert fault == "gone" or notes[0].startswith(f"passed over: {last}: {reason}")
    if fault != "gone":
        hint = f"{reason}.*; {tmp_path}/last.previous.pth is good"
        with pytest.raises(UserError, match=hint):
            start_run(tmp_path, resume=str(last))


def test_auto_without_checkpoints_starts_from_scratch_and_says_so(tmp_path: Path) -> None:
    run, notes = start_run(tmp_path, resume="auto")
    assert run.done == 0 and notes == [f"nothing to resume in {tmp_path}: starts from scratch"]


def test_auto_with_only_bad_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / resume.LAST).write_bytes(b"PK torn")
    with pytest.raises(UserError, match="last.pth: torn.*none of .* is good") as refusal:
        start_run(tmp_path, resume="auto")
    assert "\n" not in str(refusal.value)
    assert (tmp_path / resume.LAST).read_bytes() == b"PK torn"


def test_resumed_run_names_the_keys_that_have_changed(tmp_path: Path) -> None:
    save(start_run(tmp_path)[0], 3)
    _, notes = start_run(tmp_path, resume="auto", lr=1e-3, print_freq=3)
    assert notes[1:] == ["changed since that checkpoint: config.Train.lr 0.0002 -> 0.001"]


def hold_until_told(folder: Path) -> None:
    assert not hold(folder, "run")
    (folder / "held").touch()
    time.sleep(60)


def test_second_run_in_a_folder_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    process = FORKSERVER.Process(target=hold_until_told, args=(tmp_path,))
    process.start()
    while not (tmp_path / "held").exists():
        assert process.is_alive()
    before = sorted(tmp_path.iterdir())
    where = f"process {process.pid} on {platform.node()}"
    with pytest.raises(UserError) as refusal:
        start_run(tmp_path)
    assert f"Train.save_path {tmp_path}: another run writes there ({where})" in str(refusal.value)
    assert sorted(tmp_path.iterdir()) == before
    process.kill()  # as memory that runs out does: the lock ends with the process
    process.join()
    start_run(tmp_path)
    release()
    assert not (tmp_path / ".run.lock").exists()


@pytest.mark.parametrize("asked", ["auto", "path"])
def test_checkpoint_of_another_fold_is_not_resumed_and_stays_as_it_is(
    asked: str, tmp_path: Path
) -> None:
    save(start_run(tmp_path, split=1)[0], 3)
    before = (tmp_path / resume.LAST).read_bytes()
    words = {"resume": str(tmp_path / resume.LAST) if asked == "path" else asked}
    with pytest.raises(UserError) as refusal:
        start_run(tmp_path, split=0, **words)
    assert "last.pth: it was trained on aeroplane, bicycle, bird" in str(refusal.value)
    assert "novel classes of this config" in str(refusal.value)
    assert (tmp_path / resume.LAST).read_bytes() == before


@pytest.mark.parametrize("novel", ["c", "d"])
def test_best_score_of_other_novel_classes_is_not_compared(
    novel: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Both folds train on a and b; the score of the other fold is higher."""

    def start(novel: str, **options: object) -> SystemRun:
        classes = {"data_set": "custom", "classes": tuple("abcd"), "base": ("a", "b")}
        return start_run(tmp_path, data=classes | {"novel": (novel,)}, **options)[0]

    first = start("c")
    validate(first, 5, 90.0)
    first.close()
    second = start(novel, resume="auto")
    is_same = novel == "c"
    assert second.done == 5 and second.best == (90.0 if is_same else -1.0) and second.stale == 0
    assert ("is not compared" in capsys.readouterr().out) != is_same
    validate(second, 10, 40.0)
    assert iteration(tmp_path / resume.BEST) == (5 if is_same else 10)
    second.close()


def test_restarted_rank_resumes_from_its_own_launch_and_nothing_older(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(start_run(tmp_path)[0], 3)  # an earlier run in the same folder
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "this")
    run, notes = start_run(tmp_path)
    assert run.done == 0 and "holds an earlier run" in notes[0]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert start_run(tmp_path)[0].done == 0
    save(run, 2)
    assert start_run(tmp_path)[0].done == 2


class Killed(BaseException):
    """Stands in for SIGKILL: nothing runs after it."""


def kill_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Raise `Killed` in place of the step-th change of a file from now on, and of later ones."""
    left = [step]

    def dying(change: Callable) -> Callable:
        def call(*args: object, **options: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return change(*args, **options)

        return call

    patch.setattr(os, "replace", dying(os.replace))
    patch.setattr(Path, "unlink", dying(Path.unlink))


@pytest.mark.parametrize("better", [False, True])
@pytest.mark.parametrize("step", range(6))
def test_run_killed_while_it_replaces_another_leaves_one_of_them_complete(
    step: int, better: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The earlier run has 9 iterations, the new one 1; `auto` never resumes a mixture of both."""
    early, _ = start_run(tmp_path)
    validate(early, 8, 50.0)
    save(early, 9)
    early.close()
    late, notes = start_run(tmp_path)
    assert notes == [f"{tmp_path} holds an earlier run, which this one replaces"]
    with monkeypatch.context() as patch, suppress(Killed):
        kill_at(step, patch)
        validate(late, 1, 5.0) if better else save(late, 1)
    late.close()
    run, _ = start_run(tmp_path, resume="auto")
    old = run.done == 9
    assert old == (step == 0) and run.done in (9, 1)
    weight = run.trainer.model.weight
    assert torch.equal(weight, (early if old else late).trainer.model.weight)
    assert run.best == (50.0 if old else 5.0 if better else -1.0)
    save(run, 3, 4)
    run.close()
    names = [resume.LAST, resume.PREVIOUS, *([resume.BEST] if old or better else [])]
    assert {path.name for path in tmp_path.glob("*.pth")} == set(names)
    for name in names:
        assert torch.equal(read_checkpoint(tmp_path / name)["model"]["weight"], weight), name


@pytest.mark.parametrize("step", range(4))
def test_run_killed_at_its_first_checkpoint_has_all_of_it_or_none(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = start_run(tmp_path)
    with monkeypatch.context() as patch, suppress(Killed):
        kill_at(step, patch)
        validate(run, 5, 50.0)
    run.close()
    again, _ = start_run(tmp_path, resume="auto")
    assert (again.done, again.best) == ((0, -1.0) if step == 0 else (5, 50.0))
    again.close()


def test_best_checkpoint_alone_is_neither_resumed_from_nor_lost_in_silence(tmp_path: Path) -> None:
    run, _ = start_run(tmp_path)
    validate(run, 5, 50.0)
    run.close()
    (tmp_path / resume.LAST).unlink()
    content = (tmp_path / resume.BEST).read_bytes()
    with pytest.raises(UserError, match=r"best\.pth: is for testing .*delete it to start anew"):
        start_run(tmp_path, resume="auto")
    assert (tmp_path / resume.BEST).read_bytes() == content
    new, notes = start_run(tmp_path)
    assert notes == [f"{tmp_path} holds an earlier run, which this one replaces"]
    save(new, 1)
    new.close()
    assert not (tmp_path / resume.BEST).exists()


def test_bad_file_never_becomes_the_previous_checkpoint(tmp_path: Path) -> None:
    save(start_run(tmp_path)[0], 1, 2)
    (tmp_path / resume.LAST).write_bytes(b"PK torn")
    save(start_run(tmp_path, resume="auto")[0], 3)
    assert iteration(tmp_path / resume.LAST) == 3 and iteration(tmp_path / resume.PREVIOUS) == 1


def test_run_resumed_from_another_folder_replaces_the_checkpoints_of_its_own(
    tmp_path: Path,
) -> None:
    save(start_run(tmp_path / "here")[0], 9)
    save(start_run(tmp_path / "there")[0], 2)
    run, notes = start_run(tmp_path / "here", resume=f"{tmp_path}/there/last.pth")
    assert run.done == 2 and any("which this one replaces" in line for line in notes)
    save(run, 3)
    assert start_run(tmp_path / "here", resume="auto")[0].done == 3
    assert not (tmp_path / "here" / resume.PREVIOUS).exists()
