"""The cost of a run: time, and peak memory."""

import time

import torch

from util.runtime.system import resident_peak


def peak_gb(device: torch.device) -> float:
    """Return the peak since the process began, in GB: of the GPU, or of the whole process."""
    on_gpu = device.type == "cuda"
    return (torch.cuda.max_memory_allocated(device) if on_gpu else resident_peak()) / 1e9


class Cost:
    """Measures a run's iterations and validations on this rank, by the host's clock."""

    def __init__(self, device: torch.device):
        self.device, self.iterations = device, 0
        self.begin = self.last = time.monotonic()

    def step(self) -> None:
        """Record the end of an iteration."""
        self.iterations += 1
        self.last = time.monotonic()

    def taken(self) -> dict[str, float]:
        """Return the cost since the last call (or the start); call it after a validation."""
        now, train = time.monotonic(), self.last - self.begin
        taken = {
            "iterations_per_s": self.iterations / max(train, 1e-9),
            "train_s": train,
            "validation_s": now - self.last,
            "peak_memory_gb": peak_gb(self.device),  # of this rank since its process began
        }
        self.begin, self.iterations = now, 0
        return taken
