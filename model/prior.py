"""Prototype, training-free prior and Gram distance: what several systems of this family share."""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.base_learner import Features
from model.precision import at_least_float32, autocast_disabled
from model.query_support import SupportFeatures

BLOCK = 2**22  # similarities of a query's positions computed at a time


def cosine_to(prototype: Tensor, q: Tensor) -> Tensor:
    """Cosine of every position of q [B or 1,C,h,w] with the prototype [B,C]: [B,1,h,w].

    The prototype alone is divided by its norm beforehand, q's norm divides what is left: no
    product of the size of q is kept for the backward pass.
    """
    q, unit = at_least_float32(q), F.normalize(prototype, dim=1)
    with autocast_disabled(q):
        dot = torch.einsum("bchw,bc->bhw", q.expand(len(unit), -1, -1, -1), unit)
    return (dot / q.norm(dim=1).clamp(min=1e-8))[:, None]


@torch.no_grad()
def cross_prior(query: Features, supports: list[list[SupportFeatures]]) -> Tensor:
    """The prior, mean over the K shots: from f5 and from f4.

    Args:
        query: B maps, or one for all B episodes.
        supports: [B][K].

    Returns:
        [B,2,h,w]
    """

    def one(index: int, shot: SupportFeatures) -> Tensor:
        index = index if len(query.f5) > 1 else 0
        pairs = ((query.f5, shot.f5), (query.f4, shot.f4))
        return torch.stack([similarity(q[index], s, whole=shot.whole) for q, s in pairs])

    return torch.stack(
        [
            torch.stack([one(index, shot) for shot in episode]).mean(0)
            for index, episode in enumerate(supports)
        ]
    )


def similarity(query: Tensor, support: Tensor, *, whole: bool) -> Tensor:
    """max over support positions of <s m, q> / (|s m| |q| + 1e-7), one query and one shot.

    Positions outside the mask are zero vectors of similarity 0, so only those inside are computed;
    0 takes part in the maximum as soon as one position lies outside. The maximum is taken block by
    block of support positions, so nothing of size hw x hw is ever there.

    Args:
        query: q [C,h,w].
        support: s at the positions inside the mask [C,m], m >= 0.
        whole: no position lies outside.

    Returns:
        [h,w]
    """
    q = query.flatten(1)  # [C,hw]
    q_norm = at_least_float32(q).norm(dim=0)[:, None]
    best = q_norm.new_full((q.shape[1],), -torch.inf if whole else 0.0)
    for s in support.split(max(1, BLOCK // q.shape[1]), dim=1):
        block = at_least_float32(q.t() @ s).div_(q_norm * at_least_float32(s).norm(dim=0) + 1e-7)
        best = torch.maximum(best, block.amax(1)) if s.shape[1] else best
    return best.view_as(query[0])


def gram_distances(query: Tensor, supports: list[list[SupportFeatures]]) -> Tensor:
    """Frobenius distances between the Gram matrices of queries and their supports, over C.

    Args:
        query: Gram matrices [B,C,C], or one for all B episodes.
        supports: [B][K].

    Returns:
        [B,K]
    """
    theirs = torch.stack([torch.stack([shot.gram for shot in episode]) for episode in supports])
    return (query[:, None] - theirs).flatten(2).norm(dim=2) / query.shape[1]
