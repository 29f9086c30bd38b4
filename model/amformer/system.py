"""AMFormer, wired: encoder, clue, G and ensemble; D, for training only.

`model/amformer/plain.py` states the same system as equations: read that first.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.amformer.clue import ClueExtractor
from model.amformer.detail_mining import DetailMining
from model.amformer.names import PUBLISHED
from model.amformer.object_mining import GeneratorOutputs, ObjectMining
from model.attention import Projections
from model.base_learner import BaseLearner
from model.encoder import Encoder
from model.ensemble import Ensemble, base_probability
from model.mining import at_scales
from model.prediction import EnsemblePrediction
from model.query_support import QueryFeatures, SupportFeatures
from model.resize import at_least_float32
from model.system import System


@dataclass
class MiningPrediction(EnsemblePrediction, GeneratorOutputs):
    """All results for B queries, with those of G; h x w is the feature grid, S the image size."""

    logits: list[Tensor]
    initial_mask: Tensor  # [B,1,h,w]


class AMFormer(System):
    """The whole system for K = `shot`, with random weights.

    `backbone` and the keyword arguments are the keys of `Method`, by default as published;
    docs/config.md and docs/deviations.md explain them. `classes` is the number of base classes of
    the fold, without background. Its losses, which are those of two networks in turn, are in
    util/train/adversarial.py.
    """

    PUBLISHED, TRANSFORMER = PUBLISHED, ObjectMining

    def __init__(
        self,
        backbone: str,
        classes: int,
        shot: int,
        *,
        fix_bn: bool = True,
        base_dropout: bool = True,
        mask_threshold: float = 0.7,
        mining_softmax: str = "query",
        discriminator_sigmoid: bool = True,
        projection_init: str = "linear",
        low_fea: str = "layer2",
        kshot_trans_dim: int = 2,
        base_map: str = "all",
    ) -> None:
        base = BaseLearner(backbone, classes)
        encoder = Encoder(base, dropout=base_dropout, low_fea=low_fea)
        super().__init__(encoder, shot, fix_bn=fix_bn)
        self.base_map = base_map
        channels = self.encoder.base.backbone.channels
        self.clue = ClueExtractor(channels, threshold=mask_threshold)
        self.object_mining = ObjectMining(mining_softmax)
        self.ensemble = Ensemble(shot, kshot_trans_dim)
        self.detail_mining = DetailMining(sigmoid=discriminator_sigmoid)
        if projection_init == "trunc_normal":
            for module in self.object_mining.modules():
                if isinstance(module, Projections):
                    module.shrink_weights()
        self.train()

    def segment(
        self, query: QueryFeatures, supports: list[list[SupportFeatures]],
        class_index: Tensor | None, *, learned: bool,
    ) -> MiningPrediction:  # fmt: skip
        """Segment as `System.match`; `plain.predict`."""
        batch = len(supports)
        clue = self.clue(query, supports)
        base_logits = at_least_float32(self.encoder.base_logits(query.features))
        shown = self.encoder.shown_classes(supports) if self.base_map == "unshown" else None
        base = base_probability(base_logits, class_index, shown).expand(batch, -1, -1, -1)
        if self.base_map == "none":
            base = torch.zeros_like(base)
        psi = self.ensemble.psi(clue.distances, learned=learned)
        masks = at_scales(clue.initial_mask)
        outputs = self.object_mining(clue, masks, lambda z: self.ensemble.hard_mask(z, base, psi))
        final, foreground = self.ensemble(outputs.logits[-1], base, psi)
        return MiningPrediction(
            size=query.size, prior=clue.prior, psi=psi, initial_mask=clue.initial_mask,
            base_logits=base_logits.expand(batch, -1, -1, -1), final=final, foreground=foreground,
            **vars(outputs),
        )  # fmt: skip
