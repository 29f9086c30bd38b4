"""The losses of G and D (methods 5 and 6). How they are weighted: util/train/adversarial.py."""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.amformer.detail_mining import DiscriminatorOutputs
from model.constants import IGNORE
from model.losses import divergence, object_map
from model.resize import bilinear_ac

REAL_LABEL = 0.9  # one-sided smoothing, as published


def dice(scores: Tensor, target: Tensor) -> Tensor:
    """Return 1 - Dice of scores [B,2,h,w], resized to the target [B,S,S], mean over the batch.

    Dice = 2 sum p t / (sum p + sum t), with p the probability of the object and t its mask, over
    the labeled pixels (not 255). An episode without an object counts as 0: its Dice would be about
    as bad for one wrong pixel as for many. (Milletari et al., V-Net, 3DV 2016, without squares.)
    """
    object_, labeled = (target == 1).to(scores.dtype), (target != IGNORE).to(scores.dtype)
    found = bilinear_ac(scores, tuple(target.shape[-2:])).softmax(1)[:, 1] * labeled
    both, either = ((x.flatten(1).sum(1)) for x in (found * object_, found + object_))
    return ((1 - 2 * both / either.clamp(min=1e-6)) * _holds_object(target)).mean()


def balanced(scores: Tensor, target: Tensor) -> Tensor:
    """Return the cross entropy of scores [B,2,h,w] with object and background of equal weight.

    In each episode it is half the mean over the pixels of the object and half that over those of
    the background, of the scores resized to the target [B,S,S]; of one of the two alone, its mean.
    255 counts in neither. The result is the mean over the batch.
    """
    large = bilinear_ac(scores, tuple(target.shape[-2:]))
    entropy = F.cross_entropy(large, target, ignore_index=IGNORE, reduction="none").flatten(1)
    means, there = [], []
    for kind in (0, 1):
        of_kind = (target == kind).flatten(1)
        means.append((entropy * of_kind).sum(1) / of_kind.sum(1).clamp(min=1))
        there.append(of_kind.any(1))
    return (torch.stack(means).sum(0) / torch.stack(there).sum(0).clamp(min=1)).mean()


def _holds_object(target: Tensor) -> Tensor:
    return (target == 1).flatten(1).any(1)


def distillation(correlations: list[Tensor], target: Tensor, *, skip_empty: bool = False) -> Tensor:
    """Return KL(t || s), summed over positions, mean over the batch and the scales.

    s is the softmax of a correlation [B,h_i,w_i] over all positions of its scale. t is the softmax
    of a map that is 1 where the query mask [B,S,S] is 1 and -1e9 elsewhere, resized to the scale.
    Without an object, rounding decides what t is: after resizing, -1e9 differs by 64 or more from
    place to place. With `skip_empty`, such an episode counts as 0.
    """
    counts = _holds_object(target) if skip_empty else torch.ones_like(target[:, 0, 0])
    wanted = object_map(target, correlations[0].dtype)
    each = [(divergence(correlation, wanted) * counts).mean() for correlation in correlations]
    return torch.stack(each).mean()


def generator(outputs: list[DiscriminatorOutputs]) -> Tensor:
    """Return the adversarial loss of G, BCE(D(fake), 1), mean over levels."""
    return _bce([d.fake_score for d in outputs], 1.0)


def discriminator(outputs: list[DiscriminatorOutputs]) -> Tensor:
    """Return the loss of D, (BCE(D(fake), 0) + BCE(D(real), 0.9)) / 2, mean over levels."""
    fake, real = ([getattr(d, name) for d in outputs] for name in ("fake_score", "real_score"))
    return (_bce(fake, 0.0) + _bce(real, REAL_LABEL)) / 2


def _bce(scores: list[Tensor], label: float) -> Tensor:
    score = torch.stack(scores)
    return F.binary_cross_entropy_with_logits(score, torch.full_like(score, label))


def diversity(outputs: list[DiscriminatorOutputs], chosen: Tensor) -> Tensor:
    """Return the diversity loss: how similar part maps are.

    Of each level, of fake and of real maps: the mean cosine of all pairs i < j, its magnitude, mean
    over the batch. `chosen` holds the indices of the part maps that are compared, [levels,
    2 (fake, real), 9].
    """
    maps = torch.stack([x for level in outputs for x in (level.fake_maps, level.real_maps)])
    dot = maps @ maps.mT  # [levels * 2,B,14,14]
    norm = dot.diagonal(dim1=2, dim2=3)
    cosine = dot / torch.sqrt(norm[..., None] * norm[..., None, :] + 1e-8)
    count = chosen.shape[-1]
    first, second = torch.triu_indices(count, count, offset=1, device=chosen.device)
    chosen = chosen.flatten(0, 1)
    pairs = chosen[:, first] * dot.shape[-1] + chosen[:, second]  # of the flattened matrix
    index = pairs[:, None].expand(-1, dot.shape[1], -1)
    return cosine.flatten(2).gather(2, index).mean(2).abs().mean()
