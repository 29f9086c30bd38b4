"""Tiny runs of train.py as processes, which a test disturbs by a signal or a fault."""

import multiprocessing
import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from helpers import ROOT
from helpers.processes import FORKSERVER
from model.base_learner import BaseLearner
from model.published import base_to_published
from util.checkpoint.file import read_checkpoint, write_checkpoint
from util.config import load_config
from util.data.demo.make import make_demo

CONFIG = ROOT / "config" / "demo" / "demo_split0_lite0.yaml"


def make_data(folder: Path) -> list[str]:
    """Make demo data and an untrained base learner.

    Returns:
        The words of a command line for 7 iterations in two epochs, with augmentation, dropout and
        steps of D.
    """
    make_demo(folder / "data", images=24, seed=0)
    words = [
        f"Data.data_root={folder}/data/VOCdevkit2012/VOC2012",
        f"Data.list_dir={folder}/lists",
        f"Method.pre_weight={folder}/base.pth",
        "Data.size=33",
        "Base.size=33",
        "Base.batch_size=2",
        "Train.batch_size=1",
        "Train.epochs=9",
        "Train.max_iterations=7",
        "Train.val_period=1",
        "Train.print_freq=1",
        "Train.feature_store=false",
        "Data.augment=true",
        "Data.missing=skip",
        "Eval.val_episodes=2",
        "Eval.absent=0",
    ]
    cfg = load_config(CONFIG, words)
    torch.manual_seed(0)
    base = BaseLearner(cfg.Method.backbone, cfg.num_base_classes)
    write_checkpoint(folder / "base.pth", state_dict=base_to_published(base.state_dict()))
    return words


def start(
    words: list[str], log: Path, *, script: str = "train.py", **environment: str
) -> BaseProcess:
    """Start a script on one CPU thread in a session of its own; its output goes to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)  # a test must not read the output of an earlier run
    process = FORKSERVER.Process(target=_run, args=(script, words, log, environment))
    process.start()
    return process


def start_ranks(words: list[str], log: Path, world: int, **more: object) -> list[BaseProcess]:
    """Start several gloo processes, see `start`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    together = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        start(words, log.with_suffix(f".{r}"), RANK=str(r), LOCAL_RANK=str(r), **together, **more)
        for r in range(world)
    ]


def _run(script: str, words: list[str], log: Path, environment: dict[str, str]) -> None:
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # of loader workers, as from a shell
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a background job of a script inherits it
    os.environ.update(environment)
    torch.set_num_threads(1)
    with log.open("w", buffering=1) as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.chdir(ROOT)
    sys.argv = [script, "--config", str(CONFIG), "--gpus", "0", *words]
    runpy.run_path(script, run_name="__main__")


def wait_for(done: Callable[[], object], process: BaseProcess, seconds: float = 600) -> None:
    """Wait until `done` returns something true, or the process has ended."""
    end = time.monotonic() + seconds
    while process.is_alive() and not done():
        assert time.monotonic() < end
        time.sleep(0.005)


def finish(process: BaseProcess, log: Path, seconds: float = 600) -> str:
    """Wait for a run that must end with status 0; return its output."""
    process.join(seconds)
    output = log.read_text()
    assert process.exitcode == 0, f"{process.exitcode}: {output}"
    return output


def at_work(process: BaseProcess) -> list[int]:
    """Return the processes of a run that have not ended, including its loader workers."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # this process has just ended
            continue
        if int(session) == process.pid and state != "Z":
            found.append(int(path.parent.name))
    return found


def same(left: Path, right: Path) -> None:
    """Assert that two checkpoints are bit-equal: model, optimizers, random states, scores."""
    a, b = read_checkpoint(left), read_checkpoint(right)
    assert a.keys() == b.keys()
    _same({key: value for key, value in a.items() if key not in ("config", "launch")}, b, "")


def _same(left: object, right: object, name: str) -> None:
    if isinstance(left, dict):
        for key, value in left.items():
            _same(value, right[key], f"{name}.{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), name
        for index, pair in enumerate(zip(left, right, strict=True)):
            _same(*pair, f"{name}[{index}]")
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right), name
    else:
        assert left == right, f"{name}: {left} and {right}"


class StopAt:
    """Stands in for `util.runtime.stop.Stop`: asks to stop from the n-th query on."""

    def __init__(self, query: int):
        self.left = query

    def __call__(self, speaks: bool) -> "StopAt":
        return self

    __enter__ = __exit__ = lambda self, *_: None

    @property
    def requested(self) -> bool:
        self.left -= 1
        return self.left < 0
