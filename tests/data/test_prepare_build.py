"""Preparation survives a kill at any moment, gives the same bytes and says what it needs."""

import errno
import fcntl
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

import pytest
from helpers import ROOT
from helpers.downloads import make_voc, pack, refused, run, snapshot

from util.data.prepare import jobs
from util.data.prepare.__main__ import run_prepare
from util.runtime import files as writing
from util.runtime.cli import main
from util.runtime.files import Outputs


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command line for archives of VOC and SBD with 90 images, up to `--out`."""
    root = tmp_path_factory.mktemp("archives")
    voc, sbd = make_voc(root, images=90)
    tar = pack(root / "voc.tar", voc, "VOCdevkit/VOC2012")
    tgz = pack(root / "benchmark.tgz", sbd, "benchmark_RELEASE")
    return ["voc", "--voc", str(tar), "--sbd", str(tgz), "--workers", "2", "--out"]


@pytest.fixture(scope="module")
def wanted(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes | str]:
    """The files that an undisturbed run of one process creates."""
    out = tmp_path_factory.mktemp("wanted")
    assert run(*words, out, "--workers", "1").status == 0
    return snapshot(out)


def slow_run(words: list[str], out: Path, errors: Path) -> None:
    """Run the command in its own session, slowed by 20 ms per file, so it can be interrupted."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job
    create, sys.stderr = jobs._create, errors.open("w", buffering=1)

    def slow(outputs: Outputs, job: jobs.Job) -> None:
        time.sleep(0.02)
        create(outputs, job)

    jobs._create = slow
    main(lambda: run_prepare([*words, str(out)]))


def start(words: list[str], out: Path, errors: Path) -> multiprocessing.Process:
    # fork: the imports, which take a second, are already done.
    process = multiprocessing.get_context("fork").Process(
        target=slow_run, args=(words, out, errors)
    )
    process.start()
    return process


def wait_for(done, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.002)


def kill_group(process: multiprocessing.Process, out: Path) -> None:
    """Kill a run and its workers; return when all are gone."""
    if process.is_alive():
        # Before it has its own session, it has no workers.
        own = os.getpgid(process.pid) == process.pid
        (os.killpg if own else os.kill)(process.pid, signal.SIGKILL)
    process.join()
    wait_for(lambda: is_free(out / "VOCdevkit2012"))


def is_free(out: Path) -> bool:
    """Whether no process, not even a worker, holds the lock of the folder."""
    if not out.exists():
        return True
    place = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(place)


def files(out: Path) -> list[Path]:
    found = (path for path in out.rglob("*") if path.is_file())
    return [path for path in found if path.name != ".made_by_prepare"]


def test_number_of_workers_does_not_change_a_byte(
    words: list[str], wanted: dict[str, bytes | str], tmp_path: Path
) -> None:
    for workers in ("2", "5"):
        assert run(*words, tmp_path / workers, "--workers", workers).status == 0
        assert snapshot(tmp_path / workers) == wanted
    assert len(wanted) == 90 * 2 + 3


def test_run_completes_what_twenty_kills_at_random_moments_left(
    words: list[str], wanted: dict[str, bytes | str], tmp_path: Path
) -> None:
    rng, out, counts = random.Random(0), tmp_path / "out", [0]
    for _ in range(20):
        process = start(words, out, tmp_path / "errors")
        goal = counts[-1] + rng.randrange(15)
        wait_for(lambda goal=goal, run=process: len(files(out)) >= goal or not run.is_alive())
        time.sleep(rng.uniform(0, 0.02))
        kill_group(process, out)
        counts.append(len(files(out)))
        for name, content in snapshot(out).items():
            assert name.endswith(".part") or content == wanted[name]
    assert len({count for count in counts if 0 < count < len(wanted)}) > 5
    assert run(*words, out).status == 0
    assert snapshot(out) == wanted


