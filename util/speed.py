"""Options that make a run faster and may change its last digits; all are off by default.

docs/performance.md has the measured effect of each, docs/deviations.md what each may change.
"""

import os
from contextlib import AbstractContextManager
from functools import partial

import torch

from model import System
from util.config import Config
from util.runtime.errors import UserError

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """Return a context in which convolutions and matrix products run in `precision`."""
    return torch.autocast(device.type, _TYPES[precision], enabled=precision != "fp32")


def set_kernels(cfg: Config) -> None:
    """Apply the keys that choose kernels; both training stages call this.

    With `Train.seed_deterministic`, PyTorch takes kernels that sum in a fixed order, or raises an
    error if there is none. cuBLAS reads its setting at the first product on a GPU. `Speed.tf32`
    off also means off in convolutions, where PyTorch has it on.
    """
    if cfg.Train.seed_deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(cfg.Train.seed_deterministic)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = cfg.Speed.tf32
    torch.backends.cudnn.benchmark = cfg.Speed.cudnn_benchmark


def set_up(model: System, cfg: Config, device: torch.device) -> list[str]:
    """Apply `Speed` to a model on its device; return a line for each option that is on.

    Raises `UserError` if an option would have no effect on this device.
    """
    set_kernels(cfg)
    if device.type != "cuda":
        _refuse_gpu_options(cfg)
    if cfg.Speed.channels_last:
        # PyTorch's type hints lack this overload.
        model.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if cfg.Speed.compile:
        # Each shape by itself: inductor fails on the pyramid's stages with open shapes.
        model.compile_with(partial(torch.compile, dynamic=False))
    options = {f"Speed.{name}": value for name, value in vars(cfg.Speed).items()} | {
        "Train.precision": cfg.Train.precision,
        "Eval.precision": cfg.Eval.precision,
        "Train.accumulate": cfg.Train.accumulate,
    }
    # `is True` first: True equals 1, the neutral value of Train.accumulate.
    return [
        f"{name}: {value}"
        for name, value in options.items()
        if value is True or value not in (False, "fp32", 1)
    ]


def _refuse_gpu_options(cfg: Config) -> None:
    for name in ("tf32", "cudnn_benchmark"):
        if getattr(cfg.Speed, name):
            raise UserError(f"Speed.{name} has no effect on the CPU; remove it")
    for name, section in (("Train", cfg.Train), ("Eval", cfg.Eval)):
        if section.precision == "fp16":
            raise UserError(f"{name}.precision fp16 is for GPUs; on the CPU write bf16")
