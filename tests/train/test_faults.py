"""Failing disks: a run warns and goes on, and no earlier checkpoint is lost."""

import os
import platform
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from helpers.processes import FORKSERVER
from helpers.runs import finish, make_data, same, start, wait_for
from torch import nn

from util.checkpoint import resume
from util.checkpoint.file import read_checkpoint, write_checkpoint
from util.config import Config, load_config
from util.data.batches import Batches
from util.evaluate.metrics import ClassTotals, Score
from util.evaluate.scores import Scores
from util.runtime.distributed import Ranks
from util.runtime.errors import RunStopped, UserError
from util.runtime.files import atomic_write
from util.runtime.log import close_log_file, configure, log
from util.runtime.system import hold, release
from util.train.run import LOG
from util.train.stages import AdversarialRun

ALONE = Ranks(0, 1, torch.device("cpu"))
STRIP = np.zeros((4, 4, 3), np.uint8)


class SmallTrainer:
    """Stands in for `AdversarialTrainer`: a model of one layer, optimizers of a chosen size."""

    def __init__(self, kilobytes: int):
        self.model, self.state = nn.Linear(2, 2), torch.rand(256 * kilobytes)
        self.areas = ClassTotals(1, torch.device("cpu"))

    def state_dict(self) -> dict:
        return {"optimizer_g": {"state": self.state}, "optimizer_d": {}, "scalers": []}

    def load_state_dict(self, state: dict) -> None:
        self.state = state["optimizer_g"]["state"]


def start_run(
    folder: Path, *, kilobytes: int = 1, split: int = 0, **train: object
) -> tuple[AdversarialRun, list[str]]:
    """Start a small run; return it and its lines about where it starts."""
    cfg = Config()
    cfg = replace(cfg, Train=replace(cfg.Train, save_path=str(folder), **train))
    cfg = replace(cfg, Data=replace(cfg.Data, split=split))
    run = AdversarialRun(SmallTrainer(kilobytes), cfg, ALONE, Batches(10, 2, 2, ALONE))
    return run, run.start()


def save(run: AdversarialRun, *done: int) -> None:
    """Save the run as it is after these numbers of iterations, one after the other."""
    for count in done:
        run.done = count
        run.save()


def validate(run: AdversarialRun, done: int, miou: float, strip: np.ndarray = STRIP) -> None:
    """Record a validation after `done` iterations."""
    score, run.done = Score(miou, 0.0, 0.0, {}), done
    run.record_validation(Scores(score, score, 0.0, {}, 0.0, score, "f5", 0.5, 1, {}), [strip])


@pytest.fixture(autouse=True)
def console() -> Iterator[None]:
    configure()
    yield
    close_log_file()
    release()


def iteration(path: Path) -> int:
    return read_checkpoint(path)["iteration"]


def mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mount is not permitted here: {done.stderr.strip()}")


def make_read_only(folder: Path) -> None:
    """Mount a read-only view over a folder; a disk with open files cannot be remounted."""
    mount("--bind", str(folder), str(folder))
    mount("-o", "remount,ro,bind", str(folder))


def make_writable(folder: Path) -> None:
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder))
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


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


def test_finished_run_in_a_read_only_folder_has_nothing_to_do(disk: Path) -> None:
    run, _ = start_run(disk)
    validate(run, 10, 50.0)
    run.close()
    close_log_file()
    release()
    make_read_only(disk)
    try:
        again, notes = start_run(disk, resume="auto")
        assert notes[-2].startswith(f"nothing left to do: {disk}/last.pth has all 10 of 10")
        assert notes[-1] == f"{disk} cannot be written to, and nothing has to be"
        assert again.batches.start == again.batches.total and again.ended()
        with pytest.raises(UserError, match="cannot be written to"):
            start_run(disk)
    finally:
        make_writable(disk)


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
@pytest.mark.parametrize("step", range(5))
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


def test_full_disk_is_reported_costs_no_file_and_is_tried_again(
    disk: Path, capsys: pytest.CaptureFixture
) -> None:
    """The best checkpoint is also written as soon as there is room."""
    folder = disk / "run"
    run, _ = start_run(folder, kilobytes=300)
    save(run, 1, 2)
    before = {name: (folder / name).read_bytes() for name in (resume.LAST, resume.PREVIOUS)}
    filler = disk / "filler"
    with suppress(OSError):
        filler.write_bytes(bytes(1 << 20))
    picture = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    validate(run, 3, 5.0, picture)
    save(run, 4)
    errors = capsys.readouterr().err
    assert errors.count("the checkpoint cannot be written (No space left on device") == 2
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert not list(folder.glob(".*.part"))
    with pytest.raises(RunStopped, match="the last checkpoint is not written"):
        run.close()
    filler.unlink()
    mount("-o", "remount,size=2m", str(disk))
    save(run, 5)
    run.close()
    assert iteration(folder / resume.BEST) == 3 and iteration(folder / resume.LAST) == 5


