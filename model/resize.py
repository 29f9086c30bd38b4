"""Small operations on maps: the published system's three ways to resize, tokens, precision.

All three take `(x [N,C,h,w], size=(H, W))`. Only the first aligns corners. Masks that must stay 0
and 1 are resized with `nearest`.
"""

from functools import partial

import torch
from mmseg.ops import resize
from torch import Tensor

bilinear_ac = partial(resize, mode="bilinear", align_corners=True, warning=False)
bilinear = partial(resize, mode="bilinear", align_corners=False, warning=False)
nearest = partial(resize, mode="nearest", warning=False)


def grid_size(x: Tensor) -> tuple[int, int]:
    """Return height and width of a map [...,h,w]."""
    height, width = x.shape[-2:]
    return height, width


def to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return tokens [B,N,C], N = h * w, as a map [B,C,h,w]: a channels-last view of the memory."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def to_tokens(x: Tensor) -> Tensor:
    """Return a map [B,C,h,w] as tokens [B,N,C]."""
    return x.flatten(2).transpose(1, 2)


def at_least_float32(x: Tensor) -> Tensor:
    """Return x in float32 if its type is narrower (under `torch.autocast`); float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def autocast_disabled(x: Tensor) -> torch.autocast:
    """Return a context, on the device of x, whose products keep the type of their factors."""
    return torch.autocast(x.device.type, enabled=False)
