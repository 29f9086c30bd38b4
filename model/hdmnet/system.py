"""HDMNet: query and supports meet at three scales of one transformer; a base learner is merged in.

"Hierarchical Dense Correlation Distillation for Few-Shot Segmentation", CVPR 2023.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.base_learner import BaseLearner
from model.blocks import reduce_to
from model.encoder import Encoder
from model.ensemble import Ensemble, base_probability
from model.hdmnet.matching import Matching, MatchingOutputs
from model.hdmnet.names import PUBLISHED
from model.losses import cross_entropy, divergence, object_map
from model.mining import CHANNELS
from model.prediction import EnsemblePrediction
from model.prior import (
    gram_distances,
    masked_mean,
    merge,
    reduce_channels,
    reduction,
    training_free_prior,
)
from model.query_support import QueryFeatures, SupportFeatures
from model.resize import at_least_float32, bilinear_ac, grid_size
from model.system import System, Truth, stack_kept


@dataclass
class HDMNetPrediction(EnsemblePrediction, MatchingOutputs):
    """All results for B queries; h x w is the feature grid."""

    logits: Tensor  # before the ensemble [B,2,h,w]
    query_reduced: Tensor  # q [B or 1,256,h,w]
    prototype: Tensor  # mean over the shots [B,256]
    query_tokens: Tensor  # [B,64,h,w]
    support_tokens: Tensor  # [B,K,64,h,w]
    distances: Tensor  # Gram distances [B,K]
    shot_weights: Tensor  # in shot order [B,K]
    base_map: Tensor  # probability of being any base class [B,1,h,w]
    background: Tensor  # bg'' [B,1,h,w]


class HDMNet(System):
    """The whole system for K = `shot`, with random weights.

    `backbone` and the keyword arguments are keys of `Method`. `classes` is the number of base
    classes of the fold, without background.
    """

    OPTIMIZER = "adamw"
    # As published: the K-shot weights are in no optimizer.
    GROUPS = {
        **{"encoder.": "frozen", "ensemble.kshot.": "frozen"},
        **{"matching.": "transformer", "ensemble.": "merge", "": "other"},
    }
    LOSSES = {"main": "", "meta": "", "distillation": "aux_weight1"}
    PUBLISHED, TRANSFORMER = PUBLISHED, Matching

    def __init__(
        self, backbone: str, classes: int, shot: int,
        *, fix_bn: bool = True, base_dropout: bool = True, low_fea: str = "layer2",
        kshot_trans_dim: int = 2,
    ) -> None:  # fmt: skip
        base = BaseLearner(backbone, classes)
        kept = ("f2", "f3", "mask")
        encoder = Encoder(base, dropout=base_dropout, low_fea=low_fea, keep=kept)
        super().__init__(encoder, shot, fix_bn=fix_bn)
        channels = base.backbone.channels
        self.down_query, self.down_supp = (reduction(channels) for _ in range(2))
        self.query_merge = reduce_to(CHANNELS, 256 + 256 + 2)
        self.supp_merge = reduce_to(CHANNELS, 256 + 256)
        self.matching = Matching()
        self.ensemble = Ensemble(shot, kshot_trans_dim)
        self.train()

    def segment(
        self, query: QueryFeatures, supports: list[list[SupportFeatures]],
        class_index: Tensor | None, *, learned: bool,
    ) -> HDMNetPrediction:  # fmt: skip
        """Segment as `System.match`."""
        batch, maps = len(supports), query.features
        f2, f3, mask = (stack_kept(supports, name) for name in ("f2_map", "f3_map", "mask"))
        assert f2 is not None and f3 is not None and mask is not None  # the encoder keeps them
        with torch.no_grad():
            prior = training_free_prior(maps, supports)
            distances = gram_distances(query.gram, supports)
            base_logits = at_least_float32(self.encoder.base_logits(maps))
        inside = at_least_float32(mask.to(f3.dtype))  # [B,K,S,S]
        s = reduce_channels(self.down_supp, f2.flatten(0, 1), f3.flatten(0, 1))  # [B*K,256,h,w]
        weight = bilinear_ac(inside, grid_size(s)).flatten(0, 1)
        prototypes = masked_mean(s.flatten(2), weight.flatten(1))
        prototype = prototypes.unflatten(0, (batch, -1)).mean(1)
        q = reduce_channels(self.down_query, maps.f2, maps.f3)
        tokens = merge(self.query_merge, q, prototype, prior * 10)
        support_tokens = merge(self.supp_merge, s, prototypes).unflatten(0, (batch, -1))
        outputs = self.matching(tokens, support_tokens, inside, prior)
        weights = self.ensemble.shot_weights(distances, unsort=False, learned=learned)
        psi = (weights * distances).sum(1)
        base = base_probability(base_logits, class_index).expand(batch, -1, -1, -1)
        final, foreground = self.ensemble(outputs.logits, base, psi)
        return HDMNetPrediction(
            size=query.size, final=final, prior=prior, psi=psi, foreground=foreground,
            base_logits=base_logits.expand(batch, -1, -1, -1), query_reduced=q,
            prototype=prototype, query_tokens=tokens, support_tokens=support_tokens,
            distances=distances, shot_weights=weights, base_map=base, background=final[:, :1],
            **vars(outputs),
        )  # fmt: skip

    def losses(self, prediction: HDMNetPrediction, truth: Truth) -> dict[str, Tensor]:
        """Return `main` of the final scores, `meta`, `distillation`; `base` is only shown.

        The coarsest correlation learns from the object, each finer one from the one before it.
        """
        found = prediction.correlations
        teachers = [object_map(truth.mask, found[0].dtype), *(r.detach() for r in found[:-1])]
        pairs = zip(found, teachers, strict=True)
        terms = torch.stack([divergence(r, teacher).mean() for r, teacher in pairs])
        return {
            "main": cross_entropy(prediction.final, truth.mask, truth.pixels),
            "meta": cross_entropy(prediction.logits, truth.mask, truth.pixels),
            "distillation": truth.share * terms.mean(),
            "base": cross_entropy(prediction.base_logits, truth.base_mask, truth.base_pixels),
        }
