"""Fault-tolerant loading: unreadable samples, dying workers, errors that cross processes."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT
from helpers.processes import FORKSERVER, on_processes
from helpers.runs import at_work, wait_for
from PIL import Image
from torch import Tensor

from util.data import loading
from util.data.batches import Batches
from util.data.image_io import UnreadableFile
from util.data.loading import (
    MAX_ATTEMPTS,
    REPLACEMENT_STRIDE,
    SkippingDataset,
    load_batches,
    skipped_by_all_ranks,
)
from util.data.source import READ_ATTEMPTS, Source
from util.data.tables import load_table
from util.runtime import parallel
from util.runtime.cli import main
from util.runtime.distributed import Ranks
from util.runtime.errors import RunStopped, UserError
from util.runtime.log import configure
from util.runtime.stop import Stop

ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def console() -> None:
    """Log to the console as a command does."""
    configure()


# --- unreadable samples --------------------------------------------------------------------------


class Damaged(SkippingDataset[Tensor]):
    """The number of each sample; some cannot be read."""

    def __init__(self, damaged: set[int], *, skip: bool) -> None:
        super().__init__(skip)
        self.damaged = damaged

    def make(self, index: int) -> Tensor:
        if index in self.damaged:
            raise UnreadableFile(f"no {index}")
        return torch.tensor(index)


def test_unreadable_sample_is_replaced_counted_and_logged(capsys: pytest.CaptureFixture) -> None:
    stride = REPLACEMENT_STRIDE
    samples = Damaged({5, 6, 6 + stride}, skip=True)
    assert [samples[i].item() for i in (4, 5, 6)] == [4, 5 + stride, 6 + 2 * stride]
    assert samples.skipped == 3
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "warning: sample 5: no 5; skipped, 1 so far" and len(lines) == 3
    samples.damaged |= {9 + stride * attempt for attempt in range(MAX_ATTEMPTS)}
    with pytest.raises(UnreadableFile, match=f"it and {MAX_ATTEMPTS - 1} replacements"):
        samples[9]


def test_unreadable_sample_stops_the_run_if_it_may_not_be_skipped() -> None:
    with pytest.raises(UnreadableFile, match="^no 5$"):
        Damaged({5}, skip=False)[5]


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """A data set of 40 images; on so many masks a pool of two workers is started."""
    for folder in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    ids = [f"image{i:02d}" for i in range(40)]
    for image_id in ids:
        Image.new("RGB", (9, 5)).save(tmp_path / f"JPEGImages/{image_id}.jpg")
        Image.fromarray(np.ones((5, 9), np.uint8)).save(
            tmp_path / f"SegmentationClassAug/{image_id}.png"
        )
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("\n".join(ids))
    return Source(tmp_path, "pascal", "val")


def test_image_and_mask_are_read_again_before_they_count_as_unreadable(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, attempts = Source.decode, []

    def fail(self: Source, image_id: str) -> tuple[np.ndarray, np.ndarray]:
        attempts.append(image_id)
        if len(attempts) < READ_ATTEMPTS:
            raise UnreadableFile("a network drive")
        return decode(self, image_id)

    monkeypatch.setattr(Source, "decode", fail)
    assert source.load("image03")[0].ndim == 3 and attempts == ["image03"] * READ_ATTEMPTS

    def always_fail(*_: object) -> None:
        attempts.append("again")
        raise UnreadableFile("a network drive")

    attempts.clear()
    monkeypatch.setattr(Source, "decode", always_fail)
    with pytest.raises(UnreadableFile, match="a network drive"):
        source.load("image03")
    assert len(attempts) == READ_ATTEMPTS


def add_skipped(ranks: Ranks) -> int:
    samples = Damaged(set(), skip=True)
    samples.count_skipped(ranks.rank + 1, "a test")
    return skipped_by_all_ranks(samples, ranks)


def test_skipped_samples_of_all_ranks_are_added(tmp_path: Path) -> None:
    assert on_processes(2, add_skipped, tmp_path) == [3, 3]


# --- errors that cross processes -----------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_error_in_a_loader_worker_keeps_its_type_and_its_one_line(workers: int) -> None:
    batches = load_batches(Damaged({4}, skip=False), Batches(8, 2, 1, ALONE), workers)
    assert [next(batches).tolist() for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(UserError, match="^no 4$") as error:
        next(batches)
    assert type(error.value) is UnreadableFile


def load_in_workers(source: Source) -> None:
    class Images(SkippingDataset[int]):
        def make(self, index: int) -> int:
            return len(source.load(f"image{index:02d}"))

    list(load_batches(Images(False), Batches(40, 4, 1, ALONE), workers=1))


def load_in_pool(source: Source) -> None:
    load_table(source, source.root / "lists")


@pytest.mark.parametrize("load", [load_in_workers, load_in_pool])
def test_damaged_mask_read_by_another_process_is_one_line_and_status_2(
    load: Callable[[Source], None],
    source: Source,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(parallel, "cores", lambda: 2)
    path = source.label_path("image25")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(SystemExit) as end:
        main(lambda: load(source))
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and lines[-1].startswith(f"error: {path}: cannot be read as a mask")
    assert not any("Traceback" in line for line in lines)


# --- dying workers -------------------------------------------------------------------------------


class Deadly(SkippingDataset[Tensor]):
    """The number of each sample; some kill the worker process that asks for them."""

    def __init__(self, deadly: set[int], *, skip: bool, once: Path | None = None) -> None:
        super().__init__(skip)
        self.deadly, self.once = deadly, once

    def make(self, index: int) -> Tensor:
        if index in self.deadly and not (self.once and self.once.exists()):
            if self.once:
                self.once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.tensor(index)


def resumed_batches(dataset: Deadly) -> list[list[int]]:
    """The batches of a run that resumes at iteration 1."""
    batches = Batches(8, 2, 1, ALONE)
    batches.start = 1
    return [batch.tolist() for batch in load_batches(dataset, batches, workers=2)]


def test_dead_worker_costs_no_sample(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    before = signal.getsignal(signal.SIGCHLD)
    deadly_once = Deadly({4}, skip=False, once=tmp_path / "died")
    assert resumed_batches(deadly_once) == [[2, 3], [4, 5], [6, 7]]
    error = capsys.readouterr().err
    assert "warning: iteration 2: DataLoader worker (pid" in error and "new workers" in error
    assert signal.getsignal(signal.SIGCHLD) == before  # no training step is interrupted


def test_batch_that_kills_every_worker_stops_the_run() -> None:
    with pytest.raises(RunStopped, match="iteration 2: 2 workers died on its batch"):
        resumed_batches(Deadly({4}, skip=False))


def test_batch_that_kills_every_worker_is_replaced_and_counted_with_skip() -> None:
    dataset, stride = Deadly({4}, skip=True), REPLACEMENT_STRIDE
    assert resumed_batches(dataset) == [[2, 3], [4 + stride, 5 + stride], [6, 7]]
    assert dataset.skipped == 2


class Slow(SkippingDataset[Tensor]):
    """Samples that take minutes; each creates a file in a folder when it starts."""

    def __init__(self, folder: Path) -> None:
        super().__init__(skip=False)
        self.folder = folder

    def make(self, index: int) -> Tensor:
        (self.folder / str(index)).touch()
        time.sleep(300)
        return torch.tensor(index)


def test_worker_that_is_alive_and_silent_ends_the_run_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "SILENCE", 2)
    with pytest.raises(RunStopped, match="no batch has come for . s, and no .*worker has"):
        next(load_batches(Slow(tmp_path), Batches(8, 2, 1, ALONE), workers=2))


def test_stop_request_ends_the_wait_for_a_batch(tmp_path: Path) -> None:
    with Stop() as stop:
        stop.requested = True
        begin = time.monotonic()
        assert list(load_batches(Slow(tmp_path), Batches(8, 2, 1, ALONE), workers=2)) == []
        assert time.monotonic() - begin < 30


SMALL_SHM = """
import sys, torch
from util.data import Batches
from util.data.loading import SkippingDataset, load_batches
from util.runtime import distributed, main
class Large(SkippingDataset):
    def make(self, index): return torch.zeros(10_000_000)
