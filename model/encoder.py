"""The frozen encoder: the base learner, trained in stage one, never again (method 1)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from model.base_learner import BaseLearner, Features
from model.folding import Memo, fold_batch_norms
from model.query_support import QueryFeatures, SupportFeatures


class Encoder(nn.Module):
    """Image (and a support's mask) -> features, base logits.

    Without gradient, batch norms in eval mode. Images run through a copy of the base learner whose
    batch norms are folded into its convolutions (`fold_batch_norms`), made at the first image and
    again whenever a weight, its type or its device has changed. The copy is no part of the module:
    parameters, state dict and checkpoints are those of the base learner as it was trained.
    `wrap` may be set to a function such as `torch.compile`, which the copy's computation then
    passes through.

    Args:
        base: is frozen here.
        dropout: leave the classifier's dropout on while the rest trains (as published).
    """

    def __init__(self, base: BaseLearner, *, dropout: bool = True):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.keep_dropout = dropout
        self.folded, self.wrap = Memo(), _as_it_is
        self.train()

    def train(self, mode: bool = True) -> "Encoder":
        super().train(False)
        self.training = mode
        self.base.dropout.train(mode and self.keep_dropout)
        return self

    @torch.no_grad()
    def forward(self, image: Tensor, mask: Tensor | None = None) -> Features:
        """Image [N,3,S,S], mask [N,S,S] in {0,1,255} -> Features.

        A support is multiplied by its mask (== 1) before it enters the backbone.
        """
        if mask is not None:
            image = image * (mask == 1)[:, None]
        features = self.folded(self.base, lambda: self.wrap(fold_batch_norms(self.base).features))
        return features(image)

    def query(self, image: Tensor) -> QueryFeatures:
        """Query images [N,3,S,S]."""
        return QueryFeatures.of(self(image), tuple(image.shape[-2:]))

    def supports(self, image: Tensor, mask: Tensor) -> list[SupportFeatures]:
        """Support images [N,3,S,S] and their masks [N,S,S]."""
        return SupportFeatures.of(self(image, mask), mask)

    @torch.no_grad()
    def base_logits(self, features: Features) -> Tensor:
        return self.base.classify(features.f5)


def _as_it_is(function: Callable) -> Callable:
    return function
