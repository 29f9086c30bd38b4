"""What supports say about a query: prototype, initial mask, prior, Gram distances (method 2)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.base_learner import Features
from model.precision import exact, full
from model.views import Query, Support

TEMPERATURE = 0.1
BLOCK = 2**22  # similarities of a query's positions computed at a time


@dataclass
class Clue:
    """For B queries with K shots each.

    Attributes:
        tokens: G's input [B,64,h,w].
        prior: training-free similarity to the support object [B,2,h,w], from f5 and from f4.
        initial_mask: cos(prototype, query) / 0.1, weak values set to 0: [B,1,h,w].
        distances: Gram distance of each shot [B,K], in shot order.
    """

    tokens: Tensor
    prior: Tensor
    initial_mask: Tensor
    distances: Tensor


class ClueExtractor(nn.Module):
    """What the frozen encoder saw in query and supports -> Clue.

    Args:
        channels: of f2, f3, f4.
        threshold: values of cos / 0.1 below it are 0 in the initial mask.
    """

    def __init__(self, channels: tuple[int, int, int], *, threshold: float = 0.7):
        super().__init__()
        middle = channels[0] + channels[1]
        self.down_query = nn.Sequential(
            nn.Conv2d(middle, 256, 1, bias=False), nn.ReLU(), nn.Dropout2d(0.5)
        )
        self.down_supp = nn.Sequential(
            nn.Conv2d(middle, 256, 1, bias=False), nn.ReLU(), nn.Dropout2d(0.5)
        )
        self.query_merge = nn.Sequential(nn.Conv2d(256 + 256 + 2, 64, 1, bias=False), nn.ReLU())
        # Published checkpoints hold this weight and no computation uses it: kept for the way back.
        self.register_buffer("supp_merge", torch.zeros(64, 512, 1, 1))
        self.threshold = threshold

    def forward(self, query: Query, supports: list[list[Support]]) -> Clue:
        """B queries, or one for all B episodes, and their supports [B][K] -> Clue."""
        features = query.features
        q = self.reduce(self.down_query, features.f2, features.f3)
        prototype = self.prototypes(supports)
        with torch.no_grad():
            prior = cross_prior(features, supports)
            distances = gram_distances(query.gram, supports)
        cosine = cosine_to(prototype, q) / TEMPERATURE
        initial = torch.where(cosine < self.threshold, 0, cosine)
        return Clue(self.merge(q, prototype, prior), prior, initial, distances)

    @staticmethod
    def reduce(down: nn.Sequential, f2: Tensor, f3: Tensor) -> Tensor:
        """Dropout2d(ReLU(W [f3,f2])), without ever joining the two: [B,256,h,w]."""
        conv, relu, dropout = down
        of_f3, of_f2 = conv.weight.split((f3.shape[1], f2.shape[1]), dim=1)
        return dropout(relu(F.conv2d(f3, of_f3) + F.conv2d(f2, of_f2)))

    def prototypes(self, supports: list[list[Support]]) -> Tensor:
        """Supports [B][K] -> mean over the shots of sum(s m) / (sum(m) + 0.0005): [B,256].

        Only positions with m != 0 are computed; shorter supports are filled up with m = 0.
        """
        shots = [shot for episode in supports for shot in episode]
        longest = max(1, *(len(shot.weight) for shot in shots))

        def padded(rows: list[Tensor]) -> Tensor:
            return torch.stack([F.pad(row, (0, longest - row.shape[-1])) for row in rows])

        f2, f3 = (padded([getattr(s, name) for s in shots])[..., None] for name in ("f2", "f3"))
        weight = padded([s.weight for s in shots])  # [BK,n]
        reduced = full(self.reduce(self.down_supp, f2, f3)[..., 0])  # [BK,256,n]
        with exact(reduced):
            total = torch.einsum("bcn,bn->bc", reduced, weight)
        means = total / (weight.sum(1, keepdim=True) + 0.0005)
        return means.view(len(supports), -1, means.shape[1]).mean(1)

    def merge(self, q: Tensor, prototype: Tensor, prior: Tensor) -> Tensor:
        """ReLU(conv1x1([q, prototype everywhere, 10 prior])) -> G's input [B,64,h,w].

        The prototype's part is computed once a query, not once a position.

        Args:
            q: [B,256,h,w].
            prototype: [B,256].
            prior: [B,2,h,w].
        """
        conv, relu = self.query_merge
        of_q, of_p, of_prior = conv.weight.split((256, 256, 2), dim=1)
        spread = F.linear(prototype, of_p.flatten(1))[..., None, None]
        return relu(F.conv2d(q, of_q) + F.conv2d(prior * 10, of_prior) + spread)


def cosine_to(prototype: Tensor, q: Tensor) -> Tensor:
    """Cosine of every position of q [B or 1,C,h,w] with the prototype [B,C]: [B,1,h,w].

    The prototype alone is divided by its norm beforehand, q's norm divides what is left: no
    product of the size of q is kept for the backward pass.
    """
    q, unit = full(q), F.normalize(prototype, dim=1)
    with exact(q):
        dot = torch.einsum("bchw,bc->bhw", q.expand(len(unit), -1, -1, -1), unit)
    return (dot / q.norm(dim=1).clamp(min=1e-8))[:, None]


@torch.no_grad()
def cross_prior(query: Features, supports: list[list[Support]]) -> Tensor:
    """The prior, mean over the K shots: from f5 and from f4.

    Args:
        query: B maps, or one for all B episodes.
        supports: [B][K].

    Returns:
        [B,2,h,w]
    """

    def one(index: int, shot: Support) -> Tensor:
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
    q_norm = full(q).norm(dim=0)[:, None]
    best = q_norm.new_full((q.shape[1],), -torch.inf if whole else 0.0)
    for s in support.split(max(1, BLOCK // q.shape[1]), dim=1):
        block = full(q.t() @ s).div_(q_norm * full(s).norm(dim=0) + 1e-7)
        best = torch.maximum(best, block.amax(1)) if s.shape[1] else best
    return best.view_as(query[0])


def gram_distances(query: Tensor, supports: list[list[Support]]) -> Tensor:
    """Frobenius distances between the Gram matrices of queries and their supports, over C.

    Args:
        query: Gram matrices [B,C,C], or one for all B episodes.
        supports: [B][K].

    Returns:
        [B,K]
    """
    theirs = torch.stack([torch.stack([shot.gram for shot in episode]) for episode in supports])
    return (query[:, None] - theirs).flatten(2).norm(dim=2) / query.shape[1]
