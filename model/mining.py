"""What the transformers of HDMNet and AMFormer share (method 3).

A pyramid, mining of one scale, decoding from coarse to fine.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks.transformer import PatchEmbed
from torch import Tensor, nn

from model.attention import (
    LN_EPS,
    EncoderLayer,
    MaskedMiningAttention,
    MaskedMiningLayer,
    ReducedAttention,
    module_list,
)
from model.folding import LinearChain
from model.resize import bilinear, bilinear_ac, grid_size, to_map

CHANNELS, SCALES = 64, 3
STAGES = ((1, 1, 2, 4), (3, 2, 4, 2), (3, 2, 8, 1))  # kernel, stride, heads, reduction; from fine

parse_chain = partial(LinearChain, CHANNELS, CHANNELS, last_norm=True)
head_chain = partial(LinearChain, CHANNELS, 2, last_norm=False)


class PyramidStage(nn.Module):
    """Patch embedding, two encoder layers, LayerNorm; `plain.pyramid_stage`."""

    def __init__(self, kernel: int, stride: int, heads: int, reduction: int) -> None:
        super().__init__()
        shape = {"kernel_size": kernel, "stride": stride, "padding": kernel // 2}
        norm = {"type": "LN", "eps": LN_EPS}
        self.embed = PatchEmbed(CHANNELS, CHANNELS, **shape, norm_cfg=norm)
        self.layers = module_list(
            EncoderLayer(ReducedAttention(CHANNELS, heads, reduction)) for _ in range(2)
        )
        self.norm = nn.LayerNorm(CHANNELS, eps=LN_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Encode a map [B,64,h,w]; stride 2 halves the grid."""
        tokens, grid = self.embed(x)
        for layer in self.layers:
            tokens = layer(tokens, grid)
        return to_map(self.norm(tokens), grid)


class Pyramid(nn.ModuleList):
    """Three stages, from fine to coarse."""

    def __init__(self) -> None:
        super().__init__(PyramidStage(*stage) for stage in STAGES)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the scales of a map [B,64,h,w], coarse to fine: 3 x [B,64,h_i,w_i]."""
        scales: list[Tensor] = []
        for stage in self:
            x = stage(x)
            scales.insert(0, x)
        return scales


def at_scales(mask: Tensor) -> list[Tensor]:
    """Return a mask [B,1,h,w] at the scales of `Pyramid`, coarse to fine: 3 x [B,1,h_i,w_i].

    To be called outside of what is compiled: inductor (torch 2.11) loses the mask's gradient there.
    """
    grids = [grid_size(mask)]
    for _, stride, _, _ in STAGES[1:]:
        height, width = grids[0]
        grids.insert(0, (-(-height // stride), -(-width // stride)))
    return [bilinear_ac(mask, grid) for grid in grids[:-1]] + [mask]


class Mined(NamedTuple):
    """What one scale gives."""

    fused: Tensor  # with the prior [B,64,h_i,w_i]
    correlation: Tensor  # [B,h_i,w_i]
    layer: Tensor  # the layer's output [B,64,h_i,w_i]


class MiningStep(nn.Module):
    """Masked mining layer, then conv3x3, BN, ReLU on [its output, prior]; `plain.mining_step`."""

    def __init__(self, softmax: str = "query") -> None:
        super().__init__()
        attention = MaskedMiningAttention(CHANNELS, heads=2, softmax=softmax)
        self.layer = MaskedMiningLayer(attention)
        self.fuse = ConvModule(CHANNELS + 2, CHANNELS, 3, padding=1, norm_cfg={"type": "BN"})

    def forward(
        self, x: Tensor, mask: Tensor, prior: Tensor, source: Tensor | None = None,
        *, correlate: bool = True,
    ) -> Mined:  # fmt: skip
        """Mine one scale [B,64,h_i,w_i] of the query itself, or of a `source` of tokens [B,M,64].

        The mask is [B,1,h_i,w_i], that of a source [B,M]; the prior [B,2,...] has any size. Without
        `correlate`, the correlation is [B,0].
        """
        grid = grid_size(x)
        prior = prior if grid_size(prior) == grid else bilinear_ac(prior, grid)
        mined, correlation = self.layer(x, mask, source, correlate=correlate)
        return Mined(self.fuse(torch.cat((mined, prior), dim=1)), correlation, mined)


def decode(
    maps: Iterable[Tensor], parse: Sequence[Callable[[Tensor], Tensor]]
) -> tuple[Tensor, list[Tensor]]:
    """Join maps from coarse to fine, each [B,64,h_i,w_i]: what they make at the finest grid.

    o = parse(e), then o = up(o) + parse(e + up(o)). The outputs of `parse` are returned, too.
    """
    parsed: list[Tensor] = []
    feature: Tensor | None = None
    for x, chain in zip(maps, parse, strict=True):
        up = 0 if feature is None else bilinear(feature, grid_size(x))
        parsed.append(torch.relu(chain(x + up)))
        feature = up + parsed[-1]
    assert feature is not None
    return feature, parsed
