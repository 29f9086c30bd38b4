"""The frozen encoder: the base learner, trained in stage one, never again (method 1)."""

import torch
from torch import Tensor, nn

from model.base_learner import BaseLearner, Features


class Encoder(nn.Module):
    """Image (and a support's mask) -> features, base logits.

    Without gradient, batch norms in eval mode.

    Args:
        base: is frozen here.
        dropout: leave the classifier's dropout on while the rest trains (as published).
    """

    def __init__(self, base: BaseLearner, *, dropout: bool = True):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.keep_dropout = dropout
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
        return self.base.features(image)

    @torch.no_grad()
    def base_logits(self, features: Features) -> Tensor:
        return self.base.classify(features.f5)
