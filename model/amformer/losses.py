"""The losses of G and D, each by name (method 5 and 6); none knows about steps or weights."""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.amformer.detail_mining import Detail
from model.constants import IGNORE
from model.resize import bilinear, bilinear_ac

REAL_LABEL = 0.9  # one-sided smoothing, as published


def cross_entropy(scores: Tensor, target: Tensor, pixels: Tensor) -> Tensor:
    """Summed cross entropy over the labelled pixels / `pixels`.

    Args:
        scores: [B,C,h,w], resized to the target. target: [B,S,S], 255 left out.
        pixels: the number of labelled pixels; across ranks, its mean over the ranks.
    """
    scores = bilinear_ac(scores, target.shape[-2:])
    return F.cross_entropy(scores, target, ignore_index=IGNORE, reduction="sum") / pixels


def distillation(correlations: list[Tensor], target: Tensor) -> Tensor:
    """Mean over scales of KL(t || s) over positions, mean over the batch.

    Args:
        correlations: [B,h_i,w_i] each; s is their softmax over all positions of the scale.
        target: query mask [B,S,S]; t is the softmax of 1 on the object and -1e9 elsewhere, resized.
    """
    wanted = torch.where(target == 1, 1.0, -1e9).to(correlations[0].dtype)[:, None]
    divergences = []
    for correlation in correlations:
        s = correlation.flatten(1).softmax(1)
        t = bilinear(wanted, correlation.shape[-2:]).flatten(1).softmax(1)
        terms = t * torch.log(t + 1e-12) - t * torch.log(s + 1e-12)
        divergences.append(terms.sum(1).mean())
    return torch.stack(divergences).mean()


def generator(details: list[Detail]) -> Tensor:
    """G wants D to take its mask for real: BCE(D(fake), 1), mean over levels."""
    return torch.stack([_bce(d.fake, 1.0) for d in details]).mean()


def discriminator(details: list[Detail]) -> Tensor:
    """D tells them apart: (BCE(D(fake), 0) + BCE(D(real), 0.9)) / 2, mean over levels."""
    losses = [(_bce(d.fake, 0.0) + _bce(d.real, REAL_LABEL)) / 2 for d in details]
    return torch.stack(losses).mean()


def diversity(details: list[Detail], chosen: Tensor) -> Tensor:
    """How alike the part maps are, mean over fake and real and over levels.

    Args:
        details: one a level.
        chosen: the part maps that take part, [levels, 2 (fake, real), 9].
    """
    losses = []
    for detail, (fake, real) in zip(details, chosen, strict=True):
        losses += [_similarity(detail.fake_maps[:, fake]), _similarity(detail.real_maps[:, real])]
    return torch.stack(losses).mean()


def _bce(verdict: Tensor, label: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(verdict, torch.full_like(verdict, label))


def _similarity(maps: Tensor) -> Tensor:
    """Mean pairwise cosine of maps [B,n,N]: |sum over pairs i < j| / pairs, mean over the batch."""
    dot = maps @ maps.transpose(1, 2)
    norm = dot.diagonal(dim1=1, dim2=2)
    cosine = dot / torch.sqrt(norm[:, :, None] * norm[:, None] + 1e-8)
    first, second = torch.triu_indices(*cosine.shape[1:], offset=1, device=maps.device)
    pairs = cosine[:, first, second]
    return (pairs.sum(1).abs() / pairs.shape[1]).mean()
