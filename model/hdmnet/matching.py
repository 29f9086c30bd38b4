"""The matching transformer of HDMNet: query and supports in one pyramid, matched at each scale."""

from dataclasses import dataclass

from torch import Tensor, nn

from model.attention import module_list
from model.folding import composed_together
from model.mining import SCALES, MiningStep, Pyramid, decode, head_chain, parse_chain
from model.resize import at_least_float32, grid_size, nearest, to_tokens


@dataclass
class MatchingOutputs:
    """Outputs of the transformer; lists are from coarse to fine."""

    query_scales: list[Tensor]  # [B,64,h_i,w_i]
    support_scales: list[Tensor]  # [B,K,64,h_i,w_i]
    correlations: list[Tensor]  # of a query with the supports' objects [B,h_i,w_i]
    matched: list[Tensor]  # output of the matching layers [B,64,h_i,w_i]
    fused: list[Tensor]  # with the prior [B,64,h_i,w_i]
    parsed: list[Tensor]  # [B,64,h_i,w_i]
    feature: Tensor  # the head's input [B,64,h,w]
    logits: Tensor  # [B,2,h,w]


class Matching(nn.Module):
    """Pyramid, one matching step for each scale, decoder and head."""

    def __init__(self) -> None:
        super().__init__()
        self.pyramid = Pyramid()
        self.steps = module_list(MiningStep() for _ in range(SCALES))
        self.parse = module_list(parse_chain() for _ in range(SCALES))
        self.head = head_chain()

    def forward(
        self, query: Tensor, supports: Tensor, mask: Tensor, prior: Tensor
    ) -> MatchingOutputs:
        """Match query tokens [B,64,h,w] with those of supports [B,K,64,h,w].

        The masks [B,K,S,S] of 0 and 1 are resized nearest to each scale; the prior is [B,2,h,w].
        """
        shot = supports.shape[1]
        queries = self.pyramid(query)
        sources = [x.unflatten(0, (-1, shot)) for x in self.pyramid(supports.flatten(0, 1))]
        found = []
        for x, source, step in zip(queries, sources, self.steps, strict=True):
            keep = nearest(mask, grid_size(x)).flatten(1)  # [B,K*N], as the tokens: shot 0 first
            tokens = to_tokens(source.flatten(0, 1)).unflatten(0, (-1, shot)).flatten(1, 2)
            found.append(step(x, keep, prior, tokens))
        feature, parsed = decode([one.fused for one in found], composed_together(self.parse))
        return MatchingOutputs(
            query_scales=queries,
            support_scales=sources,
            correlations=[one.correlation for one in found],
            matched=[one.layer for one in found],
            fused=[one.fused for one in found],
            parsed=parsed,
            feature=feature,
            logits=at_least_float32(self.head(feature)),
        )
