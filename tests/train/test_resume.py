"""Stopped anywhere and resumed is never stopped, to the bit; a second signal leaves at once."""

import os
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import entries
from helpers.runs import CONFIG, finish, make_data, same, start, start_ranks, wait_for

import train as train_entry
import train_base as base_entry
from util.checkpoint.file import read_checkpoint
from util.runtime.cli import main

TOTAL = 7
EVERY = "Train.save_minutes=1e-9"  # a checkpoint after every iteration


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    said = finish(start([*words, f"Train.save_path={folder}"], folder / "log"), folder / "log")
    assert "5 episodes an epoch, 7 iterations" in said and said.count(": mIoU ") == 2
    return folder


class StopAt:
    """Stands for `util.runtime.stop.Stop`: asks to stop from its n-th query on."""

    def __init__(self, query: int):
        self.left = query

    def __call__(self, speaks: bool) -> "StopAt":
        return self

    __enter__ = __exit__ = lambda self, *_: None

    @property
    def requested(self) -> bool:
        self.left -= 1
        return self.left < 0


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """Runs train.py in this process, on one thread as `start` does."""
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", str(CONFIG), "--gpus", "0", *words])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    main(train_entry.train)
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("query", "done", "validated"),
    [
        pytest.param(0, 1, True, id="between G and D"),
        pytest.param(3, 4, True, id="between D and G", marks=pytest.mark.slow),
        pytest.param(4 + 1, 5, False, id="while validating"),
        pytest.param(4 + 3, 5, True, id="after a validation", marks=pytest.mark.slow),
    ],
)
def test_stopped_at_a_chosen_place_and_resumed_equals_never_stopped(
    query: int,
    done: int,
    validated: bool,
    words: list[str],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    words = [*words, f"Train.save_path={tmp_path}"]
    with monkeypatch.context() as patch:
        patch.setattr(train_entry, "Stop", StopAt(query))
        call(patch, *words)
    said = capsys.readouterr().out
    command = f"python train.py --config {CONFIG} --gpus 0"
    assert f"stopped at iteration {done}; go on with:\n{command}" in said
    assert said.count("Train.resume=auto") == 1
    state = read_checkpoint(tmp_path / "last.pth")
    assert (state["iteration"], state["validated"]) == (done, validated)
    log = tmp_path / "log"
    said = finish(start([*words, "Train.resume=auto"], log), log)
    assert f"goes on from {tmp_path}/last.pth: {done} of {TOTAL} iterations are done" in said
    assert "no longer the run" not in said
    same(tmp_path / "last.pth", whole / "last.pth")
    same(tmp_path / "best.pth", whole / "best.pth")


def last_iteration(folder: Path) -> int:
    path = folder / "last.pth"
    return read_checkpoint(path)["iteration"] if path.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_iteration_and_a_second_one_the_process(
    number: signal.Signals, words: list[str], whole: Path, tmp_path: Path
) -> None:
    """SIGINT also where it was ignored at the start, as in a background job; Slurm's SIGUSR1 never
    counts as a second one."""
    log = tmp_path / "log"
    words = [*words, f"Train.save_path={tmp_path}/run", "Train.max_iterations=5000", EVERY]
    words += ["Data.workers=2"]
    process = start(words, log)
    wait_for(lambda: "\n2/5000" in log.read_text() if log.exists() else False, process)
    os.killpg(process.pid, number)  # with the workers: Ctrl-C, or Slurm
    if number == signal.SIGUSR1:
        os.killpg(process.pid, number)
        said = finish(process, log)
        assert "stopped at iteration" in said
        return
    wait_for(lambda: f"\n{number.name}: this iteration is finished" in log.read_text(), process)
    os.kill(process.pid, number)
    process.join(60)
    # At once, unless the iteration was over in between.
    assert process.exitcode in (128 + number, 0)
    state = read_checkpoint(tmp_path / "run/last.pth")
    assert state["iteration"] >= 1


def test_ranks_stop_together_and_go_on_to_the_bit(words: list[str], tmp_path: Path) -> None:
    """Two gloo processes; the signal goes to one of them."""
    words = [*words, "Train.batch_size=2", "Train.max_iterations=4"]
    undisturbed = [*words, f"Train.save_path={tmp_path}/whole"]
    for process in start_ranks(undisturbed, tmp_path / "whole.log", 2):
        process.join(600)
        assert process.exitcode == 0
    words.append(f"Train.save_path={tmp_path}/run")
    log = tmp_path / "run.log"
    processes = start_ranks(words, log, 2)
    first = log.with_suffix(".0")
    wait_for(lambda: first.exists() and "\n1/4" in first.read_text(), processes[0])
    os.kill(processes[1].pid, signal.SIGTERM)
    said = finish(processes[0], first)
    finish(processes[1], log.with_suffix(".1"))
    done = last_iteration(tmp_path / "run")
    assert f"stopped at iteration {done}" in said and 0 < done < 4
    for process in start_ranks([*words, "Train.resume=auto"], log, 2):
        process.join(600)
        assert process.exitcode == 0
    assert f"{done} of 4 iterations are done" in first.read_text()
    same(tmp_path / "run/last.pth", tmp_path / "whole/last.pth")
    assert len(read_checkpoint(tmp_path / "run/last.pth")["random"]) == 2


def test_a_finished_run_that_is_asked_to_go_on_is_left_alone(
    words: list[str],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """As a job does that is queued once more."""
    for name in ("last.pth", "best.pth"):
        shutil.copy(whole / name, tmp_path)
    before = (tmp_path / "last.pth").read_bytes()
    call(monkeypatch, *words, f"Train.save_path={tmp_path}", "Train.resume=auto")
    assert "nothing left to do" in capsys.readouterr().out
    assert (tmp_path / "last.pth").read_bytes() == before
    assert not (tmp_path / "last.previous.pth").exists()


def disturb(words: list[str], folder: Path, moments: random.Random) -> tuple[str, int]:
    """One run, stopped once at a random moment, then finished; how, and the iterations redone."""
    words = [*words, f"Train.save_path={folder}", "Train.save_minutes=0.01"]
    log = folder.with_suffix(".log")
    number = moments.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    process = start(words, log)
    wait_for(lambda: log.exists() and "iterations\n" in log.read_text(), process)
    begin = time.monotonic()
    # Anywhere between the first iteration and the end, by this machine's speed.
    reach = moments.randrange(1, TOTAL)
    wait_for(lambda: f"\n{reach}/{TOTAL}" in log.read_text(), process)
    time.sleep(moments.random() * (time.monotonic() - begin) / (reach + 1))
    os.kill(process.pid, number)
    process.join(600)
    if number == signal.SIGKILL:
        assert process.exitcode in (-number, 0)
    else:  # or on its way out, with all done
        assert process.exitcode == 0 or "; checkpoints in" in log.read_text()
    seen = log.read_text().count(" ETA ")
    said = finish(start([*words, "Train.resume=auto"], log), log)
    from_scratch = "nothing to resume" in said
    done = 0 if from_scratch else int(re.search(r"(\d+) of 7 iterations", said)[1])
    return number.name, seen - done


def check_disturbed(words: list[str], whole: Path, folder: Path, seed: int) -> None:
    name, redone = disturb(words, folder, random.Random(seed))
    print(f"{name}: {redone} iterations done twice")
    assert name == "SIGKILL" or redone == 0
    same(folder / "last.pth", whole / "last.pth")
    same(folder / "best.pth", whole / "best.pth")
    assert not list(folder.glob(".*.part"))
    shutil.rmtree(folder)


def test_killed_at_a_random_moment_and_resumed_equals_never_stopped(
    words: list[str], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    check_disturbed(words, whole, tmp_path / "run", 3)
    assert "SIGKILL" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(50))
def test_fifty_runs_stopped_at_random_moments_equal_one_that_was_not(
    words: list[str], whole: Path, tmp_path: Path, seed: int
) -> None:
    """With `-s` it says by what, and what was done twice; the numbers of docs/reliability.md."""
    check_disturbed(words, whole, tmp_path / "run", seed)


def test_stage_one_asked_to_stop_goes_on_to_the_same_base_learner(
    words: list[str], tmp_path: Path
) -> None:
    log, base = tmp_path / "log", tmp_path / "base.pth"
    words = [*words, "Base.max_iterations=8", "Data.workers=0", "Base.augment=true"]

    def stage_one(path: Path, *more: str):
        return start([*words, f"Method.pre_weight={path}", *more], log, script="train_base.py")

    said = finish(stage_one(tmp_path / "whole.pth"), log)
    assert "were skipped" not in said
    process = stage_one(base)
    wait_for(lambda: log.exists() and "\n2/8" in log.read_text(), process)
    os.kill(process.pid, signal.SIGTERM)
    said = finish(process, log)
    unfinished = tmp_path / "base.unfinished.pth"
    done = read_checkpoint(unfinished)["iteration"]
    assert f"stopped at iteration {done}; go on with:\npython train_base.py" in said and done < 8
    assert not base.exists()
    said = finish(stage_one(base, "Train.resume=auto"), log)
    assert f"goes on from {unfinished}: {done} iterations are done" in said
    assert not unfinished.exists()
    same(base, tmp_path / "whole.pth")


def test_stage_one_asked_to_stop_in_its_validation_goes_on_there(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    words = [*words, "Base.max_iterations=2", "Data.workers=0", "Base.augment=true"]
    base = tmp_path / "base.pth"

    def stage_one(*more: str) -> str:
        assert entries.call(base_entry.train_base, *words, f"Method.pre_weight={base}", *more) == 0
        return capsys.readouterr().out

    with monkeypatch.context() as patch:
        patch.setattr(base_entry, "Stop", StopAt(2))
        said = stage_one()
    assert "stopped at iteration 2; go on with:\npython train_base " in said
    assert not base.exists()
    said = stage_one("Train.resume=auto")
    assert "2 iterations are done" in said and " ETA " not in said and base.exists()
