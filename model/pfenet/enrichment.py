"""The feature enrichment of PFENet: the clue at several scales, passed on from one to the next."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.blocks import CHANNELS, Refinement, mask_head, reduce_to
from model.prior import merge
from model.resize import bilinear_ac, grid_size


@dataclass
class Enriched:
    """Maps of each scale, n x n cells, in the order of the scales."""

    prior_bins: list[Tensor]  # the prior [B,1,n,n]
    merged: list[Tensor]  # clue [B,256,n,n]
    alphas: list[Tensor]  # what is added from the scale before; from the second scale on
    inner_features: list[Tensor]  # [B,256,n,n]
    inner_logits: list[Tensor]  # [B,2,n,n]


class Enrichment(nn.Module):
    """Merge query, prototype and prior at each of `scales`, numbers of cells a side.

    A scale of at most 1 is a share of the grid's side, rounded down.
    """

    def __init__(self, scales: Sequence[float]) -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.init_merge = nn.ModuleList(reduce_to(CHANNELS, 2 * CHANNELS + 1) for _ in scales)
        self.alpha_conv = nn.ModuleList(reduce_to(CHANNELS, 2 * CHANNELS) for _ in scales[1:])
        self.beta_conv = nn.ModuleList(Refinement() for _ in scales)
        self.inner_cls = nn.ModuleList(mask_head() for _ in scales)

    def cells(self, scale: float, grid: tuple[int, int]) -> tuple[int, int]:
        """Return the cells of a scale; a small grid has one at least."""
        if scale > 1:
            return int(scale), int(scale)
        height, width = (max(1, int(side * scale)) for side in grid)
        return height, width

    def forward(self, q: Tensor, prototype: Tensor, prior: Tensor) -> tuple[Tensor, Enriched]:
        """Enrich q [B or 1,256,h,w] by a prototype [B,256] and a prior [B,1,h,w].

        Returns the features of all scales, resized to h x w: [B,256 * scales,h,w].
        """
        grid, maps = grid_size(q), Enriched([], [], [], [], [])
        features: list[Tensor] = []
        layers = zip(self.scales, self.init_merge, self.beta_conv, self.inner_cls, strict=True)
        for j, (scale, init_merge, beta_conv, inner_cls) in enumerate(layers):
            cells = self.cells(scale, grid)
            maps.prior_bins.append(bilinear_ac(prior, cells))
            assert isinstance(init_merge, nn.Sequential)
            pooled = F.adaptive_avg_pool2d(q, cells)
            x = merge(init_merge, pooled, prototype, maps.prior_bins[-1])
            maps.merged.append(x)
            if j:  # as published: the scale before, from the grid, not from its own cells
                before = bilinear_ac(features[-1], cells)
                maps.alphas.append(self.alpha_conv[j - 1](torch.cat((x, before), dim=1)))
                x = x + maps.alphas[-1]
            x = beta_conv(x)
            maps.inner_features.append(x)
            maps.inner_logits.append(inner_cls(x))
            features.append(bilinear_ac(x, grid))
        return torch.cat(features, dim=1), maps
