"""G, the object-mining transformer (method 3).

A pyramid, masked mining coarse to fine, two refinements.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks.transformer import PatchEmbed
from torch import Tensor, nn

from model.amformer.attention import (
    LN_EPS,
    EncoderLayer,
    MaskedMiningAttention,
    MaskedMiningLayer,
    ReducedAttention,
    to_map,
)
from model.amformer.clue import Clue
from model.folding import LinearChain
from model.precision import at_least_float32
from model.resize import bilinear, bilinear_ac

CHANNELS, SCALES, REFINEMENTS = 64, 3, 2


@dataclass
class Mined:
    """G's outputs; scales run coarse to fine, features and logits F_0..F_2 are at the full grid.

    Attributes:
        query_scales: the pyramid, 3 x [B,64,h_i,w_i].
        correlations: 3 x [B,h_i,w_i], for the distillation loss.
        features: F_0, F_1, F_2, [B,64,h,w] each.
        logits: of each, [B,2,h,w].
        masks: the hard masks into refinements 1 and 2, [B,1,h,w] of 0 and 1.
    """

    query_scales: list[Tensor]
    correlations: list[Tensor]
    features: list[Tensor]
    logits: list[Tensor]
    masks: list[Tensor]


class PyramidStage(nn.Module):
    """Patch embedding, two encoder layers, LayerNorm."""

    def __init__(self, kernel: int, stride: int, heads: int, reduction: int):
        super().__init__()
        self.embed = PatchEmbed(
            in_channels=CHANNELS,
            embed_dims=CHANNELS,
            kernel_size=kernel,
            stride=stride,
            padding=kernel // 2,
            norm_cfg={"type": "LN", "eps": LN_EPS},
        )
        self.layers = nn.ModuleList(
            EncoderLayer(ReducedAttention(CHANNELS, heads, reduction)) for _ in range(2)
        )
        self.norm = nn.LayerNorm(CHANNELS, eps=LN_EPS)

    def forward(self, x: Tensor) -> Tensor:
        tokens, grid = self.embed(x)
        for layer in self.layers:
            tokens = layer(tokens, grid)
        return to_map(self.norm(tokens), grid)


class MiningStep(nn.Module):
    """Masked mining layer, then conv3x3 + BN + ReLU on [its output, prior]."""

    def __init__(self, softmax: str):
        super().__init__()
        attention = MaskedMiningAttention(CHANNELS, heads=2, softmax=softmax)
        self.layer = MaskedMiningLayer(attention)
        self.fuse = ConvModule(CHANNELS + 2, CHANNELS, 3, padding=1, norm_cfg={"type": "BN"})

    def forward(self, x: Tensor, mask: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        """One mining step on one scale.

        Args:
            x: [B,64,h_i,w_i].
            mask: [B,1,...], at any size.
            prior: [B,2,...], at any size.

        Returns:
            Map [B,64,h_i,w_i] and correlation [B,h_i,w_i].
        """
        grid = x.shape[-2:]
        mask, prior = (m if m.shape[-2:] == grid else bilinear_ac(m, grid) for m in (mask, prior))
        mined, correlation = self.layer(x, mask)
        return self.fuse(torch.cat((mined, prior), dim=1)), correlation


class ObjectMining(nn.Module):
    """G. `softmax` is the axis of the mining attention, "query" as published or "key"."""

    def __init__(self, softmax: str = "query"):
        super().__init__()
        settings = ((1, 1, 2, 4), (3, 2, 4, 2), (3, 2, 8, 1))  # fine to coarse
        self.pyramid = nn.ModuleList(PyramidStage(*s) for s in settings)
        self.mining = nn.ModuleList(MiningStep(softmax) for _ in range(SCALES))
        self.parse = nn.ModuleList(
            LinearChain(CHANNELS, CHANNELS, last_norm=True) for _ in range(SCALES)
        )
        self.refine_mining = nn.ModuleList(MiningStep(softmax) for _ in range(REFINEMENTS))
        self.refine_parse = nn.ModuleList(
            LinearChain(CHANNELS, CHANNELS, last_norm=True) for _ in range(REFINEMENTS)
        )
        self.heads = nn.ModuleList(
            LinearChain(CHANNELS, 2, last_norm=False) for _ in range(1 + REFINEMENTS)
        )

    def scales(self, x: Tensor) -> list[Tensor]:
        """Tokens [B,64,h,w] -> the pyramid, coarse to fine."""
        found = []
        for stage in self.pyramid:
            x = stage(x)
            found.insert(0, x)
        return found

    def forward(self, clue: Clue, hard_mask: Callable[[Tensor], Tensor]) -> Mined:
        """Clue -> everything G finds.

        Args:
            clue: of B queries.
            hard_mask: logits [B,2,h,w] -> mask [B,1,h,w] of 0 and 1 for the next refinement.
        """
        scales = self.scales(clue.tokens)
        out, correlations = None, []
        for scale, mining, parse in zip(scales, self.mining, self.parse, strict=True):
            x, correlation = mining(scale, clue.initial_mask, clue.prior)
            correlations.append(correlation)
            if out is None:
                out = torch.relu(parse(x))
            else:
                up = bilinear(out, scale.shape[-2:])
                out = up + torch.relu(parse(x + up))

        features, logits, masks = [out], [at_least_float32(self.heads[0](out))], []
        refinements = zip(self.refine_mining, self.refine_parse, self.heads[1:], strict=True)
        for mining, parse, head in refinements:
            masks.append(hard_mask(logits[-1]))
            x, _ = mining(features[-1], masks[-1], clue.prior)
            features.append(torch.relu(parse(x)))
            logits.append(at_least_float32(head(features[-1])))
        return Mined(scales, correlations, [at_least_float32(f) for f in features], logits, masks)
