"""AMFormer: encoder, clue, G, ensemble, wired; D stands beside, for training only."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.amformer.clue import ClueExtractor
from model.amformer.detail_mining import DetailMining
from model.amformer.object_mining import ObjectMining
from model.base_learner import BaseLearner
from model.encoder import Encoder
from model.ensemble import Ensemble, base_probability
from model.errors import UserError
from model.precision import at_least_float32
from model.query_support import QueryFeatures, SupportFeatures
from model.resize import bilinear_ac

KSHOT = ("model", "ensemble", "prototype")
"""How K supports become one prediction.

- model: as published, by a model built for K. Prototypes and priors are averaged over the shots,
  p = sum_k p_k / K, and psi = sum_k w_k d_k with the K-shot weights w of the Gram distances d.
- prototype: by a model of any K. The same with w_k = 1 / K.
- ensemble: by a model of any K. Every map is the mean of those of K one-shot predictions, the final
  scores among them: final = sum_k final_k / K. A one-shot prediction has p_k and psi = d_k.

With K = 1 a 1-shot model gives the same in all three.
"""


@dataclass
class Prediction:
    """Everything the system computes for B queries; h x w is the feature grid, S the image size.

    Attributes:
        size: (S, S).
        prior: [B,2,h,w], from f5 and from f4.
        psi: Gram distance [B].
        initial_mask: [B,1,h,w].
        query_scales: the pyramid, 3 x [B,64,h_i,w_i], coarse to fine.
        correlations: 3 x [B,h_i,w_i], coarse to fine.
        features: F_0, F_1, F_2, [B,64,h,w] each.
        logits: of each, [B,2,h,w].
        masks: hard masks into the two refinements, [B,1,h,w] of 0 and 1.
        base_logits: [B,N+1,h,w].
        final: [B,2,h,w].
        foreground: fg' [B,1,h,w], the fake mask of D.

    Names of the golden files work too: `query_scale0`, `correlation1`, `feature2`, `logits0`,
    `mask1`.
    """

    size: tuple[int, int]
    prior: Tensor
    psi: Tensor
    initial_mask: Tensor
    query_scales: list[Tensor]
    correlations: list[Tensor]
    features: list[Tensor]
    logits: list[Tensor]
    masks: list[Tensor]
    base_logits: Tensor
    final: Tensor
    foreground: Tensor

    @staticmethod
    def mean(parts: list["Prediction"]) -> "Prediction":
        """The mean of every map (so `masks` of several parts are no longer 0 and 1)."""

        def of(values: list) -> Tensor | list[Tensor] | tuple[int, int]:
            if isinstance(values[0], Tensor):
                return torch.stack(values).mean(0)
            if isinstance(values[0], list):
                return [of(list(each)) for each in zip(*values, strict=True)]
            return values[0]

        return Prediction(**{name: of([vars(p)[name] for p in parts]) for name in vars(parts[0])})

    @property
    def scores(self) -> Tensor:
        """The system's output [B,2,S,S]: background and object, for argmax."""
        return bilinear_ac(self.final, self.size)

    @property
    def meta(self) -> Tensor:
        """G alone, without the ensemble: logits_2 at full size [B,2,S,S]."""
        return bilinear_ac(self.logits[-1], self.size)

    @property
    def base(self) -> Tensor:
        """Base logits at full size [B,N+1,S,S]."""
        return bilinear_ac(self.base_logits, self.size)

    def __getattr__(self, name: str) -> Tensor:
        """`logits0` = logits[0] and so on; hard masks count from 1, as the refinements do."""
        groups = {
            "query_scale": ("query_scales", 0),
            "correlation": ("correlations", 0),
            "feature": ("features", 0),
            "logits": ("logits", 0),
            "mask": ("masks", 1),
        }
        group, first = groups.get(name[:-1], (None, 0))
        if group is None or not name[-1].isdigit():
            raise AttributeError(name)
        return getattr(self, group)[int(name[-1]) - first]


