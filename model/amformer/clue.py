"""The support clue of AMFormer: initial mask, prior, Gram distances and G's input (method 2)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.blocks import reduce_to
from model.constants import TEMPERATURE
from model.prior import (
    gram_distances,
    merge,
    prototypes,
    reduce_channels,
    reduction,
    training_free_prior,
)
from model.query_support import QueryFeatures, SupportFeatures
from model.resize import at_least_float32, autocast_disabled


@dataclass
class Clue:
    """What the supports tell about B queries with K shots each."""

    tokens: Tensor  # G's input [B,64,h,w]
    prior: Tensor  # training-free similarity to the support object [B,2,h,w], from f5 and from f4
    initial_mask: Tensor  # cos(prototype, query) / 0.1, weak values set to 0: [B,1,h,w]
    distances: Tensor  # Gram distance of each shot [B,K], in shot order


class ClueExtractor(nn.Module):
    """Compute the clue from the frozen features of query and supports.

    `channels` are those of f2, f3, f4; `threshold` is the smallest cos / 0.1 of the initial mask.
    """

    def __init__(self, channels: tuple[int, int, int], *, threshold: float = 0.7) -> None:
        super().__init__()
        self.down_query, self.down_supp = (reduction(channels) for _ in range(2))
        self.query_merge = reduce_to(64, 256 + 256 + 2)
        # Unused. Published checkpoints hold it, so ours must have it to be written back.
        self.register_buffer("supp_merge", torch.zeros(64, 512, 1, 1))
        self.threshold = threshold

    def forward(self, query: QueryFeatures, supports: list[list[SupportFeatures]]) -> Clue:
        """Compute the clue of B episodes: B queries, or one for all, and B lists of K supports."""
        maps = query.features
        q = reduce_channels(self.down_query, maps.f2, maps.f3)
        prototype = prototypes(supports, self.down_supp).mean(1)
        with torch.no_grad():
            prior = training_free_prior(maps, supports)
            distances = gram_distances(query.gram, supports)
        tokens = merge(self.query_merge, q, prototype, prior * 10)
        return Clue(tokens, prior, self.initial_mask(q, prototype), distances)

    def initial_mask(self, q: Tensor, prototype: Tensor) -> Tensor:
        """Return cos(prototype, q) / 0.1, values below the threshold set to 0: [B,1,h,w].

        Equals `plain.initial_mask`. The prototype [B,256] is divided by its norm first, and that of
        q [B or 1,256,h,w] divides the product: backward needs nothing more of the size of q.
        """
        q, unit = at_least_float32(q), F.normalize(prototype, dim=1)
        with autocast_disabled(q):
            dot = torch.einsum("bchw,bc->bhw", q.expand(len(unit), -1, -1, -1), unit)
        cosine = (dot / q.norm(dim=1).clamp(min=1e-8))[:, None] / TEMPERATURE
        return torch.where(cosine < self.threshold, 0, cosine)
