"""AMFormer, wired: encoder, clue, G and ensemble; D, for training only; and `build_model`.

`model/amformer/plain.py` states the same system as equations: read that first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model.amformer.attention import Projections
from model.amformer.clue import ClueExtractor
from model.amformer.detail_mining import DetailMining
from model.amformer.object_mining import GeneratorOutputs, ObjectMining
from model.backbones import check_size
from model.base_learner import BaseLearner
from model.encoder import Encoder
from model.ensemble import Ensemble, base_probability
from model.errors import UserError
from model.folding import ComposedChain, LinearChain
from model.query_support import QueryFeatures, SupportFeatures
from model.resize import at_least_float32, bilinear_ac

KSHOT = ("model", "ensemble", "prototype")
"""How K supports become one prediction.

- model: as published, for a model built for K. Prototypes and priors are averaged over the shots,
  p = sum_k p_k / K, and psi = sum_k w_k d_k with the K-shot weights w of the Gram distances d.
- prototype: for a model built for any K. The same with w_k = 1 / K.
- ensemble: for a model built for any K. Every map is the mean over K one-shot predictions, also
  final = sum_k final_k / K. One-shot prediction k has p_k and psi = d_k.

With K = 1, a 1-shot model gives the same result in all three.
"""


@dataclass
class Prediction(GeneratorOutputs):
    """All results for B queries, with those of G; h x w is the feature grid, S the image size.

    Elements of the lists also have names of their own, as in the golden files: `query_scale0`,
    `correlation1`, `feature2`, `logits0`, `mask1`.
    """

    size: tuple[int, int]  # (S, S)
    prior: Tensor  # [B,2,h,w], from f5 and from f4
    psi: Tensor  # Gram distance [B]
    initial_mask: Tensor  # [B,1,h,w]
    base_logits: Tensor  # [B,classes+1,h,w]
    final: Tensor  # [B,2,h,w]
    foreground: Tensor  # fg' [B,1,h,w], the fake mask of D

    @staticmethod
    def mean(parts: list["Prediction"]) -> "Prediction":
        """Average every map. Averaged `masks` are no longer only 0 and 1."""

        def average(*values: Any) -> Any:
            if isinstance(values[0], Tensor):
                return torch.stack(values).mean(0)
            return list(map(average, *values)) if isinstance(values[0], list) else values[0]

        return Prediction(**{k: average(*(vars(p)[k] for p in parts)) for k in vars(parts[0])})

    @property
    def scores(self) -> Tensor:
        """Scores of background and object, to be compared (argmax): [B,2,S,S]."""
        return bilinear_ac(self.final, self.size)

    @property
    def meta(self) -> Tensor:
        """Scores of G alone, without the ensemble: logits_2 at image size [B,2,S,S]."""
        return bilinear_ac(self.logits[-1], self.size)

    @property
    def base(self) -> Tensor:
        """Base learner's logits at image size [B,classes+1,S,S]."""
        return bilinear_ac(self.base_logits, self.size)

    def __getattr__(self, name: str) -> Tensor:
        """Return `logits0` = logits[0] and so on; masks count from 1, as the refinements do."""
        maps = vars(self).get(name[:-1].removesuffix("s") + "s")
        if not isinstance(maps, list) or not name[-1].isdigit():
            raise AttributeError(name)
        return maps[int(name[-1]) - name.startswith("mask")]


