"""The loss that all systems share."""

import torch.nn.functional as F
from torch import Tensor

from model.constants import IGNORE
from model.resize import bilinear_ac


def cross_entropy(scores: Tensor, target: Tensor, pixels: Tensor) -> Tensor:
    """Return the cross entropy of scores [B,C,h,w], resized to the target [B,S,S].

    It is summed over labeled pixels (not 255) and divided by `pixels`: their number, or on several
    ranks the mean number per rank.
    """
    if scores.shape[-2:] != target.shape[-2:]:
        scores = bilinear_ac(scores, target.shape[-2:])
    return F.cross_entropy(scores, target, ignore_index=IGNORE, reduction="sum") / pixels
