"""Runs a function of a test on several gloo processes of this machine."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing

from util.runtime import distributed
from util.runtime.distributed import Ranks

# Processes are forked from one that has done the imports, several seconds of them, and no more.
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["train", "train_base", "tensorboardX", "mmcv.cnn", "pytest"])


def _start(rank: int, environment: dict, world: int, port: int, body, folder: Path) -> None:
    os.environ.update(environment)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1"
    )
    os.environ["MASTER_PORT"] = str(port)
    torch.set_num_threads(1)
    ranks = distributed.init(0)
    try:
        torch.save(body(ranks), folder / f"{rank}.pth")
    finally:
        distributed.close()


def on_processes(world: int, body: Callable[[Ranks], Any], folder: Path) -> list:
    """What `body(ranks)` returns on each rank, in their order; it must be a module's function."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = dict(os.environ), world, port, body, folder
    multiprocessing.start_processes(_start, words, nprocs=world, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pth") for rank in range(world)]
