"""D, the detail-mining transformer: parts of the object by a real and a fake mask (method 5).

Used in training only. It has no cheaper form than `plain.part_attention` and `plain.discriminate`.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import module_list, unit
from model.constants import TEMPERATURE
from model.resize import to_tokens

CHANNELS, PARTS, HEADS, LEVELS, CHOSEN = 64, 14, 4, 3, 9


@dataclass
class DiscriminatorOutputs:
    """Outputs of D on one level."""

    fake_maps: Tensor  # part maps with the fake mask, [B,14,N]
    real_maps: Tensor  # with the real mask
    fake_score: Tensor  # of the chosen part, [B,1]
    real_score: Tensor


class PartAttention(nn.Module):
    """Attention of 14 learned part queries to the tokens of a masked feature map."""

    def __init__(self) -> None:
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
        """Return parts [B,14,64] and part maps [B,14,N] in [0,1]; `plain.part_attention`.

        As published, the softmax runs over all tokens [B,N,64]: those where the mask [B,N] in [0,1]
        is 0 are zero vectors and stay in it.
        """
        tokens = tokens * mask[..., None]
        q = unit(self.q(self.parts).view(PARTS, HEADS, -1))
        k = unit(self.k(tokens).unflatten(2, (HEADS, -1)))
        v = self.v(tokens).unflatten(2, (HEADS, -1))
        logits = torch.einsum("phd,bnhd->bhpn", q / TEMPERATURE, k)
        maps = torch.sigmoid(logits.mean(1)) * mask[:, None]
        attention = self.dropout(torch.softmax(logits, dim=-1))
        gathered = torch.einsum("bhpn,bnhd->bphd", attention, v).flatten(2)
        x = self.parts + self.dropout(self.proj(gathered))
        hidden = self.dropout(torch.relu(self.expand(x)))
        return self.norm(x + self.dropout(self.contract(hidden))), maps


class Discriminator(nn.Sequential):
    """64-32-16-1 on one part; as published it ends with a sigmoid, and the loss applies another."""

    def __init__(self, *, sigmoid: bool) -> None:
        first = nn.Linear(CHANNELS, 32), nn.LeakyReLU(0.2)
        last = nn.Linear(32, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1)
        super().__init__(*first, *last, *([nn.Sigmoid()] if sigmoid else []))


class DetailMining(nn.Module):
    """D, with separate weights for each of F_0, F_1, F_2."""

    def __init__(self, *, sigmoid: bool = True) -> None:
        super().__init__()
        self.attention = module_list(PartAttention() for _ in range(LEVELS))
        self.discriminators = module_list(Discriminator(sigmoid=sigmoid) for _ in range(LEVELS))

    def forward(
        self, features: list[Tensor], fake: Tensor, real: Tensor
    ) -> list[DiscriminatorOutputs]:
        """Compare the parts of the fake and the real mask on each level F_0, F_1, F_2 [B,64,h,w].

        Both scores of an image and level are of the part whose fake and real forms differ most. The
        masks are [B,1,h,w] in [0,1]: G's fg', and the true one, resized to the grid.
        """
        outputs, masks = [], torch.cat((fake, real)).flatten(1)  # both as one batch of 2B
        levels = zip(features, self.attention, self.discriminators, strict=True)
        for feature, attend, judge in levels:
            tokens = to_tokens(feature)
            parts, maps = attend(torch.cat((tokens, tokens)), masks)
            of_fake, of_real = parts.chunk(2)
            worst = F.cosine_similarity(of_fake, of_real, dim=2, eps=1e-6).argmin(1)
            index = worst.repeat(2)[:, None, None].expand(-1, -1, CHANNELS)
            scores = judge(parts.gather(1, index)[:, 0])
            outputs.append(DiscriminatorOutputs(*maps.chunk(2), *scores.chunk(2)))
        return outputs
