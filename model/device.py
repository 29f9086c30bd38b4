"""Two ways to compute the same: a CPU waits for operations, an accelerator for launches.

On a CPU, positions that a mask hides are left out, image by image, and blocks fit its cache. On any
other device every shape is known beforehand, whole batches are computed at once, in blocks that fit
its memory, and no value is read back to the host.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_CPU_BLOCK = 2**22  # scores of a block on a CPU: 16 MB in float32
_BLOCKS = 64  # on a GPU, the scores of a block take this part of its memory
_OTHER_BLOCK = 2**28  # scores of a block on a device that does not tell its memory
_forced = False


def is_accelerator(x: Tensor) -> bool:
    """Whether launches are saved where x lies, rather than operations."""
    return _forced or x.device.type != "cpu"


@contextmanager
def as_on_accelerator() -> Iterator[None]:
    """Compute on the CPU as on an accelerator: to test that, and to count its launches."""
    global _forced
    before, _forced = _forced, True
    try:
        yield
    finally:
        _forced = before


def scores_per_block(x: Tensor) -> int:
    """Return how many scores, of each of two positions, may be computed at a time."""
    if not is_accelerator(x):
        return _CPU_BLOCK
    if x.device.type != "cuda":
        return _OTHER_BLOCK
    memory = torch.cuda.get_device_properties(x.device).total_memory
    return memory // (_BLOCKS * x.element_size())
