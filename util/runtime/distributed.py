"""Ranks: the place of this process in a run, and the few collective operations it takes part in.

`torchrun` starts one process per GPU and sets the environment variables that identify it. A run of
one process needs neither a launcher nor a process group: every function here is then a no-op.

    python -m util.runtime.distributed GPUS    # exit status 2 if this machine has fewer GPUs
"""

from util.runtime.cli import Parser, main
from util.runtime.errors import RunStopped, UserError

if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument("gpus", type=int, metavar="GPUS", help="number of GPUs; 0: the CPU")
    main(parser.parse_args)  # before torch, which takes seconds to import

import io
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

LOST = 3  # status of a rank that lost another one: `util.runtime.launch` looks for the cause there


@dataclass(frozen=True)
class Ranks:
    """The place of this process among the `world` processes of the run."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0


class LostRank(RunStopped):
    """Another rank died or cannot be reached; the launcher reports which."""

    status = LOST


def init(gpus: int) -> Ranks:
    """Join the process group of the launcher's environment, with `gpus` of this machine (0: CPU).

    Raises `UserError` if the machine has fewer GPUs, or the launcher started another number of
    processes.
    """
    rank, world = _number("RANK", 0), _number("WORLD_SIZE", 1)
    local_rank, local_world = _number("LOCAL_RANK", 0), _number("LOCAL_WORLD_SIZE", world)
    if rank >= world or (world > 1 and not os.environ.get("MASTER_ADDR")):
        what = f"RANK={rank} and WORLD_SIZE={world} are set, but no launcher is at work"
        raise UserError(f"{what}; unset RANK WORLD_SIZE LOCAL_RANK, or start it with train.sh")
    check_gpus(gpus)
    if gpus and gpus != local_world:
        remedy = f"start it with train.sh or torchrun --nproc_per_node={gpus}"
        raise UserError(f"GPUS {gpus} need {gpus} processes, this run has {local_world}; {remedy}")
    device = torch.device("cuda", local_rank) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    if world > 1:
        backend, own = ("nccl", device) if gpus else ("gloo", None)
        with _together():
            distributed.init_process_group(backend, rank=rank, world_size=world, device_id=own)
    return Ranks(rank, world, device)


def _number(name: str, default: int) -> int:
    """Return a number of the launcher's environment."""
    text = os.environ.get(name) or str(default)
    if not text.isdecimal():
        raise UserError(f"{name}={text} in the environment is no rank; unset it")
    return int(text)


def check_gpus(gpus: int) -> None:
    """Raise `UserError` if this machine has fewer than `gpus` GPUs."""
    there = torch.cuda.device_count()
    if not 0 <= gpus <= there:
        most = f" to {there}" if there else ""
        raise UserError(f"GPUS {gpus}: this machine has {there}; give 0 (the CPU){most}")


@contextmanager
def _together() -> Iterator[None]:
    """Run a collective operation: an error in it means that another rank is gone."""
    try:
        yield
    except RuntimeError as error:  # gloo raises no more specific type
        reason = str(error).splitlines()[0]
        raise LostRank(f"rank {os.environ['RANK']} lost another rank ({reason})") from None


def count() -> int:
    """Return how many processes the run has."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum a tensor over the ranks, in place."""
    if distributed.is_initialized():
        with _together():
            distributed.all_reduce(tensor)
    return tensor


def any_rank(flags: Iterable[bool], ranks: Ranks) -> list[bool]:
    """Return for each flag whether it is set on any rank; every rank has to call this."""
    counts = torch.tensor([float(flag) for flag in flags], device=ranks.device)
    return all_reduce_sum(counts).bool().tolist()


def mean_over_ranks(tensor: Tensor, ranks: Ranks) -> Tensor:
    """Return the mean of a tensor over the ranks, in float64; the tensor is unchanged."""
    return all_reduce_sum(tensor.to(torch.float64, copy=True)) / ranks.world


def reduce_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the ranks, in one all-reduce of one flat tensor.

    A gradient missing on some ranks counts as zero there; one missing on all ranks stays missing.
    All ranks have to pass the same parameters in the same order.
    """
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    if not distributed.is_initialized() or not parameters:
        return
    has = [float(parameter.grad is not None) for parameter in parameters]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([parameters[0].new_tensor(has), *(g.flatten() for g in gradients)])
    all_reduce_sum(flat)
    counts = has if all(has) else flat[: len(parameters)].tolist()
    flat /= distributed.get_world_size()
    chunks = flat[len(parameters) :].split([parameter.numel() for parameter in parameters])
    for parameter, chunk, count in zip(parameters, chunks, counts, strict=True):
        if count:
            parameter.grad = chunk.view_as(parameter).to(parameter.dtype)


def gather(value: Any) -> list[Any]:
    """Return the values of all ranks, in rank order, on every rank.

    They are tensors, numbers, text and containers of them: nothing else is accepted from a peer.
    """
    if not distributed.is_initialized():
        return [value]
    file = io.BytesIO()
    torch.save(value, file)
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    content = torch.frombuffer(file.getbuffer(), dtype=torch.uint8).to(device)
    sizes = list(torch.zeros(distributed.get_world_size(), 1, dtype=torch.long, device=device))
    with _together():
        distributed.all_gather(sizes, torch.tensor([len(content)], device=device))
        padded = nn.functional.pad(content, (0, int(max(sizes)) - len(content)))
        contents = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(contents, padded)
    files = [c[: int(n)].cpu().numpy() for c, n in zip(contents, sizes, strict=True)]
    return [torch.load(io.BytesIO(f.tobytes()), weights_only=True) for f in files]


def from_main(read: Callable[[], bytes]) -> bytes:
    """Return on every rank what `read()` returns on rank 0; every rank has to call this."""
    if not distributed.is_initialized():
        return read()
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    content = bytearray(read() if distributed.get_rank() == 0 else b"")
    size = torch.tensor([len(content)], device=device)
    with _together():
        distributed.broadcast(size, src=0)
        content = content or bytearray(int(size))
        values = torch.frombuffer(content, dtype=torch.uint8).to(device)
        distributed.broadcast(values, src=0)
    return values.cpu().numpy().tobytes()


def broadcast_parameters(module: nn.Module) -> None:
    """Copy the parameters and buffers of rank 0 to every rank."""
    if distributed.is_initialized():
        with _together():
            for tensor in module.state_dict().values():
                distributed.broadcast(tensor, src=0)


@contextmanager
def main_first(ranks: Ranks) -> Iterator[None]:
    """Let the main rank run the block first: it writes a file that the other ranks read."""
    if not ranks.is_main:
        any_rank([True], ranks)  # waits for all ranks
    yield
    if ranks.is_main:
        any_rank([True], ranks)


def close() -> None:
    """Leave the process group."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(lambda: check_gpus(parser.parse_args().gpus))
