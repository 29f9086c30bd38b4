"""G, the object-mining transformer (method 3).

A pyramid, masked mining from coarse to fine, two refinements at the full grid.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.amformer.clue import Clue
from model.attention import module_list
from model.folding import composed_together
from model.mining import SCALES, MiningStep, Pyramid, decode, head_chain, parse_chain
from model.resize import at_least_float32

REFINEMENTS = 2


@dataclass
class GeneratorOutputs:
    """Outputs of G."""

    query_scales: list[Tensor]  # the pyramid, coarse to fine, 3 x [B,64,h_i,w_i]
    correlations: list[Tensor]  # coarse to fine, 3 x [B,h_i,w_i], for the distillation loss
    features: list[Tensor]  # F_0, F_1, F_2 at the full grid, [B,64,h,w] each
    logits: list[Tensor]  # of each feature, [B,2,h,w]
    masks: list[Tensor]  # the hard masks of refinements 1 and 2, [B,1,h,w] of 0 and 1


class ObjectMining(nn.Module):
    """G; `softmax` is the axis of the mining attention's, "query" as published or "key"."""

    def __init__(self, softmax: str = "query") -> None:
        super().__init__()
        self.pyramid = Pyramid()
        self.mining = module_list(MiningStep(softmax) for _ in range(SCALES))
        self.parse = module_list(parse_chain() for _ in range(SCALES))
        self.refine_mining = module_list(MiningStep(softmax) for _ in range(REFINEMENTS))
        self.refine_parse = module_list(parse_chain() for _ in range(REFINEMENTS))
        self.heads = module_list(head_chain() for _ in range(1 + REFINEMENTS))

    def forward(
        self, clue: Clue, masks: list[Tensor], hard_mask: Callable[[Tensor], Tensor]
    ) -> GeneratorOutputs:
        """Mine the object of B queries, by the initial mask at each scale (`at_scales`).

        `hard_mask` turns logits [B,2,h,w] into the next refinement's mask [B,1,h,w] of 0 and 1.
        """
        scales = self.pyramid(clue.tokens)
        steps = zip(self.mining, scales, masks, strict=True)
        found = [mining(x, mask, clue.prior) for mining, x, mask in steps]
        correlations = [mined.correlation for mined in found]
        parsers = composed_together([*self.parse, *self.refine_parse])
        heads = composed_together(self.heads)
        feature, _ = decode([mined.fused for mined in found], parsers[:SCALES])

        features, logits, hard = [feature], [at_least_float32(heads[0](feature))], []
        refinements = zip(self.refine_mining, parsers[SCALES:], heads[1:], strict=True)
        for mining, parse, head in refinements:
            hard.append(hard_mask(logits[-1]))
            x = mining(features[-1], hard[-1], clue.prior, correlate=False).fused
            features.append(torch.relu(parse(x)))
            logits.append(at_least_float32(head(features[-1])))
        features = [at_least_float32(f) for f in features]
        return GeneratorOutputs(scales, correlations, features, logits, hard)
