"""The ensemble of G with the base learner and the Gram distance (method 4)."""

import torch
from torch import Tensor, nn

from model.resize import autocast_disabled


class Ensemble(nn.Module):
    """Gram merge, base merge and, for K > 1, the K-shot weights.

    The K-shot weights have a hidden layer of `kshot_trans_dim` channels, as in BAM none for 0.
    AMFormer's learn only with `Method.train_kshot` (util/train/optimizers.py).
    """

    def __init__(self, shot: int, kshot_trans_dim: int = 2) -> None:
        super().__init__()
        # Benchmarks set it: `hard_mask` returns ones, because unmasked mining costs most.
        self.keep_every_position = False
        self.gram_merge, self.cls_merge = (nn.Conv2d(2, 1, 1, bias=False) for _ in range(2))
        for merge in (self.gram_merge, self.cls_merge):
            nn.init.dirac_(merge.weight)  # weights 1, 0: the first input passes unchanged
        self.kshot: nn.Module | None = None
        hidden = kshot_trans_dim
        if shot > 1 and hidden:
            to_hidden, to_shots = nn.Conv2d(shot, hidden, 1), nn.Conv2d(hidden, shot, 1)
            self.kshot = nn.Sequential(to_hidden, nn.ReLU(), to_shots)
        elif shot > 1:
            self.kshot = nn.Conv2d(shot, shot, 1, bias=False)
            nn.init.constant_(self.kshot.weight, 1 / shot)

    def psi(self, distances: Tensor, *, learned: bool = True) -> Tensor:
        """Combine the Gram distances of the shots [B,K] into one per query [B].

        As published: the weights are computed from the sorted distances and applied in shot order.
        Without learned weights (a 1-shot model, or `learned` is False), it is the mean.
        """
        if self.kshot is None or not learned:
            return distances.mean(1)
        return (self.shot_weights(distances, unsort=False) * distances).sum(1)

    def shot_weights(self, distances: Tensor, *, unsort: bool, learned: bool = True) -> Tensor:
        """Return the K-shot weights of the Gram distances [B,K], whose sum is 1: [B,K].

        They are computed from the sorted distances. With `unsort`, each goes back to the shot of
        its distance; as AMFormer does it, the first goes to the first shot. Without learned
        weights, all are 1 / K.
        """
        if self.kshot is None or not learned:
            return torch.full_like(distances, 1 / distances.shape[1])
        ordered, order = distances.sort(dim=1)
        with autocast_disabled(distances):
            weights = self.kshot(ordered[..., None, None]).flatten(1)
        if unsort:
            weights = torch.empty_like(weights).scatter(1, order, weights)
        return torch.softmax(weights, dim=1)

    def forward(self, logits: Tensor, base: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
        """Merge G's logits z [B,2,h,w], the base probability [B,1,h,w] and psi [B]; `plain.merge`.

        Returns final [B,2,h,w] = [bg'', fg'], used directly as scores, and fg' [B,1,h,w].
        """
        gram, of_psi = self.gram_merge.weight.flatten()
        merged = gram * torch.softmax(logits, dim=1) + of_psi * psi[:, None, None, None]
        background, foreground = merged.split(1, dim=1)
        with autocast_disabled(logits):
            background = self.cls_merge(torch.cat((background, base), dim=1))
        return torch.cat((background, foreground), dim=1), foreground

    @torch.no_grad()
    def hard_mask(self, logits: Tensor, base: Tensor, psi: Tensor) -> Tensor:
        """Mask of the next refinement: fg' > 0.5 and not (bg'' > fg'), as 0 and 1 [B,1,h,w]."""
        if self.keep_every_position:
            return torch.ones_like(logits[:, :1])
        final, foreground = self(logits, base, psi)
        return ((foreground > 0.5) & ~(final[:, :1] > foreground)).to(logits.dtype)


def base_probability(
    logits: Tensor, class_index: Tensor | None, shown: Tensor | None = None
) -> Tensor:
    """Return the probability of being any base class [B,1,h,w], from logits [B,classes+1,h,w].

    In training the episode's own class, `class_index` [B], is left out, without renormalizing.
    So are the classes `shown` (bool [B,classes+1], with the background).
    """
    probability = torch.softmax(logits, dim=1)
    if shown is not None:
        probability = probability * ~shown[..., None, None]
    if class_index is not None:
        keep = torch.ones_like(probability[..., :1, :1])
        keep[torch.arange(len(keep), device=keep.device), class_index + 1] = 0
        probability = probability * keep
    return probability[:, 1:].sum(1, keepdim=True)
