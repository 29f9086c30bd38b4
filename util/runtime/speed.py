"""Options that make a run faster and may change its last digits; all off by default.

What each gave where is in docs/performance.md, and what it may change in docs/deviations.md.
"""

import os
from contextlib import AbstractContextManager
from functools import partial

import torch

from model import AMFormer
from util.runtime.errors import UserError

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The block in which convolutions and products run in `precision`."""
    return torch.autocast(device.type, _TYPES[precision], enabled=precision != "fp32")


def set_kernels(cfg) -> None:
    """What of the config chooses kernels, in either stage.

    `Train.seed_deterministic`: those whose sums are in one order, or an error where none is; cuBLAS
    reads its setting at the first product on a GPU. `Speed.tf32` off: off in convolutions, too.
    """
    if cfg.Train.seed_deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(cfg.Train.seed_deterministic)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = cfg.Speed.tf32
    torch.backends.cudnn.benchmark = cfg.Speed.cudnn_benchmark


def set_up(model: AMFormer, cfg, device: torch.device) -> list[str]:
    """Applies `Speed` to a model on its device.

    Returns:
        One line for each option that is on, for the log.

    Raises:
        UserError: an option would have no effect on this device.
    """
    set_kernels(cfg)
    speed = cfg.Speed
    if device.type != "cuda":
        for name in ("tf32", "cudnn_benchmark"):
            if getattr(speed, name):
                raise UserError(f"Speed.{name} has no effect on the CPU; remove it")
        for name, section in (("Train", cfg.Train), ("Eval", cfg.Eval)):
            if section.precision == "fp16":
                raise UserError(f"{name}.precision fp16 is for GPUs; on the CPU write bf16")
    if speed.channels_last:
        model.encoder.to(memory_format=torch.channels_last)
    if speed.compile:
        # Each shape by itself: inductor fails on the pyramid's stages with shapes left open.
        compiled = partial(torch.compile, dynamic=False)
        model.encoder.wrap = compiled
        model.object_mining.scales = compiled(model.object_mining.scales)
    options = vars(speed) | {
        "Train.precision": cfg.Train.precision,
        "Eval.precision": cfg.Eval.precision,
        "Train.accumulate": cfg.Train.accumulate,
    }
    return [
        f"{name if '.' in name else f'Speed.{name}'}: {value}"
        for name, value in options.items()
        if value is True or value not in (False, "fp32", 1)
    ]
