"""A user's mistake is one line and status 2 wherever it is met, and a closed pipe is no fault."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import ROOT
from helpers.entries import call
from helpers.trials import lay
from PIL import Image

import train_base
from util.data import lists
from util.data.batches import FixedBatches
from util.data.image_io import read_label
from util.data.loading import SkippingDataset, load_batches
from util.runtime.cli import main
from util.runtime.errors import UserError
from util.runtime.parallel import on_processes


class Files(SkippingDataset[object]):
    """A data set whose sample 1 cannot be read, for one of several reasons."""

    def __init__(self, reason: str, path: Path) -> None:
        super().__init__(skip=False)
        self.reason, self.path = reason, path

    def make(self, index: int) -> object:
        if index == 1:
            read(self.reason, self.path)
        return index


def read(reason: str, path: Path) -> object:
    if reason == "a mask":
        return read_label(path / "rgb.png")
    if reason == "a folder":
        return open(path)
    return open(path / "gone.npy")


def in_this_process(reason: str, path: Path) -> None:
    read(reason, path)


def in_pool(reason: str, path: Path) -> None:
    list(on_processes(lambda _: read(reason, path), range(40), 2))


def in_loader_worker(reason: str, path: Path) -> None:
    list(load_batches(Files(reason, path), FixedBatches([[0], [1], [2]]), 1))


def in_loader_without_workers(reason: str, path: Path) -> None:
    list(load_batches(Files(reason, path), FixedBatches([[0], [1], [2]]), 0))


def in_thread(reason: str, path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: read(reason, path), range(3)))


PLACES = [in_this_process, in_pool, in_loader_worker, in_loader_without_workers, in_thread]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("a mask", "rgb.png: is a PNG of mode RGB; a mask must be"),
        ("a folder", "Is a directory"),
        ("a file", "gone.npy"),
    ],
)
def test_mistake_is_one_line_and_status_2_in_every_process_and_thread(
    reason: str, words: str, place, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "rgb.png")
    with pytest.raises(SystemExit) as stop:
        main(lambda: place(reason, tmp_path))
    error = capfd.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1, error
    assert words in error and ";" in error and "Traceback" not in error, error
    assert len(error) < 300


@pytest.mark.parametrize("copies", [1, 3])  # 3: more than one worker process takes them
def test_trial_22_rgb_masks_are_one_line_in_training_and_in_lists(
    copies: int, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    folder = lay("22_rgb_masks_traceback", tmp_path / "trial")
    for kind in ("images", "masks"):
        for path in sorted((folder / "data" / kind).iterdir()):
            for number in range(1, copies):
                target = path.with_name(f"{path.stem}_{number}{path.suffix}")
                target.write_bytes(path.read_bytes())
    config = str(folder / "fold.yaml")
    words = ["--config", config, "--gpus", "0", "Base.max_iterations=1", "Base.batch_size=2"]
    for entry, given in ((train_base.train_base, words), (lists._main, [config])):
        assert call(entry, *given, config=False) == 2
        [line] = [x for x in capfd.readouterr().err.splitlines() if not x.startswith("reading")]
        assert line.startswith("error: ") and "photo_0.png: is a PNG of mode RGB" in line


PRINTS = """
import sys
from util.runtime.cli import main
from util.runtime.log import configure, log

def entry():
    configure()
    for number in range(100_000):
        {line}

main(entry)
"""
DEMO = "config/demo/demo_split0_lite0.yaml"


def behind_head(words: list[str], both: bool = False, **environment: str) -> tuple[int, str]:
    """Run a command whose output's reader reads nothing; return its exit status and stderr."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, *words],
        stdout=write,
        stderr=write if both else subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), **environment},
        text=True,
    )
    os.close(write)
    return done.returncode, done.stderr or ""


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["-c", PRINTS.format(line="print(number)")], 141),
        (["-c", PRINTS.format(line="log.info(number)")], 141),
        (["-m", "util.config", DEMO, "--get", "Train.lr"], 141),
        (["predict.py", "--help"], 0),  # argparse ignores it
        (["train.py", "--help"], 0),
    ],
    ids=["print", "log", "value", "help", "help of check_first"],
)
def test_command_whose_reader_has_gone_ends_in_silence(words: list[str], status: int) -> None:
    assert behind_head(words) == (status, "")


def test_mistake_keeps_its_status_when_nobody_reads_it() -> None:
    words = ["-m", "util.config", "nowhere.yaml", "--get", "Train.lr"]
    assert behind_head(words, both=True)[0] == 2


def test_broken_pipe_of_our_own_keeps_its_traceback() -> None:
    def entry() -> None:
        read, write = os.pipe()
        os.close(read)
        try:
            os.write(write, b"x")
        finally:
            os.close(write)

    with pytest.raises(BrokenPipeError):
        main(entry)


@pytest.mark.parametrize("device", ["mps", "xpu", "meta", "cuda:99", "gpu", "cpu:x", None])
def test_device_that_is_absent_or_unsupported_is_one_line(
    device: str | None, small_run: SimpleNamespace
) -> None:
    from util.predict import Predictor

    with pytest.raises(UserError, match="; write cpu") as error:
        Predictor.from_checkpoint(small_run.checkpoint, device)
    assert "\n" not in str(error.value)