def test_full_disk_costs_the_log_and_not_the_run(disk: Path, capsys: pytest.CaptureFixture) -> None:
    run, _ = start_run(disk / "run")
    log.warning("first")
    with suppress(OSError):
        (disk / "filler").write_bytes(bytes(1 << 20))
    line = "second " * 2000  # more than the rest of the page that the first line began
    log.warning(line)
    log.warning("third")
    run.close()
    errors = capsys.readouterr().err
    assert line in errors and "third" in errors
    assert errors.count("log.txt: the log is no longer written") == 1
    assert "WARNING first\n" in (disk / "run" / LOG).read_text()


def test_disk_that_becomes_read_only_is_reported_and_costs_no_file(
    disk: Path, capsys: pytest.CaptureFixture
) -> None:
    run, _ = start_run(disk / "run")
    save(run, 1)
    make_read_only(disk / "run")
    save(run, 2)
    assert "cannot be written (Read-only file system, at iteration 2)" in capsys.readouterr().err
    assert iteration(disk / "run" / resume.LAST) == 1
    with pytest.raises(UserError, match="Train.save_path: .* cannot be written to"):
        start_run(disk / "run")
    make_writable(disk / "run")
    save(run, 3)
    run.close()
    assert iteration(disk / "run" / resume.LAST) == 3


def test_folder_that_vanishes_is_created_again(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "run"
    run, _ = start_run(folder)
    save(run, 1)
    shutil.rmtree(folder)
    save(run, 2)
    log.warning("after")
    run.close()
    assert "is gone; it is created again" in capsys.readouterr().err
    assert iteration(folder / resume.LAST) == 2
    assert load_config(folder / "config.yaml").Train.save_path == str(folder)
    assert list(folder.glob("events.*"))
    assert (folder / LOG).read_text().endswith("WARNING after\n")


def test_half_written_files_of_a_killed_run_are_swept(tmp_path: Path) -> None:
    (tmp_path / ".last.pth.77.part").write_bytes(b"half")
    start_run(tmp_path)[0].close()
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize("durable", [True, False])
def test_atomic_write_leaves_a_file_whole_or_unchanged(durable: bool, tmp_path: Path) -> None:
    path, outside = tmp_path / "new" / "file", tmp_path / "outside"
    atomic_write(path, b"first", durable=durable)

    def torn(file: BinaryIO) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, torn, durable=durable)
    assert path.read_bytes() == b"first" and os.listdir(path.parent) == ["file"]
    outside.write_bytes(b"outside")
    path.unlink()
    path.symlink_to(outside)
    atomic_write(path, b"second", durable=durable)
    assert (path.read_bytes(), outside.read_bytes()) == (b"second", b"outside")


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["file size limit", "full disk", "read-only", "folder removed"])
def test_train_survives_a_failing_disk_and_resumes_bit_equal(fault: str, tmp_path: Path) -> None:
    """The fault comes after two checkpoints, and is gone before the run is resumed."""
    words = make_data(tmp_path / "data")
    whole, path = tmp_path / "whole", tmp_path / "output"
    finish(start([*words, f"Train.save_path={whole}"], path), path)
    size = (whole / resume.LAST).stat().st_size
    disk = tmp_path / "disk"
    disk.mkdir()
    mount("-t", "tmpfs", "-o", f"size={5 * size if fault != 'full disk' else 2.5 * size:.0f}",
          "tmpfs", str(disk))  # fmt: skip
    try:
        folder = disk / "run"
        words += [f"Train.save_path={folder}", "Train.save_minutes=1e-9"]
        process = start(words, path)
        wait_for((folder / resume.PREVIOUS).exists, process)
        if fault == "file size limit":
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size // 2, size // 2))
        elif fault == "read-only":
            make_read_only(folder)
        elif fault == "folder removed":
            shutil.rmtree(folder)
        process.join(300)
        removed, output = fault == "folder removed", path.read_text()
        assert ("is gone; it is" if removed else "the checkpoint cannot be written") in output
        assert process.exitcode == (0 if removed else 1), output
        assert "7/7" in output
        if fault == "read-only":
            make_writable(folder)
        mount("-o", f"remount,size={5 * size}", str(disk))
        finish(start([*words, "Train.resume=auto"], path), path)
        same(folder / resume.LAST, whole / resume.LAST)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
