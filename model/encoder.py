"""The frozen encoder: the base learner as stage one trained it, or a backbone (method 1)."""

from collections.abc import Callable
from inspect import signature
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from model.backbones import TimmBackbone
from model.base_learner import BaseLearner, Features, FrozenBackbone
from model.device import is_accelerator
from model.errors import UserError
from model.folding import WeightCache, fold_batch_norms
from model.query_support import QueryFeatures, SupportFeatures
from model.resize import at_least_float32, grid_size


class _Folded(NamedTuple):
    """What a base learner or a backbone computes with its batch norms folded."""

    features: Callable[[Tensor], Features]
    maps: Callable[[Tensor, Tensor | None], Features]
    context_inside: Callable[[Tensor, Tensor], list[Tensor]] | None


class Encoder(nn.Module):
    """Compute features and base logits of images, without gradient, batch norms in eval mode.

    Equals `plain.features` and `plain.classify`. Images run through a copy of `base`, a base
    learner or a backbone, whose batch norms are folded into its convolutions (`fold_batch_norms`).
    The copy is made at the first image, and again when a weight, its type or its device has
    changed. It is not a submodule: parameters, state dict and checkpoints are those of `base`.

    `base` is frozen here. With `dropout`, the classifier's dropout stays on while the rest trains
    (as published). `low_fea` is the stage whose Gram matrices are compared. Supports are masked as
    `mask` says: image, pixels outside the object are 0; or features, f3 is multiplied by the mask
    before stage 4, and f4 after it. `support_f5` tells whether the system reads f5 of supports;
    then it is computed inside their masks only. With `train_norms`, the batch norms of the backbone
    train with the rest: they use and track the statistics of the batch, so features do change;
    `changes` counts how often they did. `keep` says what supports keep whole, see
    `SupportFeatures`.
    """

    def __init__(
        self, base: FrozenBackbone, *, dropout: bool = True, low_fea: str = "layer2",
        mask: Literal["image", "features"] = "image", train_norms: bool = False,
        keep: tuple[str, ...] = (), support_f5: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.base, self.low_fea = base.requires_grad_(False), low_fea
        self.keep_dropout, self.masks_features = dropout, mask == "features"
        self.train_norms, self.changes, self.keep = train_norms, 0, keep
        self.support_f5 = support_f5
        if self.masks_features and "weight" not in signature(base.backbone.forward).parameters:
            what = "its `forward` has no `weight`, by which this Method.name masks f3"
            raise UserError(f"Method.backbone: {what}; add it, or set resnet50, resnet101 or vgg16")
        if self.masks_features and isinstance(base.backbone, TimmBackbone):
            base.backbone.stage_of_f3()  # a model without it is refused
        self._folded = WeightCache()
        self._compiler: Callable[[Callable], Callable] | None = None
        self.train()

    def train(self, mode: bool = True) -> "Encoder":
        """Set the mode of the classifier's dropout and, with `train_norms`, of the batch norms."""
        super().train(False)
        self.training = mode
        if isinstance(self.base, BaseLearner):
            self.base.dropout.train(mode and self.keep_dropout)
        if self.train_norms:
            self._folded.clear()  # folded batch norms are those of eval mode
            for module in self.base.backbone.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.train(mode)
        return self

    def compile_with(self, compiler: Callable[[Callable], Callable]) -> None:
        """Run the features' computation through a compiler such as `torch.compile`."""
        self._compiler = compiler
        self._folded.clear()

    @torch.no_grad()
    def forward(self, image: Tensor) -> Features:
        """Compute the features of images [N,3,S,S]."""
        self.changes += self.train_norms and self.training
        return self._folded(self.base, self._fold).features(image)

    def _fold(self) -> "_Folded":
        base, compiled = fold_batch_norms(self.base), self._compiler or (lambda compute: compute)
        context = base.context_inside if isinstance(base, BaseLearner) else None
        return _Folded(compiled(base.features), compiled(base.maps), context)

    def query(self, image: Tensor) -> QueryFeatures:
        """Encode query images [N,3,S,S]."""
        return QueryFeatures.from_features(self(image), grid_size(image), self.low_fea)

    def episodes(
        self, query: Tensor, support: Tensor, mask: Tensor, *, keep: tuple[str, ...] = ()
    ) -> tuple[QueryFeatures, list[list[SupportFeatures]]]:
        """Encode queries [B,3,S,S] with their supports, as `query` and `supports` do.

        On an accelerator, supports keep the whole grid, and all images run as one batch, if what
        they need of the backbone is the same.
        """
        alike = self.support_f5 and not (self.masks_features or self.train_norms)
        if not (is_accelerator(query) and alike):
            # Queries first, as published: batch norms may be in train mode.
            cut = not is_accelerator(query)
            return self.query(query), self.supports(support, mask, keep=keep, cut=cut)
        inside, masks = self._inside(mask, query.dtype)
        features = self(torch.cat((query, support.flatten(0, 1) * inside)))
        parts = zip(*(f.split((len(query), len(masks))) for f in features.maps()), strict=True)
        of_queries, of_supports = (Features(*maps) for maps in parts)
        kept = SupportFeatures.from_features(
            of_supports, masks, self.low_fea, keep=(*self.keep, *keep), cut=False
        )
        queries = QueryFeatures.from_features(of_queries, grid_size(query), self.low_fea)
        return queries, _by_query(kept, mask.shape[1])

    @torch.no_grad()
    def supports(
        self, image: Tensor, mask: Tensor, *, keep: tuple[str, ...] = (), cut: bool = True
    ) -> list[list[SupportFeatures]]:
        """Encode supports [B,K,3,S,S] with their masks [B,K,S,S] in {0,1,255}: B lists of K.

        Only pixels where the mask is 1 enter the backbone, or its last stage. `keep` names what
        supports keep whole, beside that of the encoder. `cut` is that of
        `SupportFeatures.from_features`.
        """
        self.changes += self.train_norms and self.training
        images, (inside, masks) = image.flatten(0, 1), self._inside(mask, image.dtype)
        folded = self._folded(self.base, self._fold)
        masked = (images, inside) if self.masks_features else (images * inside, None)
        if self.support_f5 and not cut:
            maps, context = folded.features(masked[0]), None
        else:
            maps, context = folded.maps(*masked), folded.context_inside
        kept = SupportFeatures.from_features(
            maps, masks, self.low_fea,
            weigh_f4=self.masks_features, keep=(*self.keep, *keep),
            context=context if self.support_f5 else None, cut=cut,
        )  # fmt: skip
        return _by_query(kept, mask.shape[1])

    @staticmethod
    def _inside(mask: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return where masks [B,K,S,S] are 1, as 0 and 1 [B*K,1,S,S], and the masks [B*K,S,S]."""
        masks = mask.flatten(0, 1)
        return (masks == 1)[:, None].to(dtype), masks

    @torch.no_grad()
    def shown_classes(self, supports: list[list[SupportFeatures]]) -> Tensor:
        """Return which base classes the objects of B lists of K supports show: bool [B,classes+1].

        Shown are, of the mean probabilities over the positions of the objects, the highest of a
        base class, and each that is not below that of the background. The background, number 0,
        never is. Equals `plain.shown_classes`.
        """
        classifier = self.base_learner.classifier
        rows, weight = [], classifier.weight.flatten(1)
        for shots in supports:
            f5 = at_least_float32(torch.cat([support.f5 for support in shots], dim=1))
            logits = nn.functional.linear(torch.relu(f5).T, weight, classifier.bias)
            probability = torch.softmax(at_least_float32(logits), dim=1)
            inside = [shot.inside for shot in shots if shot.inside is not None]
            if inside:
                weights = torch.cat(inside).to(probability.dtype)
                probability = weights @ probability / weights.sum()
            else:
                probability = probability.mean(0)
            background, classes = probability[:1], probability[1:]
            # Without any position, these are NaN, and no class is shown.
            shown = classes >= torch.minimum(background, classes.max())
            rows.append(torch.cat((torch.zeros_like(shown[:1]), shown)))
        return torch.stack(rows)

    @property
    def base_learner(self) -> BaseLearner:
        """The base learner, of a system that has one."""
        assert isinstance(self.base, BaseLearner)
        return self.base

    @torch.no_grad()
    def base_logits(self, features: Features) -> Tensor:
        """Return the base learner's logits [N,classes+1,h,w], channel 0 the background."""
        return self.base_learner.classify(features.f5)


def _by_query(supports: list[SupportFeatures], shot: int) -> list[list[SupportFeatures]]:
    return [supports[i : i + shot] for i in range(0, len(supports), shot)]
