"""Disks that fail while a run trains: it says so, goes on, and no earlier file is lost."""

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.runs import finish, make_data, same, start, wait_for
from torch import nn

from util.checkpoint import resume
from util.checkpoint.file import read_checkpoint, write_checkpoint
from util.config import Config, load_config
from util.data.batches import Batches
from util.evaluate.evaluator import Score, Scores
from util.runtime.distributed import Ranks
from util.runtime.errors import RunStopped
from util.runtime.files import atomic_write
from util.train.run import Run

ALONE = Ranks(0, 1, torch.device("cpu"))
STRIPS = [np.zeros((4, 4, 3), np.uint8)]


class Player:
    """Stands for `Game`: an optimiser's state of a chosen size."""

    def __init__(self, kilobytes: int = 1):
        self.state = torch.rand(256 * kilobytes)

    def state_dict(self) -> dict:
        return {"optimizer_g": {"state": self.state}, "optimizer_d": {}, "scalers": []}

    def load_state_dict(self, state: dict) -> None:
        self.state = state["optimizer_g"]["state"]

    def rates(self) -> dict:
        return {}


def run_in(folder: Path, *, kilobytes: int = 1, **train: object) -> tuple[Run, list[str], Batches]:
    """A started run of a model of one layer."""
    cfg = Config()
    cfg = replace(cfg, Train=replace(cfg.Train, save_path=str(folder), **train))
    schedule = Batches(10, 2, 2, ALONE)
    run = Run(nn.Linear(2, 2), Player(kilobytes), cfg, ALONE)
    return run, run.start(schedule), schedule


def scores(miou: float) -> Scores:
    score = Score(miou, 0.0, {})
    return Scores(score, score, 0.0, score, "f5", 0.5, 1, {})


def iteration(path: Path) -> int:
    return read_checkpoint(path)["iteration"]


def mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mount is not permitted here: {done.stderr.strip()}")


def turn_read_only(folder: Path) -> None:
    """Puts a read-only view over a folder; a disk with open files cannot be turned as a whole."""
    mount("--bind", str(folder), str(folder))
    mount("-o", "remount,ro,bind", str(folder))


def turn_back(folder: Path) -> None:
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder))
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_the_last_the_one_before_and_the_best_are_kept(tmp_path: Path) -> None:
    run, notes, _ = run_in(tmp_path)
    run.validated(scores(5.0), STRIPS, 1)
    run.save(2)
    run.validated(scores(4.0), STRIPS, 3)
    run.close()
    assert notes == [] and run.stale == 1
    names = {resume.LAST: 3, resume.PREVIOUS: 2, resume.BEST: 1}
    assert {name: iteration(tmp_path / name) for name in names} == names
    state = read_checkpoint(tmp_path / resume.LAST)
    wanted = {"model", "optimizer_g", "optimizer_d", "scalers", "iteration", "validated", "best"}
    wanted |= {"stale", "random", "config", "versions", "ranks", "images", "launch", "run"}
    assert state.keys() == wanted
    assert set(state["random"][0]) == {"torch", "cuda", "numpy", "python"}


@pytest.mark.parametrize("fault", ["torn", "foreign", "bit", "gone"])
def test_auto_passes_over_a_bad_file_and_says_so(fault: str, tmp_path: Path) -> None:
    run, _, _ = run_in(tmp_path)
    for done in (1, 2, 3):
        run.save(done)
    last = tmp_path / resume.LAST
    content = bytearray(last.read_bytes())
    if fault == "torn":
        last.write_bytes(content[:-100])
    elif fault == "foreign":
        write_checkpoint(last, state_dict={})
    elif fault == "bit":
        content[content.index(run.game.state.numpy().tobytes()) + 5] ^= 1
        last.write_bytes(content)
    else:
        last.unlink()
    run, notes, schedule = run_in(tmp_path, resume="auto")
    assert (
        schedule.start == 2 and f"goes on from {tmp_path}/last.previous.pth: 2 of 10" in notes[-1]
    )
    told = {"foreign": "holds weights only", "gone": ""}.get(fault, "torn")
    assert len(notes) == (1 if fault == "gone" else 2)
    assert fault == "gone" or notes[0].startswith(f"passed over: {last}: {told}")
    if fault != "gone":
        with pytest.raises(ValueError, match=f"{told}.*; {tmp_path}/last.previous.pth is good"):
            run_in(tmp_path, resume=str(last))


