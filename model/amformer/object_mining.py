"""G, the object-mining transformer (method 3).

A pyramid, masked mining from coarse to fine, two refinements at the full grid.
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
from model.module_list import module_list
from model.precision import at_least_float32
from model.resize import bilinear, bilinear_ac, grid_size

CHANNELS, SCALES, REFINEMENTS = 64, 3, 2


@dataclass
class GeneratorOutputs:
    """Outputs of G.

    Attributes:
        query_scales: the pyramid, coarse to fine, 3 x [B,64,h_i,w_i].
        correlations: coarse to fine, 3 x [B,h_i,w_i], for the distillation loss.
        features: F_0, F_1, F_2 at the full grid, [B,64,h,w] each.
        logits: of each feature, [B,2,h,w].
        masks: the hard masks of refinements 1 and 2, [B,1,h,w] of 0 and 1.
    """

    query_scales: list[Tensor]
    correlations: list[Tensor]
    features: list[Tensor]
    logits: list[Tensor]
    masks: list[Tensor]


class PyramidStage(nn.Module):
    """Patch embedding, two encoder layers, LayerNorm; `plain.pyramid_stage`."""

    def __init__(self, kernel: int, stride: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.embed = PatchEmbed(
            in_channels=CHANNELS,
            embed_dims=CHANNELS,
            kernel_size=kernel,
            stride=stride,
            padding=kernel // 2,
            norm_cfg={"type": "LN", "eps": LN_EPS},
        )
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


class MiningStep(nn.Module):
    """Masked mining layer, then conv3x3, BN, ReLU on [its output, prior]; `plain.mining_step`."""

    def __init__(self, softmax: str) -> None:
        super().__init__()
        attention = MaskedMiningAttention(CHANNELS, heads=2, softmax=softmax)
        self.layer = MaskedMiningLayer(attention)
        self.fuse = ConvModule(CHANNELS + 2, CHANNELS, 3, padding=1, norm_cfg={"type": "BN"})

    def forward(self, x: Tensor, mask: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        """Mine one scale.

        Args:
            x: [B,64,h_i,w_i].
            mask: [B,1,...], of any size.
            prior: [B,2,...], of any size.

        Returns:
            Map [B,64,h_i,w_i] and correlation [B,h_i,w_i].
        """
        grid = grid_size(x)
        mask, prior = (m if grid_size(m) == grid else bilinear_ac(m, grid) for m in (mask, prior))
        mined, correlation = self.layer(x, mask)
        return self.fuse(torch.cat((mined, prior), dim=1)), correlation


class ObjectMining(nn.Module):
    """G.

    Args:
        softmax: axis of the mining attention's softmax, "query" as published or "key".
    """

    def __init__(self, softmax: str = "query") -> None:
        super().__init__()
        self._compiled_scales: Callable[[Tensor], list[Tensor]] | None = None
        settings = ((1, 1, 2, 4), (3, 2, 4, 2), (3, 2, 8, 1))  # fine to coarse
        self.pyramid = module_list(PyramidStage(*s) for s in settings)
        self.mining = module_list(MiningStep(softmax) for _ in range(SCALES))
        self.parse = module_list(
            LinearChain(CHANNELS, CHANNELS, last_norm=True) for _ in range(SCALES)
        )
        self.refine_mining = module_list(MiningStep(softmax) for _ in range(REFINEMENTS))
        self.refine_parse = module_list(
            LinearChain(CHANNELS, CHANNELS, last_norm=True) for _ in range(REFINEMENTS)
        )
        self.heads = module_list(
            LinearChain(CHANNELS, 2, last_norm=False) for _ in range(1 + REFINEMENTS)
        )

    def compile_with(self, compiler: Callable[[Callable], Callable]) -> None:
        """Run the pyramid through a compiler such as `torch.compile`."""
        self._compiled_scales = compiler(self._scales)

    def scales(self, x: Tensor) -> list[Tensor]:
        """Return the pyramid of a map [B,64,h,w], coarse to fine: 3 x [B,64,h_i,w_i]."""
        compute = self._compiled_scales or self._scales
        return compute(x)

    def _scales(self, x: Tensor) -> list[Tensor]:
        scales: list[Tensor] = []
        for stage in self.pyramid:
            x = stage(x)
            scales.insert(0, x)
        return scales

    def forward(self, clue: Clue, hard_mask: Callable[[Tensor], Tensor]) -> GeneratorOutputs:
        """Mine the object of B queries.

        Args:
            clue: of B episodes.
            hard_mask: logits [B,2,h,w] -> mask [B,1,h,w] of 0 and 1 for the next refinement.
        """
        scales = self.scales(clue.tokens)
        correlations: list[Tensor] = []
        coarser: Tensor | None = None
        for scale, mining, parse in zip(scales, self.mining, self.parse, strict=True):
            x, correlation = mining(scale, clue.initial_mask, clue.prior)
            correlations.append(correlation)
            if coarser is None:
                feature = torch.relu(parse(x))
            else:
                up = bilinear(coarser, grid_size(scale))
                feature = up + torch.relu(parse(x + up))
            coarser = feature

        features, logits, masks = [feature], [at_least_float32(self.heads[0](feature))], []
        refinements = zip(self.refine_mining, self.refine_parse, self.heads[1:], strict=True)
        for mining, parse, head in refinements:
            masks.append(hard_mask(logits[-1]))
            x, _ = mining(features[-1], masks[-1], clue.prior)
            features.append(torch.relu(parse(x)))
            logits.append(at_least_float32(head(features[-1])))
        features = [at_least_float32(f) for f in features]
        return GeneratorOutputs(scales, correlations, features, logits, masks)
