"""Failing disks: a run warns and goes on, and no earlier checkpoint is lost."""

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from helpers.runs import finish, make_data, same, start, wait_for
from helpers.small_run import iteration, save, start_run, validate

from util.checkpoint import resume
from util.config import load_config
from util.runtime.errors import RunStopped, UserError
from util.runtime.files import atomic_write
from util.runtime.log import close_log_file, log
from util.runtime.system import release
from util.train.run import LOG

pytestmark = pytest.mark.usefixtures("console")


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
    (tmp_path / ".last.pth.host.0123456789abcdef.part").write_bytes(b"half")
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
