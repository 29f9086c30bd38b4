"""G, the object-mining transformer (method 3).

A pyramid, masked mining from coarse to fine, two refinements at the full grid.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

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
    module_list,
)
from model.amformer.clue import Clue
from model.folding import LinearChain
from model.resize import at_least_float32, bilinear, bilinear_ac, grid_size, to_map

CHANNELS, SCALES, REFINEMENTS = 64, 3, 2


@dataclass
class GeneratorOutputs:
    """Outputs of G."""

    query_scales: list[Tensor]  # the pyramid, coarse to fine, 3 x [B,64,h_i,w_i]
    correlations: list[Tensor]  # coarse to fine, 3 x [B,h_i,w_i], for the distillation loss
    features: list[Tensor]  # F_0, F_1, F_2 at the full grid, [B,64,h,w] each
    logits: list[Tensor]  # of each feature, [B,2,h,w]
    masks: list[Tensor]  # the hard masks of refinements 1 and 2, [B,1,h,w] of 0 and 1


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


class MiningStep(nn.Module):
    """Masked mining layer, then conv3x3, BN, ReLU on [its output, prior]; `plain.mining_step`."""

    def __init__(self, softmax: str) -> None:
        super().__init__()
        attention = MaskedMiningAttention(CHANNELS, heads=2, softmax=softmax)
        self.layer = MaskedMiningLayer(attention)
        self.fuse = ConvModule(CHANNELS + 2, CHANNELS, 3, padding=1, norm_cfg={"type": "BN"})

    def forward(self, x: Tensor, mask: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        """Mine one scale [B,64,h_i,w_i]; return a map of its shape and the correlation [B,h_i,w_i].

        The mask [B,1,...] and the prior [B,2,...] have any size.
        """
        grid = grid_size(x)
        mask, prior = (m if grid_size(m) == grid else bilinear_ac(m, grid) for m in (mask, prior))
        mined, correlation = self.layer(x, mask)
        return self.fuse(torch.cat((mined, prior), dim=1)), correlation


class ObjectMining(nn.Module):
    """G; `softmax` is the axis of the mining attention's, "query" as published or "key"."""

    def __init__(self, softmax: str = "query") -> None:
        super().__init__()
        settings = ((1, 1, 2, 4), (3, 2, 4, 2), (3, 2, 8, 1))  # fine to coarse
        parse = partial(LinearChain, CHANNELS, CHANNELS, last_norm=True)
        head = partial(LinearChain, CHANNELS, 2, last_norm=False)
        self.pyramid = module_list(PyramidStage(*s) for s in settings)
        self.mining = module_list(MiningStep(softmax) for _ in range(SCALES))
        self.parse = module_list(parse() for _ in range(SCALES))
        self.refine_mining = module_list(MiningStep(softmax) for _ in range(REFINEMENTS))
        self.refine_parse = module_list(parse() for _ in range(REFINEMENTS))
        self.heads = module_list(head() for _ in range(1 + REFINEMENTS))

    def compile_with(self, compiler: Callable[[Callable], Callable]) -> None:
        """Run the pyramid through a compiler such as `torch.compile`."""
        self.scales = compiler(self.scales)  # type: ignore[method-assign]  # of this instance

    def scales(self, x: Tensor) -> list[Tensor]:
        """Return the pyramid of a map [B,64,h,w], coarse to fine: 3 x [B,64,h_i,w_i]."""
        scales: list[Tensor] = []
        for stage in self.pyramid:
            x = stage(x)
            scales.insert(0, x)
        return scales

    def forward(self, clue: Clue, hard_mask: Callable[[Tensor], Tensor]) -> GeneratorOutputs:
        """Mine the object of B queries.

        `hard_mask` turns logits [B,2,h,w] into the next refinement's mask [B,1,h,w] of 0 and 1.
        """
        scales = self.scales(clue.tokens)
        steps = zip(self.mining, scales, strict=True)
        found = [mining(x, clue.initial_mask, clue.prior) for mining, x in steps]
        mined, correlations = map(list, zip(*found, strict=True))
        feature = torch.relu(self.parse[0](mined[0]))
        for x, parse in zip(mined[1:], self.parse[1:], strict=True):
            up = bilinear(feature, grid_size(x))
            feature = up + torch.relu(parse(x + up))

        features, logits, masks = [feature], [at_least_float32(self.heads[0](feature))], []
        refinements = zip(self.refine_mining, self.refine_parse, self.heads[1:], strict=True)
        for mining, parse, head in refinements:
            masks.append(hard_mask(logits[-1]))
            x, _ = mining(features[-1], masks[-1], clue.prior)
            features.append(torch.relu(parse(x)))
            logits.append(at_least_float32(head(features[-1])))
        features = [at_least_float32(f) for f in features]
        return GeneratorOutputs(scales, correlations, features, logits, masks)
