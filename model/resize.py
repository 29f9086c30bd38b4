"""The three ways in which the published system resizes, each under one name.

All take `(x [N,C,h,w], size=(H, W))`. Only the first aligns corners. Masks that must stay 0 and 1
are resized with `nearest`.
"""

from functools import partial

from mmseg.ops import resize
from torch import Tensor

bilinear_ac = partial(resize, mode="bilinear", align_corners=True, warning=False)
bilinear = partial(resize, mode="bilinear", align_corners=False, warning=False)
nearest = partial(resize, mode="nearest", warning=False)


def grid_size(x: Tensor) -> tuple[int, int]:
    """Return height and width of a map [...,h,w]."""
    height, width = x.shape[-2:]
    return height, width
