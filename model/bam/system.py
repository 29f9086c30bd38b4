"""BAM: a meta learner of one prototype and one prior, and the base learner that it shares.

"Learning What Not to Segment: A New Perspective on Few-Shot Segmentation", CVPR 2022. Only what
differs from AMFormer is here: the clue, the ASPP and the shots' weights.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.base_learner import BaseLearner
from model.blocks import CHANNELS, Refinement, mask_head, reduce_to
from model.encoder import Encoder
from model.ensemble import Ensemble, base_probability
from model.losses import cross_entropy
from model.naming import BACKBONE, BAM_HEAD, ENSEMBLE, Naming
from model.prediction import EnsemblePrediction
from model.prior import (
    gram_distances,
    merge,
    normalized_prior,
    prototypes,
    reduce_channels,
    reduction,
)
from model.query_support import QueryFeatures, SupportFeatures
from model.resize import at_least_float32
from model.system import System, Truth, stack_kept

RATES = (6, 12, 18)  # dilations of the ASPP


@dataclass
class BAMPrediction(EnsemblePrediction):
    """All results for B queries; h x w is the feature grid."""

    logits: Tensor  # before the ensemble [B,2,h,w]
    query_reduced: Tensor  # q [B or 1,256,h,w]
    support_f4: Tensor | None  # [B,K,C4,h,w], of `System.forward` only
    prototype: Tensor  # of the weighted shots [B,256]
    prior_shots: Tensor  # [B,K,h,w]
    distances: Tensor  # Gram distances [B,K]
    shot_weights: Tensor  # [B,K]
    merged: Tensor  # the ASPP's input [B,256,h,w]
    aspp: Tensor  # its five branches [B,1280,h,w]
    reduced: Tensor  # [B,256,h,w]
    refined: Tensor  # [B,256,h,w]
    base_map: Tensor  # probability of being any base class [B,1,h,w]
    background: Tensor  # bg'' [B,1,h,w]


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: the mean, 1x1, and 3x3 at three dilations, each with ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(CHANNELS, CHANNELS, 1) for _ in range(2))
        for rate in RATES:
            conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=rate, dilation=rate)
            self.branches.append(conv)
        for branch in self.branches:
            nn.init.kaiming_normal_(branch.get_parameter("weight"))

    def forward(self, x: Tensor) -> Tensor:
        """Return the joined branches [B,1280,h,w] of a map [B,256,h,w]."""
        mean, *convs = self.branches
        whole = mean(x.mean((2, 3), keepdim=True)).expand_as(x)
        return torch.relu(torch.cat([whole, *(conv(x) for conv in convs)], dim=1))


class BAM(System):
    """The whole system for K = `shot`, with random weights.

    `backbone` and the keyword arguments are the keys of `Method`. `classes` is the number of base
    classes of the fold, without background.
    """

    PRIORS, SHOWN = ("f4",), ("f4",)
    OPTIMIZER = "sgd"
    # As published: `index_split: -1` puts all parameters into the group of the tenfold rate.
    GROUPS = {"encoder.": "frozen", "": "other"}
    LOSSES = {"main": "", "meta": "aux_weight1"}
    PUBLISHED = Naming(
        marks=("aspp.", "ASPP_meta."),
        starts=[
            BACKBONE,
            (r"encoder\.base\.ppm\.", r"learner_base.0."),
            (r"encoder\.base\.fuse\.", r"learner_base.1."),
            (r"encoder\.base\.classifier\.", BAM_HEAD),
            *ENSEMBLE,
            (r"aspp\.branches\.(\d)\.", r"ASPP_meta.layer6_\1.0."),
            (r"reduce\.", r"res1_meta."),
            (r"refine\.", r"res2_meta."),
            (r"head\.", r"cls_meta."),
        ],
    )

    def __init__(
        self, backbone: str, classes: int, shot: int,
        *, base_dropout: bool = True, low_fea: str = "layer2", kshot_trans_dim: int = 2,
    ) -> None:  # fmt: skip
        base = BaseLearner(backbone, classes)
        encoder = Encoder(
            base, dropout=base_dropout, low_fea=low_fea, mask="features", support_f5=False
        )
        super().__init__(encoder, shot, fix_bn=True)
        channels = base.backbone.channels
        self.down_query, self.down_supp = (reduction(channels) for _ in range(2))
        self.init_merge = reduce_to(CHANNELS, 2 * CHANNELS + 1)
        self.aspp = ASPP()
        self.reduce = reduce_to(CHANNELS, 5 * CHANNELS)
        self.refine = Refinement()
        self.head = mask_head()
        self.ensemble = Ensemble(shot, kshot_trans_dim)
        self.train()

    def segment(
        self, query: QueryFeatures, supports: list[list[SupportFeatures]],
        class_index: Tensor | None, *, learned: bool,
    ) -> BAMPrediction:  # fmt: skip
        """Segment as `System.match`."""
        batch, maps = len(supports), query.features
        with torch.no_grad():
            prior_shots = normalized_prior(maps, supports)
            distances = gram_distances(query.gram, supports)
            base_logits = at_least_float32(self.encoder.base_logits(maps))
        weights = self.ensemble.shot_weights(distances, unsort=True, learned=learned)
        psi = (weights * distances).sum(1)
        prior = (weights[..., None, None] * prior_shots).sum(1, keepdim=True)
        prototype = (weights[..., None] * prototypes(supports, self.down_supp)).sum(1)
        q = reduce_channels(self.down_query, maps.f2, maps.f3)
        merged = merge(self.init_merge, q, prototype, prior)
        aspp = self.aspp(merged)
        reduced = self.reduce(aspp)
        refined = self.refine(reduced)
        logits = at_least_float32(self.head(refined))
        base = base_probability(base_logits, class_index).expand(batch, -1, -1, -1)
        final, foreground = self.ensemble(logits, base, psi)
        return BAMPrediction(
            size=query.size, final=final, logits=logits, prior=prior, psi=psi,
            base_logits=base_logits.expand(batch, -1, -1, -1), foreground=foreground,
            query_reduced=q, support_f4=stack_kept(supports, "f4_map"), prototype=prototype,
            prior_shots=prior_shots, distances=distances, shot_weights=weights, merged=merged,
            aspp=aspp, reduced=reduced, refined=refined, base_map=base, background=final[:, :1],
        )  # fmt: skip

    def losses(self, prediction: BAMPrediction, truth: Truth) -> dict[str, Tensor]:
        """Return `main` of the final scores, `meta`, and `base`, which is frozen and only shown."""
        return {
            "main": cross_entropy(prediction.final, truth.mask, truth.pixels),
            "meta": cross_entropy(prediction.logits, truth.mask, truth.pixels),
            "base": cross_entropy(prediction.base_logits, truth.base_mask, truth.base_pixels),
        }
