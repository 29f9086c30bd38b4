"""Whether a device computes what the CPU computes, and can talk to other ranks."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, distributed

from model import AMFormer
from model.device import as_on_accelerator
from util.bench.measure import episodes
from util.config import Config
from util.features import encode
from util.runtime.distributed import Ranks
from util.runtime.errors import UserError
from util.train.adversarial import AdversarialTrainer

SIZE, TOLERANCE = (129, 129), 1e-7  # pixels; error over largest value, in float64


def check(gpus: int) -> str:
    """Compare the device with the CPU and return its name; on the CPU (0), its own two ways.

    Raises `UserError` if the results differ or a collective operation fails.
    """
    device = torch.device("cuda" if gpus else "cpu")
    with _one_rank(gpus):
        ones = torch.ones(3, device=device)
        distributed.all_reduce(ones)
        if ones.tolist() != [1, 1, 1]:
            raise UserError(f"{device}: an all-reduce of one rank changed its values")
    wanted = _results(torch.device("cpu"))
    with nullcontext() if gpus else as_on_accelerator():
        found = _results(device)
    for name, value in wanted.items():
        error = (found[name].cpu() - value).abs().max() / value.abs().max().clamp(min=1e-12)
        if not error <= TOLERANCE:
            what = f"{name} differs from the CPU's by {error:.1e} of the largest value"
            raise UserError(f"{device}: {what}; nothing is measured")
    if gpus:
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


@contextmanager
def _one_rank(gpus: int) -> Iterator[None]:
    backend = "nccl" if gpus else "gloo"
    try:
        with TemporaryDirectory() as folder:
            place = (Path(folder) / "ranks").as_uri()
            distributed.init_process_group(backend, init_method=place, rank=0, world_size=1)
            yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"a collective operation of one rank fails ({reason})") from None
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _results(device: torch.device) -> dict[str, Tensor]:
    """Return a prediction and the losses and gradients of a step of G, without dropout."""
    torch.manual_seed(0)
    model = AMFormer("resnet50", 15, 1).double()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout | torch.nn.Dropout2d):
            module.p = 0.0
    trainer = AdversarialTrainer(model.to(device), Config(), 1, Ranks(0, 1, device))
    batch = episodes(SIZE, 1, 2, device)
    batch = replace(batch, query=batch.query.double(), support=batch.support.double())
    losses = trainer.generator_step(encode(model.encoder, batch), weight=0.1)
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    with torch.no_grad():
        final = model.eval()(batch.query, batch.support, batch.support_mask).final
    return losses | {"gradients": torch.cat(gradients), "final": final}