class AMFormer(nn.Module):
    """The whole system for K = `shot`, with random weights.

    `backbone` and the keyword arguments are the keys of `Method`, by default as published;
    docs/config.md and docs/deviations.md explain them. `classes` is the number of base classes of
    the fold, without background.
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
        projection_init: str = "linear",
        low_fea: str = "layer2",
        kshot_trans_dim: int = 2,
        base_map: str = "all",
    ) -> None:
        super().__init__()
        self.shot, self.fix_bn, self.base_map = shot, fix_bn, base_map
        self.encoder = Encoder(
            BaseLearner(backbone, classes), dropout=base_dropout, low_fea=low_fea
        )
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

    def train(self, mode: bool = True) -> "AMFormer":
        """Set the mode; frozen parts and, with `fix_bn`, all batch norms stay in eval mode."""
        super().train(mode)
        if self.fix_bn:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def compose_chains(self) -> None:
        """Replace each chain of G by the one convolution that it computes; for prediction only."""
        for parent in list(self.object_mining.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, LinearChain):
                    setattr(parent, name, ComposedChain(child))

    def compile_with(self, compiler: Callable[[Callable], Callable]) -> None:
        """Run the encoder and G's pyramid through a compiler such as `torch.compile`."""
        self.encoder.compile_with(compiler)
        self.object_mining.compile_with(compiler)

    def forward(
        self, query: Tensor, support: Tensor, support_mask: Tensor,
        *, class_index: Tensor | None = None,
    ) -> Prediction:  # fmt: skip
        """Segment each query [B,3,S,S] by its K supports [B,K,3,S,S]; `plain.predict`.

        Images are normalized, support masks [B,K,S,S] in {0,1,255}. In training only, `class_index`
        [B] is the episode's class among the base classes, from 0. Raises `UserError` if the model
        was built for another K.
        """
        supports = self.encoder.supports(support, support_mask)
        return self.match(self.encoder.query(query), supports, class_index=class_index)

    def match(
        self, query: QueryFeatures, supports: list[list[SupportFeatures]],
        *, class_index: Tensor | None = None, kshot: str = "model",
    ) -> Prediction:  # fmt: skip
        """Segment queries, given the features of queries and of their supports, B lists of K.

        One query may serve all B episodes: what depends on it alone is computed once. `kshot`, one
        of `KSHOT`, says how K supports become one prediction. `class_index` is that of `forward`.
        Raises `UserError` if `kshot` is unknown, or "model" and the model was built for another K.
        """
        if kshot not in KSHOT:
            raise UserError(f"kshot is {kshot!r}: use one of {', '.join(KSHOT)}")
        if kshot == "ensemble":
            one_shot = [[[support] for support in shot] for shot in zip(*supports, strict=True)]
            return Prediction.mean(
                [self.match(query, s, class_index=class_index, kshot="prototype") for s in one_shot]
            )
        batch, shot = len(supports), len(supports[0])
        if kshot == "model" and shot != self.shot:
            mistake = f"the model was built for {self.shot} supports per query and got {shot}"
            remedy = f"set Data.shot to {shot}, or Eval.kshot to ensemble or prototype"
            raise UserError(f"{mistake}: {remedy}")
        clue = self.clue(query, supports)
        base_logits = at_least_float32(self.encoder.base_logits(query.features))
        shown = self.encoder.shown_classes(supports) if self.base_map == "unshown" else None
        base = base_probability(base_logits, class_index, shown).expand(batch, -1, -1, -1)
        if self.base_map == "none":
            base = torch.zeros_like(base)
        psi = self.ensemble.psi(clue.distances, learned=kshot == "model")
        outputs = self.object_mining(clue, lambda z: self.ensemble.hard_mask(z, base, psi))
        final, foreground = self.ensemble(outputs.logits[-1], base, psi)
        return Prediction(
            size=query.size, prior=clue.prior, psi=psi, initial_mask=clue.initial_mask,
            base_logits=base_logits.expand(batch, -1, -1, -1), final=final, foreground=foreground,
            **vars(outputs),
        )  # fmt: skip


def build_model(cfg: Any) -> AMFormer:
    """Build the model that a `util.config.Config` describes, with random weights; reads no file.

    Raises `UserError` if there is no such backbone, or if it takes no images of `Data.size` or of
    `Eval.val_size`.
    """
    method = cfg.Method
    model = AMFormer(
        method.backbone,
        cfg.num_base_classes,
        cfg.Data.shot,
        fix_bn=method.fix_bn,
        base_dropout=method.base_dropout,
        mask_threshold=method.mask_threshold,
        mining_softmax=method.mining_softmax,
        discriminator_sigmoid=method.discriminator_sigmoid,
        projection_init=method.projection_init,
        low_fea=method.low_fea,
        kshot_trans_dim=method.kshot_trans_dim,
        base_map=method.base_map,
    )
    for key in ("Data.size", "Eval.val_size"):
        check_size(model.encoder.base.backbone, cfg.sizes[key], key)
    return model
