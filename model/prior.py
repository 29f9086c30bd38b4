"""What the systems of this family share: prototype, training-free prior, Gram distance.

Supports come as B lists of K `SupportFeatures`, which hold features inside the mask only. A query
may be one for all B episodes. Each function equals the one of `model/amformer/plain.py` that it
names.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.base_learner import Features
from model.query_support import SupportFeatures
from model.resize import at_least_float32, autocast_disabled

SIMILARITIES_PER_BLOCK = 2**22  # of a query's positions, computed at a time


def reduce_channels(down: nn.Sequential, f2: Tensor, f3: Tensor) -> Tensor:
    """Return Dropout2d(ReLU(W [f3, f2])): [B,256,h,w].

    Equals `plain.reduce_channels`; here f3 and f2 each meet their half of W and are never joined.
    `down` is conv1x1 without bias, ReLU, Dropout2d.
    """
    weight, relu, dropout = down[0].get_parameter("weight"), down[1], down[2]
    of_f3, of_f2 = weight.split((f3.shape[1], f2.shape[1]), dim=1)
    return dropout(relu(F.conv2d(f3, of_f3) + F.conv2d(f2, of_f2)))


def prototypes(supports: list[list[SupportFeatures]], down: nn.Sequential) -> Tensor:
    """Return the mean over the shots of sum(s m) / (sum(m) + 0.0005): [B,256].

    Equals `plain.prototype`; here only positions with m != 0 are computed. Shorter supports of the
    batch are padded with m = 0. `down` is that of `reduce_channels`.
    """
    shots = [shot for episode in supports for shot in episode]
    longest = max(1, *(len(shot.weight) for shot in shots))

    def padded(rows: list[Tensor]) -> Tensor:
        return torch.stack([F.pad(row, (0, longest - row.shape[-1])) for row in rows])

    f2, f3 = padded([s.f2 for s in shots]), padded([s.f3 for s in shots])  # [B*K,C,n]
    weight = padded([s.weight for s in shots])  # [B*K,n]
    reduced = at_least_float32(reduce_channels(down, f2[..., None], f3[..., None])[..., 0])
    with autocast_disabled(reduced):
        total = torch.einsum("bcn,bn->bc", reduced, weight)
    means = total / (weight.sum(1, keepdim=True) + 0.0005)
    return means.view(len(supports), -1, means.shape[1]).mean(1)


@torch.no_grad()
def training_free_prior(query: Features, supports: list[list[SupportFeatures]]) -> Tensor:
    """Return the prior from f5 and from f4, each the mean over the K shots: [B,2,h,w].

    Equals `plain.prior`; here only positions inside a support's mask are compared.
    """
    f5, f4 = (f.expand(len(supports), -1, -1, -1) for f in (query.f5, query.f4))

    def of_shot(i: int, shot: SupportFeatures) -> Tensor:
        pairs = ((f5[i], shot.f5), (f4[i], shot.f4))
        return torch.stack([max_similarity(q, s, mask_is_full=shot.mask_is_full) for q, s in pairs])

    episodes = enumerate(supports)
    return torch.stack(
        [torch.stack([of_shot(i, shot) for shot in episode]).mean(0) for i, episode in episodes]
    )


def max_similarity(query: Tensor, support: Tensor, *, mask_is_full: bool) -> Tensor:
    """Return max over support positions j of <s_j m_j, q_i> / (|s_j m_j| |q_i| + 1e-7): [h,w].

    One map of `plain.prior`, of q [C,h,w] and s at the positions inside the mask [C,m]. Those
    outside are zero vectors of similarity 0. They are not computed: unless the mask is full, the
    maximum starts at 0. It is taken over blocks of support positions, so no matrix of N x N exists.
    """
    q = query.flatten(1)  # [C,N]
    q_norm = at_least_float32(q).norm(dim=0)[:, None]
    best = q_norm.new_full((q.shape[1],), -torch.inf if mask_is_full else 0.0)
    for s in support.split(max(1, SIMILARITIES_PER_BLOCK // q.shape[1]), dim=1):
        block = at_least_float32(q.t() @ s).div_(q_norm * at_least_float32(s).norm(dim=0) + 1e-7)
        best = torch.maximum(best, block.amax(1)) if s.shape[1] else best
    return best.view_as(query[0])


def gram_distances(query: Tensor, supports: list[list[SupportFeatures]]) -> Tensor:
    """Return ||Gram(query) - Gram(support k)||_F / C of each shot, in shot order: [B,K].

    Equals `plain.gram_distances`; here the Gram matrices are computed once per image. `query` holds
    those of the queries [B or 1,C,C].
    """
    shots = torch.stack([torch.stack([shot.gram for shot in episode]) for episode in supports])
    return (query[:, None] - shots).flatten(2).norm(dim=2) / query.shape[1]
