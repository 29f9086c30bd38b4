"""D, the detail-mining transformer: the object's parts, by a real and a fake mask (method 5)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.amformer.attention import to_tokens

CHANNELS, PARTS, HEADS, LEVELS, CHOSEN = 64, 14, 4, 3, 9
TEMPERATURE = 0.1


@dataclass
class Detail:
    """What D sees on one level.

    Attributes:
        fake_maps, real_maps: part maps by either mask, [B,14,N].
        fake, real: verdicts on the chosen part, [B,1].
    """

    fake_maps: Tensor
    real_maps: Tensor
    fake: Tensor
    real: Tensor


class PartAttention(nn.Module):
    """14 learned part queries attend to the tokens of a masked feature map."""

    def __init__(self):
        super().__init__()
        self.parts = nn.Parameter(torch.rand(PARTS, CHANNELS))
        self.q, self.k, self.v, self.proj = (
            nn.Linear(CHANNELS, CHANNELS, bias=False) for _ in range(4)
        )
        self.expand = nn.Linear(CHANNELS, 3 * CHANNELS, bias=False)
        self.contract = nn.Linear(3 * CHANNELS, CHANNELS, bias=False)
        self.norm = nn.LayerNorm(CHANNELS, eps=1e-5)
        self.dropout = nn.Dropout(0.1)

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B,N,64], mask [B,N] in [0,1] -> parts [B,14,64], part maps [B,14,N].

        The softmax runs over all tokens: masked ones are zero vectors and stay in it, as published.
        """
        tokens = tokens * mask[..., None]
        q = F.normalize(self.q(self.parts).view(PARTS, HEADS, -1), dim=-1)
        k = F.normalize(self.k(tokens).unflatten(2, (HEADS, -1)), dim=-1)
        v = self.v(tokens).unflatten(2, (HEADS, -1))
        logits = torch.einsum("phd,bnhd->bhpn", q / TEMPERATURE, k)
        maps = torch.sigmoid(logits.mean(1)) * mask[:, None]
        attention = self.dropout(torch.softmax(logits, dim=-1))
        seen = torch.einsum("bhpn,bnhd->bphd", attention, v).flatten(2)
        x = self.parts + self.dropout(self.proj(seen))
        hidden = self.dropout(torch.relu(self.expand(x)))
        return self.norm(x + self.dropout(self.contract(hidden))), maps


class Discriminator(nn.Sequential):
    """64-32-16-1 on one part; `sigmoid` at the end as published (the loss applies another one)."""

    def __init__(self, *, sigmoid: bool):
        layers = [
            nn.Linear(CHANNELS, 32),
            nn.LeakyReLU(0.2),
            nn.Linear(32, 16),
            nn.LeakyReLU(0.2),
            nn.Linear(16, 1),
        ]
        super().__init__(*layers, *([nn.Sigmoid()] if sigmoid else []))


class DetailMining(nn.Module):
    """D, with its own weights for each of F_0, F_1, F_2."""

    def __init__(self, *, sigmoid: bool = True):
        super().__init__()
        self.attention = nn.ModuleList(PartAttention() for _ in range(LEVELS))
        self.discriminators = nn.ModuleList(Discriminator(sigmoid=sigmoid) for _ in range(LEVELS))

    def forward(self, features: list[Tensor], fake: Tensor, real: Tensor) -> list[Detail]:
        """One Detail a level.

        Per image and level both verdicts are on the part whose fake and real forms differ most.

        Args:
            features: F_0, F_1, F_2, [B,64,h,w] each.
            fake, real: masks in [0,1] on the same grid, [B,1,h,w].
        """
        details = []
        for feature, attend, judge in zip(
            features, self.attention, self.discriminators, strict=True
        ):
            tokens = to_tokens(feature)
            fake_parts, fake_maps = attend(tokens, fake.flatten(1))
            real_parts, real_maps = attend(tokens, real.flatten(1))
            worst = F.cosine_similarity(fake_parts, real_parts, dim=2, eps=1e-6).argmin(1)
            rows = torch.arange(len(worst), device=worst.device)
            fake_verdict, real_verdict = (
                judge(fake_parts[rows, worst]),
                judge(real_parts[rows, worst]),
            )
            details.append(Detail(fake_maps, real_maps, fake_verdict, real_verdict))
        return details
