"""The losses that systems share."""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.constants import IGNORE
from model.resize import bilinear, bilinear_ac


def cross_entropy(scores: Tensor, target: Tensor, pixels: Tensor) -> Tensor:
    """Return the cross entropy of scores [B,C,h,w], resized to the target [B,S,S].

    It is summed over labeled pixels (not 255) and divided by `pixels`: their number, or on several
    ranks the mean number per rank.
    """
    if scores.shape[-2:] != target.shape[-2:]:
        scores = bilinear_ac(scores, target.shape[-2:])
    return F.cross_entropy(scores, target, ignore_index=IGNORE, reduction="sum") / pixels


def object_map(target: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a map [B,S,S] that is 1 where the query mask [B,S,S] is 1 and -1e9 elsewhere."""
    return torch.where(target == 1, 1.0, -1e9).to(dtype)


def divergence(correlation: Tensor, wanted: Tensor) -> Tensor:
    """Return KL(t || s) of each episode [B], summed over positions.

    s is the softmax of a correlation [B,h,w] over all positions, t that of the map that is wanted
    [B,H,W], resized bilinear.
    """
    s = correlation.flatten(1).softmax(1)
    t = bilinear(wanted[:, None], correlation.shape[-2:]).flatten(1).softmax(1)
    return (t * (torch.log(t + 1e-12) - torch.log(s + 1e-12))).sum(1)
