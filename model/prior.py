"""What the systems of this family share: prototype, training-free prior, Gram distance.

Supports come as B lists of K `SupportFeatures`, which hold features inside the mask only. A query
may be one for all B episodes. Each function equals the one of `model/amformer/plain.py` that it
names.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.base_learner import Features
from model.device import is_accelerator, scores_per_block
from model.query_support import SupportFeatures
from model.resize import at_least_float32, autocast_disabled, grid_size


def reduction(channels: tuple[int, ...]) -> nn.Sequential:
    """Return the layers of `reduce_channels`; `channels` are those of f2 and f3, and others."""
    conv = nn.Conv2d(channels[0] + channels[1], 256, 1, bias=False)
    return nn.Sequential(conv, nn.ReLU(), nn.Dropout2d(0.5))


def merge(layers: nn.Sequential, q: Tensor, prototype: Tensor, *maps: Tensor) -> Tensor:
    """Return ReLU(conv1x1([q, prototype everywhere, maps])): [B,C,h,w].

    Here the prototype [B,256] meets its weights once per query, not once per position. q is
    [B or 1,256,h,w], a further map [B,n,h,w]; `layers` are conv1x1 without bias, ReLU.
    """
    weight, relu = layers[0].get_parameter("weight"), layers[1]
    sizes = [x.shape[1] for x in (q, prototype, *maps)]
    of_q, of_prototype, *of_maps = weight.split(sizes, dim=1)
    spread = F.linear(prototype, of_prototype.flatten(1))[..., None, None]
    parts = [F.conv2d(x, of_x) for x, of_x in zip(maps, of_maps, strict=True)]
    return relu(sum(parts, start=F.conv2d(q, of_q)) + spread)


def reduce_channels(down: nn.Sequential, f2: Tensor, f3: Tensor) -> Tensor:
    """Return Dropout2d(ReLU(W [f3, f2])): [B,256,h,w].

    Equals `plain.reduce_channels`; here f3 and f2 each meet their half of W and are never joined.
    `down` is conv1x1 without bias, ReLU, Dropout2d.
    """
    weight, relu, dropout = down[0].get_parameter("weight"), down[1], down[2]
    of_f3, of_f2 = weight.split((f3.shape[1], f2.shape[1]), dim=1)
    return dropout(relu(F.conv2d(f3, of_f3) + F.conv2d(f2, of_f2)))


def prototypes(supports: list[list[SupportFeatures]], down: nn.Sequential) -> Tensor:
    """Return the prototypes sum(s m) / (sum(m) + 0.0005) of the shots: [B,K,256].

    Their mean equals `plain.prototype`; here only positions with m != 0 are computed. Shorter
    supports of the batch are padded with m = 0. `down` is that of `reduce_channels`.
    """
    shots = [shot for episode in supports for shot in episode]
    columns = [s.f2 for s in shots], [s.f3 for s in shots], [s.weight for s in shots]
    f2, f3, weight = (padded(rows) for rows in columns)  # [B*K,C,n], [B*K,n]
    reduced = reduce_channels(down, f2[..., None], f3[..., None])[..., 0]
    means = masked_mean(reduced, weight)
    return means.view(len(supports), -1, means.shape[1])


def padded(rows: list[Tensor], extra: int = 0, most: int | None = None) -> Tensor:
    """Stack tensors [...,m], zeros behind each: as many as the longest one has, and `extra` more.

    But there is at least one, and there are at most `most`.
    """
    length = max(1, *(row.shape[-1] for row in rows)) + extra
    length = length if most is None else min(length, most)
    short = [length - row.shape[-1] for row in rows]
    return torch.stack([F.pad(r, (0, n)) if n else r for r, n in zip(rows, short, strict=True)])


def masked_mean(s: Tensor, weight: Tensor) -> Tensor:
    """Return sum(s m) / (sum(m) + 0.0005) of features s [N,C,n] and weights m [N,n]: [N,C]."""
    s = at_least_float32(s)
    with autocast_disabled(s):
        total = torch.einsum("bcn,bn->bc", s, weight)
    return total / (weight.sum(1, keepdim=True) + 0.0005)


@torch.no_grad()
def training_free_prior(query: Features, supports: list[list[SupportFeatures]]) -> Tensor:
    """Return the prior from f5 and from f4, each the mean over the K shots: [B,2,h,w].

    Equals `plain.prior`; here only positions inside a support's mask are compared.
    """
    f5 = similarities(query.f5, [[shot.f5 for shot in episode] for episode in supports], supports)
    return torch.stack([f5.mean(1), similarities_of_f4(query, supports).mean(1)], dim=1)


@torch.no_grad()
def similarities_of_f4(query: Features, supports: list[list[SupportFeatures]]) -> Tensor:
    """Return `max_similarity` of f4 for each shot: [B,K,h,w]."""
    f4 = [[shot.f4 for shot in episode] for episode in supports]
    return similarities(query.f4, f4, supports)


def similarities(
    query: Tensor, shots: list[list[Tensor]], supports: list[list[SupportFeatures]]
) -> Tensor:
    """Return `max_similarity` of a query map [B or 1,C,h,w] with each shot's [C,m]: [B,K,h,w]."""
    batch, count, grid = len(supports), len(shots[0]), grid_size(query)
    query = query.expand(batch, -1, -1, -1)
    if is_accelerator(query):  # all at once, each with a position outside its mask, if it has one
        every = padded([s for own in shots for s in own], extra=1, most=query[0, 0].numel())
        query = query[:, None].expand(-1, count, -1, -1, -1).flatten(0, 1)
        return max_similarity(query, every, masks_are_full=True).view(batch, count, *grid)
    return torch.stack(
        [
            torch.cat([max_similarity(q[None], s[None], masks_are_full=shot.mask_is_full)
                       for s, shot in zip(own, episode, strict=True)])
            for q, own, episode in zip(query, shots, supports, strict=True)
        ]
    )  # fmt: skip


