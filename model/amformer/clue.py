"""What supports say about a query: prototype, initial mask, prior, Gram distances (method 2)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.constants import TEMPERATURE
from model.precision import at_least_float32, autocast_disabled
from model.prior import cosine_to, cross_prior, gram_distances
from model.query_support import QueryFeatures, SupportFeatures

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

    def forward(self, query: QueryFeatures, supports: list[list[SupportFeatures]]) -> Clue:
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

    def prototypes(self, supports: list[list[SupportFeatures]]) -> Tensor:
        """Supports [B][K] -> mean over the shots of sum(s m) / (sum(m) + 0.0005): [B,256].

        Only positions with m != 0 are computed; shorter supports are filled up with m = 0.
        """
        shots = [shot for episode in supports for shot in episode]
        longest = max(1, *(len(shot.weight) for shot in shots))

        def padded(rows: list[Tensor]) -> Tensor:
            return torch.stack([F.pad(row, (0, longest - row.shape[-1])) for row in rows])

        f2, f3 = (padded([getattr(s, name) for s in shots])[..., None] for name in ("f2", "f3"))
        weight = padded([s.weight for s in shots])  # [BK,n]
        reduced = at_least_float32(self.reduce(self.down_supp, f2, f3)[..., 0])  # [BK,256,n]
        with autocast_disabled(reduced):
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