class AMFormer(nn.Module):
    """The whole system with random weights.

    Args:
        backbone: as `Method.backbone`.
        classes: base classes of the fold, without background.
        shot: K.
        fix_bn: every batch norm stays in eval mode while training, the new ones too (as published).
        base_dropout: dropout stays on in the frozen base learner while training (as published).
        mask_threshold: smallest cos / 0.1 that the initial mask keeps; see `docs/deviations.md`.
        mining_softmax: axis of the mining attention's softmax, "query" or "key"; see there.
        discriminator_sigmoid: a sigmoid before the BCE with logits; see there.
    """

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
    ):
        super().__init__()
        self.shot, self.fix_bn = shot, fix_bn
        self.encoder = Encoder(BaseLearner(backbone, classes), dropout=base_dropout)
        channels = self.encoder.base.backbone.channels
        self.clue = ClueExtractor(channels, threshold=mask_threshold)
        self.object_mining = ObjectMining(mining_softmax)
        self.ensemble = Ensemble(shot)
        self.detail_mining = DetailMining(sigmoid=discriminator_sigmoid)
        self.train()

    def train(self, mode: bool = True) -> "AMFormer":
        super().train(mode)
        if self.fix_bn:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(
        self,
        query: Tensor,
        support: Tensor,
        support_mask: Tensor,
        *,
        class_index: Tensor | None = None,
    ) -> Prediction:
        """Segments each query by its K supports.

        Args:
            query: [B,3,S,S], normalised.
            support: [B,K,3,S,S], normalised.
            support_mask: [B,K,S,S] in {0,1,255}.
            class_index: [B], only while training: the episode's class among the base classes.

        Raises:
            UserError: K is not the K that the model was built for.
        """
        seen = self.encoder.supports(support.flatten(0, 1), support_mask.flatten(0, 1))
        shot = support.shape[1]
        supports = [seen[i : i + shot] for i in range(0, len(seen), shot)]
        return self.match(self.encoder.query(query), supports, class_index=class_index)

    def match(
        self,
        query: QueryFeatures,
        supports: list[list[SupportFeatures]],
        *,
        class_index: Tensor | None = None,
        kshot: str = "model",
    ) -> Prediction:
        """As forward, on what the encoder saw in B queries and their supports [B][K].

        One query may stand for all B episodes: what depends on it alone is then computed once.

        Args:
            query: B queries, or one.
            supports: [B][K].
            class_index: as in forward.
            kshot: one of `KSHOT`: how K supports become one prediction.

        Raises:
            UserError: no such `kshot`; or it is "model" and K is not what the model was built for.
        """
        if kshot not in KSHOT:
            raise UserError(f"kshot is {kshot!r}: use one of {', '.join(KSHOT)}")
        if kshot == "ensemble":
            shots = zip(*supports, strict=True)
            alone = ([[support] for support in shot] for shot in shots)
            return Prediction.mean(
                [self.match(query, s, class_index=class_index, kshot="prototype") for s in alone]
            )
        batch, shot = len(supports), len(supports[0])
        if kshot == "model" and shot != self.shot:
            raise UserError(
                f"the model was built for {self.shot} supports per query and got {shot}: "
                "set Data.shot to the number of supports, or Eval.kshot to ensemble or prototype"
            )
        clue = self.clue(query, supports)
        base_logits = at_least_float32(self.encoder.base_logits(query.features))
        base = base_probability(base_logits, class_index).expand(batch, -1, -1, -1)
        psi = self.ensemble.psi(clue.distances, learned=kshot == "model")
        mined = self.object_mining(clue, lambda z: self.ensemble.hard_mask(z, base, psi))
        final, foreground = self.ensemble(mined.logits[-1], base, psi)
        return Prediction(
            size=query.size,
            prior=clue.prior,
            psi=psi,
            initial_mask=clue.initial_mask,
            **vars(mined),
            base_logits=base_logits.expand(batch, -1, -1, -1),
            final=final,
            foreground=foreground,
        )
