"""What supports say about a query: prototype, initial mask, prior, Gram distances (method 2)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.base_learner import Features
from model.resize import bilinear_ac, nearest

TEMPERATURE = 0.1


@dataclass
class Clue:
    """For B queries with K shots each.

    Attributes:
        tokens: G's input [B,64,h,w].
        prior: training-free similarity to the support object [B,2,h,w], from f5 and from f4.
        initial_mask: cos(prototype, query) / 0.1, weak values set to 0: [B,1,h,w].
        distances: Gram distance of each shot [B,K], in shot order.
    """

    tokens: Tensor
    prior: Tensor
    initial_mask: Tensor
    distances: Tensor


class ClueExtractor(nn.Module):
    """Frozen features of query and supports -> Clue.

    Args:
        channels: of f2, f3, f4.
        threshold: values of cos / 0.1 below it are 0 in the initial mask.
    """

    def __init__(self, channels: tuple[int, int, int], *, threshold: float = 0.7):
        super().__init__()
        middle = channels[0] + channels[1]
        self.down_query = nn.Sequential(
            nn.Conv2d(middle, 256, 1, bias=False), nn.ReLU(), nn.Dropout2d(0.5)
        )
        self.down_supp = nn.Sequential(
            nn.Conv2d(middle, 256, 1, bias=False), nn.ReLU(), nn.Dropout2d(0.5)
        )
        self.query_merge = nn.Sequential(nn.Conv2d(256 + 256 + 2, 64, 1, bias=False), nn.ReLU())
        # Published checkpoints hold this weight and no computation uses it: kept for the way back.
        self.register_buffer("supp_merge", torch.zeros(64, 512, 1, 1))
        self.threshold = threshold

    def forward(self, query: Features, support: Features, support_mask: Tensor) -> Clue:
        """Features of B queries and their supports -> Clue.

        Args:
            query: B maps.
            support: B*K maps, the shots of one query side by side.
            support_mask: [B,K,S,S] in {0,1,255}.
        """
        batch, shot = support_mask.shape[:2]
        grid = query.f3.shape[-2:]
        inside = (support_mask == 1).flatten(0, 1)[:, None].to(query.f3.dtype)  # [BK,1,S,S]

        q = self.down_query(torch.cat((query.f3, query.f2), dim=1))
        s = self.down_supp(torch.cat((support.f3, support.f2), dim=1))
        prototype = masked_mean(s, bilinear_ac(inside, grid)).view(batch, shot, -1).mean(1)
        with torch.no_grad():
            prior = cross_prior(query, support, nearest(inside, grid), shot)
            distances = gram_distances(query.f2, support.f2, shot)
        cosine = F.cosine_similarity(q, prototype[..., None, None], dim=1)[:, None] / TEMPERATURE
        initial = torch.where(cosine < self.threshold, 0, cosine)
        return Clue(self.merge(q, prototype, prior), prior, initial, distances)

    def merge(self, q: Tensor, prototype: Tensor, prior: Tensor) -> Tensor:
        """ReLU(conv1x1([q, prototype everywhere, 10 prior])) -> G's input [B,64,h,w].

        The prototype's part is computed once a query, not once a position.

        Args:
            q: [B,256,h,w].
            prototype: [B,256].
            prior: [B,2,h,w].
        """
        conv, relu = self.query_merge
        of_q, of_p, of_prior = conv.weight.split((256, 256, 2), dim=1)
        spread = F.linear(prototype, of_p.flatten(1))[..., None, None]
        return relu(F.conv2d(q, of_q) + F.conv2d(prior * 10, of_prior) + spread)


def masked_mean(features: Tensor, mask: Tensor) -> Tensor:
    """[N,C,h,w], [N,1,h,w] -> [N,C]: sum(features * mask) / (sum(mask) + 0.0005)."""
    total = torch.einsum("nchw,nhw->nc", features, mask[:, 0])
    return total / (mask.sum((2, 3)) + 0.0005)


def cross_prior(query: Features, support: Features, inside: Tensor, shot: int) -> Tensor:
    """The prior, mean over the K shots: from f5 and from f4.

    Args:
        query: B maps.
        support: B*K maps.
        inside: [BK,1,h,w], 1 on the object and 0 elsewhere.
        shot: K.

    Returns:
        [B,2,h,w]
    """
    maps = [
        torch.stack([similarity(q[n // shot], s[n], inside[n, 0] == 1) for n in range(len(s))])
        for q, s in ((query.f5, support.f5), (query.f4, support.f4))
    ]
    prior = torch.stack(maps, dim=1)  # [BK,2,h,w]
    return prior.view(-1, shot, *prior.shape[1:]).mean(1)


def similarity(query: Tensor, support: Tensor, inside: Tensor) -> Tensor:
    """max over support positions of <s m, q> / (|s m| |q| + 1e-7), one query and one shot.

    Positions outside the mask are zero vectors of similarity 0, so only those inside are computed;
    0 takes part in the maximum as soon as one position lies outside.

    Args:
        query: q [C,h,w].
        support: s [C,h,w].
        inside: m, bool [h,w].

    Returns:
        [h,w]
    """
    q, s = query.flatten(1), support[:, inside]  # [C,hw], [C,n]
    if s.shape[1] == 0:
        return torch.zeros_like(query[0])
    norms = q.norm(dim=0)[:, None] * s.norm(dim=0)[None]
    best = ((q.t() @ s) / (norms + 1e-7)).amax(1)
    if s.shape[1] < inside.numel():
        best = best.clamp(min=0)
    return best.view_as(query[0])


def gram_matrix(features: Tensor) -> Tensor:
    """[N,C,h,w] -> cosines between channels [N,C,C]."""
    f = features.flatten(2)
    norm = f.norm(dim=2)
    return (f @ f.transpose(1, 2)) / (norm[:, :, None] * norm[:, None] + 1e-7)


def gram_distances(query: Tensor, support: Tensor, shot: int) -> Tensor:
    """Frobenius distances between the Gram matrices of queries and their supports, over C.

    Args:
        query: f2 [B,C,h,w].
        support: f2 [BK,C,h,w].
        shot: K.

    Returns:
        [B,K]
    """
    difference = gram_matrix(query).repeat_interleave(shot, 0) - gram_matrix(support)
    return (difference.flatten(1).norm(dim=1) / query.shape[1]).view(-1, shot)