@torch.no_grad()
def normalized_prior(query: Features, supports: list[list[SupportFeatures]]) -> Tensor:
    """Return the prior of each shot from f4, spread to 0..1 over the positions: [B,K,h,w] (BAM 2).

    (r - min r) / (max r - min r + 1e-7), with r of `similarities_of_f4`.
    """
    r = similarities_of_f4(query, supports)
    low, high = r.amin((2, 3), keepdim=True), r.amax((2, 3), keepdim=True)
    return (r - low) / (high - low + 1e-7)


def max_similarity(query: Tensor, support: Tensor, *, masks_are_full: bool) -> Tensor:
    """Return max over support positions j of <s_j m_j, q_i> / (|s_j m_j| |q_i| + 1e-7): [N,h,w].

    One map of `plain.prior`, of N pairs: q [N,C,h,w] and s at the positions inside its mask
    [N,C,m]. Those outside are zero vectors of similarity 0. They are not computed: unless the masks
    are full, the maximum starts at 0. It is taken over blocks of support positions, so no matrix of
    hw x hw exists.
    """
    q = query.flatten(2).mT  # [N,hw,C]
    q_norm = at_least_float32(q).norm(dim=2, keepdim=True)
    s_norm = at_least_float32(support).norm(dim=1, keepdim=True)
    best = None if masks_are_full else q_norm.new_zeros(q.shape[:2])
    size = max(1, scores_per_block(q) // q.shape[:2].numel())
    small = q_norm.new_full((1, 1, 1), 1e-7)
    for s, norm in zip(support.split(size, dim=2), s_norm.split(size, dim=2), strict=True):
        if s.shape[2]:
            block = at_least_float32(q @ s).div_(torch.baddbmm(small, q_norm, norm))
            best = block.amax(2) if best is None else torch.maximum(best, block.amax(2))
    assert best is not None  # full masks have positions
    return best.view(len(query), *grid_size(query))


def gram_distances(query: Tensor, supports: list[list[SupportFeatures]]) -> Tensor:
    """Return ||Gram(query) - Gram(support k)||_F / C of each shot, in shot order: [B,K].

    Equals `plain.gram_distances`; here the Gram matrices are computed once per image. `query` holds
    those of the queries [B or 1,C,C].
    """
    shots = torch.stack([shot.gram for episode in supports for shot in episode])
    shots = shots.unflatten(0, (len(supports), -1))
    return (query[:, None] - shots).flatten(2).norm(dim=2) / query.shape[1]
