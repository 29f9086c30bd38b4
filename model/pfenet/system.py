"""PFENet: one prototype and one prior enrich the query's features at several scales.

"Prior Guided Feature Enrichment Network for Few-Shot Segmentation", TPAMI 2020. It has no base
learner, and its backbone keeps the weights of ImageNet.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.base_learner import FrozenBackbone
from model.blocks import CHANNELS, Refinement, mask_head, reduce_to
from model.encoder import Encoder
from model.losses import cross_entropy
from model.naming import BACKBONE, Naming
from model.pfenet.enrichment import Enriched, Enrichment
from model.prediction import Prediction
from model.prior import normalized_prior, prototypes, reduce_channels, reduction
from model.query_support import QueryFeatures, SupportFeatures
from model.resize import at_least_float32
from model.system import System, Truth, stack_kept


@dataclass
class PFENetPrediction(Prediction, Enriched):
    """All results for B queries; h x w is the feature grid. `final` is `logits`."""

    logits: Tensor  # [B,2,h,w]
    query_reduced: Tensor  # q [B or 1,256,h,w]
    support_f4: Tensor | None  # [B,K,C4,h,w], of `System.forward` only
    prototype: Tensor  # mean over the shots [B,256]
    prior_shots: Tensor  # [B,K,h,w]
    reduced: Tensor  # [B,256,h,w]
    refined: Tensor  # [B,256,h,w]


class PFENet(System):
    """The whole system, with random weights.

    `backbone` and the keyword arguments are keys of `Method`. The number of base classes has no
    effect, and `shot` adds no weights.
    """

    PRIORS, SHOWN = ("f4",), ("f4",)
    OPTIMIZER = "sgd"
    # As published: `index_split` of -1 puts all parameters into the group of the tenfold rate.
    GROUPS = {"encoder.": "frozen", "": "other"}
    LOSSES = {"main": "", "aux": "aux_weight1"}
    PUBLISHED = Naming(
        marks=("enrichment.", "alpha_conv."),
        starts=[
            BACKBONE,
            (r"enrichment\.", r""),
            (r"reduce\.", r"res1."),
            (r"refine\.", r"res2."),
            (r"head\.", r"cls."),
        ],
    )

    def __init__(
        self, backbone: str, classes: int, shot: int,
        *, ppm_scales: Sequence[float] = (60, 30, 15, 8), train_backbone_norms: bool = True,
    ) -> None:  # fmt: skip
        base = FrozenBackbone(backbone)
        encoder = Encoder(base, mask="features", support_f5=False, train_norms=train_backbone_norms)
        super().__init__(encoder, shot, fix_bn=True)
        channels = base.backbone.channels
        self.down_query, self.down_supp = (reduction(channels) for _ in range(2))
        self.enrichment = Enrichment(ppm_scales)
        self.reduce = reduce_to(CHANNELS, len(ppm_scales) * CHANNELS)
        self.refine = Refinement()
        self.head = mask_head()
        self.train()

    def segment(
        self, query: QueryFeatures, supports: list[list[SupportFeatures]],
        class_index: Tensor | None, *, learned: bool,
    ) -> PFENetPrediction:  # fmt: skip
        """Segment as `System.match`; no K-shot weights exist, and no class is left out."""
        maps = query.features
        with torch.no_grad():
            prior_shots = normalized_prior(maps, supports)
        prior = prior_shots.mean(1, keepdim=True)
        prototype = prototypes(supports, self.down_supp).mean(1)
        q = reduce_channels(self.down_query, maps.f2, maps.f3)
        features, enriched = self.enrichment(q, prototype, prior)
        reduced = self.reduce(features)
        refined = self.refine(reduced)
        logits = at_least_float32(self.head(refined))
        return PFENetPrediction(
            size=query.size, final=logits, logits=logits, query_reduced=q,
            support_f4=stack_kept(supports, "f4_map"), prototype=prototype, prior=prior,
            prior_shots=prior_shots, reduced=reduced, refined=refined, **vars(enriched),
        )  # fmt: skip

    def losses(self, prediction: PFENetPrediction, truth: Truth) -> dict[str, Tensor]:
        """Return `main` of the logits, and `aux`, the mean over those of the scales."""
        inner = [cross_entropy(z, truth.mask, truth.pixels) for z in prediction.inner_logits]
        return {
            "main": cross_entropy(prediction.logits, truth.mask, truth.pixels),
            "aux": torch.stack(inner).mean(),
        }