def test_auto_without_any_file_starts_from_scratch_and_says_so(tmp_path: Path) -> None:
    _, notes, schedule = run_in(tmp_path, resume="auto")
    assert schedule.start == 0 and notes == [
        f"nothing to resume in {tmp_path}: starts from scratch"
    ]


def test_auto_with_nothing_but_bad_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / resume.LAST).write_bytes(b"PK torn")
    with pytest.raises(ValueError, match="last.pth: torn.*none of .* is good") as refusal:
        run_in(tmp_path, resume="auto")
    assert "\n" not in str(refusal.value)
    assert (tmp_path / resume.LAST).read_bytes() == b"PK torn"


def test_a_resumed_run_names_what_is_no_longer_the_same(tmp_path: Path) -> None:
    run_in(tmp_path)[0].save(3)
    _, notes, _ = run_in(tmp_path, resume="auto", lr=1e-3, print_freq=3)
    assert notes[1:] == ["no longer the run that was stopped: config.Train.lr 0.0002 -> 0.001"]


def test_a_restarted_rank_takes_what_its_launch_has_written_and_nothing_older(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_in(tmp_path)[0].save(3)  # an earlier run in the same folder
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "this")
    run, notes, schedule = run_in(tmp_path)
    assert schedule.start == 0 and "holds an earlier run" in notes[0]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert run_in(tmp_path)[2].start == 0
    run.save(2)
    assert run_in(tmp_path)[2].start == 2


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it is run."""


def kill_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Kills before the step-th change of a file from now on."""
    left = [step]

    def dying(change: Callable) -> Callable:
        def call(*given: object, **named: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return change(*given, **named)

        return call

    patch.setattr(os, "replace", dying(os.replace))
    patch.setattr(Path, "unlink", dying(Path.unlink))


@pytest.mark.parametrize("better", [False, True])
@pytest.mark.parametrize("step", range(5))
def test_a_run_killed_while_it_replaces_another_leaves_one_that_goes_on_alone(
    step: int, better: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The earlier one had 9 iterations, the new one has 1 or 2; they differ in their weights."""
    early, _, _ = run_in(tmp_path)
    early.validated(scores(50.0), STRIPS, 8)
    early.save(9)
    early.close()
    late, notes, _ = run_in(tmp_path)
    assert notes == [f"{tmp_path} holds an earlier run, which this one replaces"]
    with monkeypatch.context() as patch, suppress(Killed):
        kill_at(step, patch)
        late.validated(scores(5.0), STRIPS, 1) if better else late.save(1)
    late.close()
    run, _, schedule = run_in(tmp_path, resume="auto")
    old = schedule.start == 9
    assert old == (step == 0) and schedule.start in (9, 1)
    assert torch.equal(run.model.weight, (early if old else late).model.weight)
    assert run.best == (50.0 if old else 5.0 if better else -1.0)
    run.save(3)
    run.save(4)
    run.close()
    names = [resume.LAST, resume.PREVIOUS, *([resume.BEST] if old or better else [])]
    assert {path.name for path in tmp_path.glob("*.pth")} == set(names)
    for name in names:
        weight = read_checkpoint(tmp_path / name)["model"]["weight"]
        assert torch.equal(weight, run.model.weight), name


def test_a_bad_file_is_never_kept_as_the_one_before(tmp_path: Path) -> None:
    run, _, _ = run_in(tmp_path)
    run.save(1)
    run.save(2)
    (tmp_path / resume.LAST).write_bytes(b"PK torn")
    run_in(tmp_path, resume="auto")[0].save(3)
    assert iteration(tmp_path / resume.LAST) == 3 and iteration(tmp_path / resume.PREVIOUS) == 1


def test_a_run_that_goes_on_from_elsewhere_replaces_what_its_folder_held(tmp_path: Path) -> None:
    run_in(tmp_path / "here")[0].save(9)
    run_in(tmp_path / "there")[0].save(2)
    named = f"{tmp_path}/there/last.pth"
    run, notes, schedule = run_in(tmp_path / "here", resume=named)
    assert schedule.start == 2 and any("which this one replaces" in line for line in notes)
    run.save(3)
    assert run_in(tmp_path / "here", resume="auto")[2].start == 3
    assert not (tmp_path / "here" / resume.PREVIOUS).exists()


def test_a_full_disk_is_told_costs_no_file_and_is_tried_again(
    disk: Path, capsys: pytest.CaptureFixture
) -> None:
    """The best checkpoint, too, is written once there is room."""
    folder = disk / "run"
    run, _, _ = run_in(folder, kilobytes=300)
    run.save(1)
    run.save(2)
    before = {name: (folder / name).read_bytes() for name in (resume.LAST, resume.PREVIOUS)}
    filler = disk / "filler"
    with suppress(OSError):
        filler.write_bytes(bytes(1 << 20))
    picture = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    run.validated(scores(5.0), [picture], 3)
    run.save(4)
    said = capsys.readouterr().err
    assert said.count("the checkpoint cannot be written (No space left on device") == 2
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert not list(folder.glob(".*"))
    with pytest.raises(RunStopped, match="the last checkpoint is not written"):
        run.close()
    filler.unlink()
    mount("-o", "remount,size=2m", str(disk))
    run.save(5)
    run.close()
    assert iteration(folder / resume.BEST) == 3 and iteration(folder / resume.LAST) == 5


def test_a_disk_that_turns_read_only_is_told_and_costs_no_file(
    disk: Path, capsys: pytest.CaptureFixture
) -> None:
    run, _, _ = run_in(disk / "run")
    run.save(1)
    turn_read_only(disk / "run")
    run.save(2)
    assert "cannot be written (Read-only file system, at iteration 2)" in capsys.readouterr().err
    assert iteration(disk / "run" / resume.LAST) == 1
    with pytest.raises(ValueError, match="Train.save_path: .* cannot be written to"):
        run_in(disk / "run")
    turn_back(disk / "run")
    run.save(3)
    run.close()
    assert iteration(disk / "run" / resume.LAST) == 3


def test_a_folder_that_vanishes_is_made_anew(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "run"
    run, _, _ = run_in(folder)
    run.save(1)
    shutil.rmtree(folder)
    run.save(2)
    run.close()
    assert "is gone; made anew" in capsys.readouterr().err
    assert iteration(folder / resume.LAST) == 2
    assert load_config(folder / "config.yaml").Train.save_path == str(folder)
    assert list(folder.glob("events.*"))


def test_half_written_files_of_a_killed_run_are_swept(tmp_path: Path) -> None:
    (tmp_path / ".last.pth.77.part").write_bytes(b"half")
    run_in(tmp_path)[0].close()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_written_whole_or_not_at_all(durable: bool, tmp_path: Path) -> None:
    path, outside = tmp_path / "new" / "file", tmp_path / "outside"
    atomic_write(path, b"first", durable=durable)

    def torn(file) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, torn, durable=durable)
    assert path.read_bytes() == b"first" and os.listdir(path.parent) == ["file"]
    outside.write_bytes(b"another's")
    path.unlink()
    path.symlink_to(outside)
    atomic_write(path, b"second", durable=durable)
    assert (path.read_bytes(), outside.read_bytes()) == (b"second", b"another's")


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["file size limit", "full disk", "read-only", "folder removed"])
def test_a_run_survives_a_disk_that_fails(fault: str, tmp_path: Path) -> None:
    """The whole train.py; the fault comes after two checkpoints, and goes before the resume."""
    words = make_data(tmp_path / "data")
    whole, log = tmp_path / "whole", tmp_path / "log"
    finish(start([*words, f"Train.save_path={whole}"], log), log)
    size = (whole / resume.LAST).stat().st_size
    disk = tmp_path / "disk"
    disk.mkdir()
    mount("-t", "tmpfs", "-o", f"size={5 * size if fault != 'full disk' else 2.5 * size:.0f}",
          "tmpfs", str(disk))  # fmt: skip
    try:
        folder = disk / "run"
        words += [f"Train.save_path={folder}", "Train.save_minutes=1e-9"]
        process = start(words, log)
        wait_for((folder / resume.PREVIOUS).exists, process)
        if fault == "file size limit":
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size // 2, size // 2))
        elif fault == "read-only":
            turn_read_only(folder)
        elif fault == "folder removed":
            shutil.rmtree(folder)
        process.join(300)
        told = {"folder removed": "is gone; made anew"}.get(
            fault, "the checkpoint cannot be written"
        )
        assert told in log.read_text()
        assert process.exitcode == (0 if fault == "folder removed" else 1), log.read_text()
        assert "7/7" in log.read_text()
        if fault == "read-only":
            turn_back(folder)
        mount("-o", f"remount,size={5 * size}", str(disk))
        finish(start([*words, "Train.resume=auto"], log), log)
        same(folder / resume.LAST, whole / resume.LAST)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