batches = Batches(8, 1, 1, distributed.Ranks(0, 1, torch.device("cpu")))
options = {"collate_fn": list} if sys.argv[1] == "handed over" else {}
main(lambda: [None for _ in load_batches(Large(False), batches, workers=1, **options)])
"""


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="needs root to mount a tmpfs")
@pytest.mark.parametrize("kind", ["handed over", "collated"])
def test_small_shared_memory_of_a_container_ends_the_run_with_the_reason(kind: str) -> None:
    mount = 'mount -t tmpfs -o size=32m tmpfs /dev/shm && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", mount, "sh", sys.executable, "-c", SMALL_SHM, kind]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    if "unshare" in process.stderr:
        pytest.skip("needs a machine that lets root make a mount namespace")
    last = process.stderr.splitlines()[-1]
    assert process.returncode == 1, process.stderr
    assert last.startswith("stopped: ") and "more than 34 MB (docker run --shm-size" in last


def read_slowly(folder: Path) -> None:
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)
    next(load_batches(Slow(folder), Batches(8, 2, 1, ALONE), workers=2))


@pytest.fixture
def slow_run(tmp_path: Path) -> Iterator[multiprocessing.process.BaseProcess]:
    """A process whose two loader workers are in the middle of a sample."""
    process = FORKSERVER.Process(target=read_slowly, args=(tmp_path,))
    process.start()
    wait_for(lambda: len(list(tmp_path.iterdir())) == 2, process)
    yield process
    if at_work(process):
        os.killpg(process.pid, signal.SIGKILL)


def test_workers_end_with_a_killed_run_also_in_the_middle_of_a_sample(
    slow_run: multiprocessing.process.BaseProcess,
) -> None:
    assert len(at_work(slow_run)) == 3
    slow_run.kill()
    end = time.monotonic() + 20
    while at_work(slow_run) and time.monotonic() < end:
        time.sleep(0.05)
    assert not at_work(slow_run)
