"""What stays in float32 when the rest runs in bfloat16 or float16 (`torch.autocast`)."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Return x in float32 if its type is narrower; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def autocast_disabled(x: Tensor) -> torch.autocast:
    """Return a context, on the device of x, whose products keep the type of their factors."""
    return torch.autocast(x.device.type, enabled=False)