def test_workers_end_when_their_parent_is_killed(
    words: list[str], wanted: dict[str, bytes | str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start(words, out, tmp_path / "errors")
    wait_for(lambda: len(files(out)) > 5)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    wait_for(lambda: is_free(out / "VOCdevkit2012"))
    assert run(*words, out).status == 0
    assert snapshot(out) == wanted


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_ends_a_run_with_one_line_and_complete_files(
    workers: str, words: list[str], wanted: dict[str, bytes | str], tmp_path: Path
) -> None:
    out, errors = tmp_path / "out", tmp_path / "errors"
    process = start([*words[:-1], "--workers", workers, "--out"], out, errors)
    wait_for(lambda: len(files(out)) > 5)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    process.join()
    lines = [line for line in errors.read_text().splitlines() if not line.startswith("warning: ")]
    assert process.exitcode == 130 and [line for line in lines if line] == ["interrupted"]
    made = snapshot(out)
    assert 5 < len(made) < len(wanted) and made.items() <= wanted.items()


def test_killed_worker_gives_one_line_and_the_next_run_continues(
    words: list[str], wanted: dict[str, bytes | str], tmp_path: Path, monkeypatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "_create", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        result = run(*words, tmp_path)
    assert result.status == 1
    assert result.err.splitlines()[-1].startswith("stopped: a worker process was killed")
    assert run(*words, tmp_path).status == 0
    assert snapshot(tmp_path) == wanted


def test_second_run_in_the_same_folder_is_refused_while_the_first_writes(
    words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "VOCdevkit2012").mkdir()
    place = os.open(tmp_path / "VOCdevkit2012", os.O_RDONLY)
    fcntl.flock(place, fcntl.LOCK_EX)
    refused(run(*words, tmp_path), "VOCdevkit2012", "another run")
    os.close(place)
    assert run(*words, tmp_path).status == 0


def test_too_small_disk_is_refused_before_anything_is_written(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=200_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    result = run(*words, tmp_path / "out")
    refused(result, str(tmp_path / "out"), "needs about 0.", "0.2 MB are free")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_full_disk_gives_one_line_and_the_next_run_continues(
    workers: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = writing.atomic_write

    def full(path: Path, content: bytes, **how: bool) -> None:
        def half(file: BinaryIO) -> None:
            file.write(content[:40])
            raise OSError(errno.ENOSPC, "No space left on device")

        write(path, half if "000017" in path.name else content, **how)

    with monkeypatch.context() as patch:
        patch.setattr(writing, "atomic_write", full)
        result = run(*words, tmp_path, "--workers", workers)
    refused(result, "2008_000017", "No space left on device", "make room")
    assert not [path for path in files(tmp_path) if path.name.endswith(".part")]
    assert run(*words, tmp_path).status == 0


def test_first_mistake_in_order_is_named_for_any_number_of_workers(tmp_path: Path) -> None:
    voc, sbd = make_voc(tmp_path, images=90)
    for number in (70, 20, 44):
        (sbd / f"dataset/cls/2008_{number:06d}.mat").write_bytes(b"no .mat")
    for workers in ("1", "2", "6"):
        words = ["voc", "--voc", voc, "--sbd", sbd, "--out", tmp_path / workers]
        refused(run(*words, "--workers", workers), "2008_000020.mat", "download it again")


def test_command_line_prints_a_summary_or_one_error_line(tmp_path: Path) -> None:
    voc, sbd = make_voc(tmp_path)
    words = [sys.executable, "-m", "util.data.prepare", "voc", "--voc", voc, "--out", "out"]
    good = subprocess.run([*words, "--sbd", sbd], cwd=tmp_path, env=os.environ | {
        "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)  # fmt: skip
    assert good.returncode == 0 and "6 masks; 10 files created" in good.stdout
    bad = subprocess.run([*words, "--sbd", voc], cwd=tmp_path, env=os.environ | {
        "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)  # fmt: skip
    assert bad.returncode == 2 and bad.stderr.startswith("error: --sbd")
    assert bad.stderr.count("\n") == 1
