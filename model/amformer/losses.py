"""The losses of G and D (methods 5 and 6). How they are weighted: util/train/adversarial.py."""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.amformer.detail_mining import DiscriminatorOutputs
from model.constants import IGNORE
from model.resize import bilinear, bilinear_ac

REAL_LABEL = 0.9  # one-sided smoothing, as published


def cross_entropy(scores: Tensor, target: Tensor, pixels: Tensor) -> Tensor:
    """Return the cross entropy of scores [B,C,h,w], resized to the target [B,S,S].

    It is summed over labeled pixels (not 255) and divided by `pixels`: their number, or on several
    ranks the mean number per rank.
    """
    if scores.shape[-2:] != target.shape[-2:]:
        scores = bilinear_ac(scores, target.shape[-2:])
    return F.cross_entropy(scores, target, ignore_index=IGNORE, reduction="sum") / pixels


def distillation(correlations: list[Tensor], target: Tensor) -> Tensor:
    """Return KL(t || s), summed over positions, mean over the batch and the scales.

    s is the softmax of a correlation [B,h_i,w_i] over all positions of its scale. t is the softmax
    of a map that is 1 where the query mask [B,S,S] is 1 and -1e9 elsewhere, resized to the scale.
    """
    wanted = torch.where(target == 1, 1.0, -1e9).to(correlations[0].dtype)[:, None]
    divergences = []
    for correlation in correlations:
        s = correlation.flatten(1).softmax(1)
        t = bilinear(wanted, correlation.shape[-2:]).flatten(1).softmax(1)
        terms = t * torch.log(t + 1e-12) - t * torch.log(s + 1e-12)
        divergences.append(terms.sum(1).mean())
    return torch.stack(divergences).mean()


def generator(outputs: list[DiscriminatorOutputs]) -> Tensor:
    """Return the adversarial loss of G, BCE(D(fake), 1), mean over levels."""
    return torch.stack([_bce(d.fake_score, 1.0) for d in outputs]).mean()


def discriminator(outputs: list[DiscriminatorOutputs]) -> Tensor:
    """Return the loss of D, (BCE(D(fake), 0) + BCE(D(real), 0.9)) / 2, mean over levels."""
    losses = [(_bce(d.fake_score, 0.0) + _bce(d.real_score, REAL_LABEL)) / 2 for d in outputs]
    return torch.stack(losses).mean()


def diversity(outputs: list[DiscriminatorOutputs], chosen: Tensor) -> Tensor:
    """Return the diversity loss: how similar part maps are, mean over fake, real and levels.

    `chosen` holds the indices of the part maps that are compared, [levels, 2 (fake, real), 9].
    """
    losses = []
    for level, (fake, real) in zip(outputs, chosen, strict=True):
        losses += [_similarity(level.fake_maps[:, fake]), _similarity(level.real_maps[:, real])]
    return torch.stack(losses).mean()


def _bce(score: Tensor, label: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(score, torch.full_like(score, label))


def _similarity(maps: Tensor) -> Tensor:
    """Mean pairwise cosine of maps [B,n,N]: |mean over pairs i < j|, mean over the batch."""
    dot = maps @ maps.transpose(1, 2)
    norm = dot.diagonal(dim1=1, dim2=2)
    cosine = dot / torch.sqrt(norm[:, :, None] * norm[:, None] + 1e-8)
    count = maps.shape[1]
    first, second = torch.triu_indices(count, count, offset=1, device=maps.device)
    return cosine[:, first, second].mean(1).abs().mean()
