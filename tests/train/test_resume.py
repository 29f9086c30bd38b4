"""A run that was stopped and resumed equals an undisturbed one, to the bit."""

import errno
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from helpers import entries
from helpers.runs import CONFIG, StopAt, finish, make_data, same, start, start_ranks, wait_for

import train as train_entry
import train_base as base_entry
from util.checkpoint.file import read_checkpoint
from util.runtime.cli import main
from util.train.run import LOG

TOTAL = 7
pytestmark = pytest.mark.usefixtures("one_thread")  # as the processes that `start` starts
EVERY = "Train.save_minutes=1e-9"  # a checkpoint after every iteration


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    path = folder / "output"
    output = finish(start([*words, f"Train.save_path={folder}"], path), path)
    assert "5 episodes an epoch, 7 iterations" in output and output.count("  best ") == 2
    logged = [line.split(" INFO ", 1)[1] for line in (folder / LOG).read_text().splitlines()]
    assert logged == output.splitlines()
    return folder


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """Run train.py in this process."""
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", str(CONFIG), "--gpus", "0", *words])
    main(train_entry.train)


@pytest.mark.parametrize(
    ("query", "done", "validated"),
    [
        pytest.param(0, 1, True, id="between G and D"),
        pytest.param(3, 4, True, id="between D and G", marks=pytest.mark.slow),
        pytest.param(4 + 1, 5, False, id="while validating"),
        pytest.param(4 + 3, 5, True, id="after a validation", marks=pytest.mark.slow),
    ],
)
def test_run_stopped_at_a_chosen_place_and_resumed_equals_an_undisturbed_run(
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
    output = capsys.readouterr().out
    command = f"python train.py --config {CONFIG} --gpus 0"
    assert f"stopped at iteration {done}; resume with:\n{command}" in output
    assert output.count("Train.resume=auto") == 1
    state = read_checkpoint(tmp_path / "last.pth")
    assert (state["iteration"], state["validated"]) == (done, validated)
    path = tmp_path / "output"
    output = finish(start([*words, "Train.resume=auto"], path), path)
    assert f"resumed from {tmp_path}/last.pth: {done} of {TOTAL} iterations are done" in output
    assert "changed since" not in output
    log = (tmp_path / LOG).read_text()
    assert log.index(f"stopped at iteration {done}; ") < log.index(f"{done} of {TOTAL} iterations")
    same(tmp_path / "last.pth", whole / "last.pth")
    same(tmp_path / "best.pth", whole / "best.pth")


def last_iteration(folder: Path) -> int:
    path = folder / "last.pth"
    return read_checkpoint(path)["iteration"] if path.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signal_ends_the_iteration_and_a_second_one_ends_the_process(
    number: signal.Signals, words: list[str], whole: Path, tmp_path: Path
) -> None:
    """`start` ignores SIGINT at first, as in a background job. SIGUSR1 never counts as a second."""
    log = tmp_path / "log"
    words = [*words, f"Train.save_path={tmp_path}/run", "Train.max_iterations=5000", EVERY]
    words += ["Data.workers=2"]
    process = start(words, log)
    wait_for(lambda: "\n2/5000" in log.read_text() if log.exists() else False, process)
    os.killpg(process.pid, number)  # with the workers: Ctrl-C, or Slurm
    if number == signal.SIGUSR1:
        os.killpg(process.pid, number)
        output = finish(process, log)
        assert "stopped at iteration" in output
        return
    wait_for(lambda: f"\n{number.name}: finishing this iteration" in log.read_text(), process)
    os.kill(process.pid, number)
    process.join(60)
    # At once, unless the iteration was over in between.
    assert process.exitcode in (128 + number, 0)
    state = read_checkpoint(tmp_path / "run/last.pth")
    assert state["iteration"] >= 1


def test_ranks_stop_together_and_resume_bit_equal(words: list[str], tmp_path: Path) -> None:
    """Of two gloo processes, one gets the signal."""
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
    output = finish(processes[0], first)
    finish(processes[1], log.with_suffix(".1"))
    done = last_iteration(tmp_path / "run")
    assert f"stopped at iteration {done}" in output and 0 < done < 4
    for process in start_ranks([*words, "Train.resume=auto"], log, 2):
        process.join(600)
        assert process.exitcode == 0
    assert f"{done} of 4 iterations are done" in first.read_text()
    same(tmp_path / "run/last.pth", tmp_path / "whole/last.pth")
    assert len(read_checkpoint(tmp_path / "run/last.pth")["random"]) == 2


def test_finished_run_stays_unchanged_when_it_is_resumed(
    words: list[str],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """A queued job may start once more."""
    for name in ("last.pth", "best.pth"):
        shutil.copy(whole / name, tmp_path)
    before = (tmp_path / "last.pth").read_bytes()
    call(monkeypatch, *words, f"Train.save_path={tmp_path}", "Train.resume=auto")
    assert "nothing left to do" in capsys.readouterr().out
    assert (tmp_path / "last.pth").read_bytes() == before
    assert not (tmp_path / "last.previous.pth").exists()


def disturb(words: list[str], folder: Path, moments: random.Random) -> tuple[str, int]:
    """Stop a run once, at a random moment, then finish it.

    Returns:
        The signal, and the number of iterations that were done twice.
    """
    words = [*words, f"Train.save_path={folder}", "Train.save_minutes=0.01"]
    log = folder.with_suffix(".log")
    number = moments.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    process = start(words, log)
    wait_for(lambda: log.exists() and "iterations\n" in log.read_text(), process)
    begin = time.monotonic()
    # Any moment between the first iteration and the end, at this machine's speed.
    reach = moments.randrange(1, TOTAL)
    wait_for(lambda: f"\n{reach}/{TOTAL}" in log.read_text(), process)
    time.sleep(moments.random() * (time.monotonic() - begin) / (reach + 1))
    os.kill(process.pid, number)
    process.join(600)
    if number == signal.SIGKILL:
        assert process.exitcode in (-number, 0)
    else:  # or it was exiting already, after its last iteration
        assert process.exitcode == 0 or "; checkpoints in" in log.read_text()
    seen = log.read_text().count(" ETA ")
    output = finish(start([*words, "Train.resume=auto"], log), log)
    match = re.search(r"(\d+) of 7 iterations", output)
    assert match or "nothing to resume" in output
    return number.name, seen - (int(match[1]) if match else 0)


def check_disturbed(words: list[str], whole: Path, folder: Path, seed: int) -> None:
    name, redone = disturb(words, folder, random.Random(seed))
    print(f"{name}: {redone} iterations done twice")
    assert name == "SIGKILL" or redone == 0
    same(folder / "last.pth", whole / "last.pth")
    same(folder / "best.pth", whole / "best.pth")
    assert not list(folder.glob(".*.part"))
    shutil.rmtree(folder)


def test_run_killed_at_a_random_moment_and_resumed_equals_an_undisturbed_run(
    words: list[str], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    check_disturbed(words, whole, tmp_path / "run", 3)
    assert "SIGKILL" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(50))
def test_fifty_runs_stopped_at_random_moments_equal_an_undisturbed_run(
    words: list[str], whole: Path, tmp_path: Path, seed: int
) -> None:
    """`pytest -s` prints the signals and the iterations done twice, for docs/reliability.md."""
    check_disturbed(words, whole, tmp_path / "run", seed)


def test_stage_one_stopped_and_resumed_writes_an_equal_base_learner(
    words: list[str], tmp_path: Path
) -> None:
    log, base = tmp_path / "log", tmp_path / "base.pth"
    words = [*words, "Base.max_iterations=8", "Data.workers=0", "Base.augment=true"]

    def stage_one(path: Path, *more: str):
        return start([*words, f"Method.pre_weight={path}", *more], log, script="train_base.py")

    assert "were skipped" not in finish(stage_one(tmp_path / "whole.pth"), log)
    process = stage_one(base)
    wait_for(lambda: log.exists() and "\n2/8" in log.read_text(), process)
    os.kill(process.pid, signal.SIGTERM)
    output = finish(process, log)
    unfinished = tmp_path / "base/last.pth"
    state = read_checkpoint(unfinished)
    wanted = {"model", "optimizer", "iteration", "validated", "best", "stale", "random", "config"}
    wanted |= {"versions", "ranks", "images", "areas", "scores", "launch", "run"}
    assert state.keys() == wanted
    done = state["iteration"]
    stopped = f"stopped at iteration {done}; resume with:\npython train_base.py"
    assert stopped in output and done < 8
    assert not base.exists()
    output = finish(stage_one(base, "Train.resume=auto"), log)
    assert f"resumed from {unfinished}: {done} of 8 iterations are done" in output
    assert not unfinished.exists()
    logged = (tmp_path / "base" / LOG).read_text()
    assert logged.count(" ETA ") == 8 and f"stopped at iteration {done}; " in logged
    same(base, tmp_path / "whole.pth")
    results = [json.loads((tmp_path / f"{n}/result.json").read_text()) for n in ("base", "whole")]
    assert results[0]["base_learner"] == results[1]["base_learner"]
    assert results[0]["base_learner"]["images"] == 20
    assert sorted(p.suffix for p in (tmp_path / "base").iterdir() if p.suffix == ".pth") == []


def test_stage_one_stopped_in_its_validation_resumes_there(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    words = [*words, "Base.max_iterations=2", "Data.workers=0", "Base.augment=true"]
    base = tmp_path / "base.pth"

    def stage_one(*more: str) -> str:
        assert entries.call(base_entry.train_base, *words, f"Method.pre_weight={base}", *more) == 0
        return capsys.readouterr().out

    with monkeypatch.context() as patch:
        patch.setattr(base_entry, "Stop", StopAt(2))
        output = stage_one()
    assert "stopped at iteration 2; resume with:\npython train_base " in output
    assert not base.exists()
    output = stage_one("Train.resume=auto")
    assert "2 of 2 iterations are done" in output and " ETA " not in output and base.exists()


def test_stage_one_whose_last_save_failed_does_not_claim_to_be_resumable(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    more = "Base.max_iterations=2", "Data.workers=0", f"Method.pre_weight={tmp_path}/base.pth"
    monkeypatch.setattr(base_entry, "Stop", StopAt(0))
    monkeypatch.setattr("util.train.run.atomic_write", full)
    assert entries.call(base_entry.train_base, *words, *more) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"stopped: {tmp_path}/base: the last checkpoint is not")


def test_stage_one_refuses_a_state_that_it_cannot_resume_from(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "base/last.pth"
    path.parent.mkdir()
    path.write_bytes(b"PK torn")
    more = f"Method.pre_weight={tmp_path}/base.pth", "Train.resume=auto"
    assert entries.call(base_entry.train_base, *words, *more) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: torn, ") and "delete it" in error
    assert error.count("\n") == 1 and path.read_bytes() == b"PK torn"
