"""What a run costs: time, and memory at its peak."""

import re
import time
from pathlib import Path

import torch

GB = 1e9


def resident_peak() -> int:
    """Bytes of this process at its peak. Not `ru_maxrss`, which starts from the parent's peak."""
    [line] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) * 1024


def peak_gb(device: torch.device) -> float:
    """The peak since the process began, in GB: of the GPU's memory, or of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GB
    return resident_peak() / GB


class Cost:
    """Time of a training run's iterations and of its validations, on this rank."""

    def __init__(self, device: torch.device):
        self.device, self.iterations = device, 0
        self.begin = self.last = time.monotonic()

    def step(self) -> None:
        """An iteration has ended."""
        self.iterations += 1
        self.last = time.monotonic()

    def taken(self) -> dict[str, float]:
        """Called at the end of a validation: what it and the iterations before it took.

        Returns:
            `iterations_per_s`, `train_s` and `validation_s` since the call before (or since the
            start), and `peak_memory_gb` of this rank since its own start.
        """
        now, train = time.monotonic(), self.last - self.begin
        taken = {
            "iterations_per_s": self.iterations / max(train, 1e-9),
            "train_s": train,
            "validation_s": now - self.last,
            "peak_memory_gb": peak_gb(self.device),
        }
        self.begin, self.iterations = now, 0
        return taken
