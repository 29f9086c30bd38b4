"""The two kinds of attention of HDMNet and AMFormer and their encoder layers (method 3).

Tokens are [B,N,C], N = h * w. What equals a function of `model/amformer/plain.py` names it.
"""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from timm.layers.weight_init import trunc_normal_
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model.constants import TEMPERATURE
from model.resize import at_least_float32, autocast_disabled, grid_size, to_map, to_tokens

M = TypeVar("M", bound=nn.Module)
LN_EPS = 1e-6
SCORES_PER_BLOCK = 2**22  # of the mining attention, computed at a time, over batch and heads


def module_list(modules: Iterable[M]) -> Sequence[M]:
    """Return an `nn.ModuleList`, which a type checker sees as a sequence of its elements."""
    return cast(Sequence[M], nn.ModuleList(modules))


class Projections(nn.Module):
    """The projections q, k, v and o without bias, and their heads.

    They start as PyTorch's linear layers do (uniform, deviation 0.072 for 64 channels), as
    published; `AMFormer` can change that.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (
            nn.Linear(channels, channels, bias=False) for _ in range(4)
        )

    def shrink_weights(self) -> None:
        """Draw the weights from a truncated normal of deviation 0.02."""
        for layer in (self.q, self.k, self.v, self.o):
            trunc_normal_(layer.weight, std=0.02)

    def split(self, x: Tensor) -> Tensor:
        """Split tokens [B,N,C] into heads [B,heads,N,d]."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class ReducedAttention(Projections):
    """Self-attention whose keys and values come from a map that is `reduction` times coarser.

    Equals `plain.reduced_attention`; here PyTorch's fused attention keeps no matrix of N x N.
    """

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__(channels, heads)
        self.reduction = reduction
        if reduction > 1:
            self.reduce = nn.Conv2d(channels, channels, reduction, stride=reduction)
            self.norm = nn.LayerNorm(channels, eps=LN_EPS)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Attend from tokens [B,N,C] of a grid (h, w); return tokens [B,N,C]."""
        source = x
        if self.reduction > 1:
            source = self.norm(to_tokens(self.reduce(to_map(x, grid))))
        q, k, v = self.split(self.q(x)), self.split(self.k(source)), self.split(self.v(source))
        scale = 1 / (q.shape[-1] ** 0.5 + 1e-9)
        out = F.scaled_dot_product_attention(q, k, v, scale=scale)
        return self.o(out.transpose(1, 2).flatten(2))


class MaskedMiningAttention(Projections):
    """Attention of all positions to those inside a mask, normalized over the QUERIES.

    Equals `plain.mining_attention`. `heads` divide the channels; `softmax` is "query" as published,
    or "key": the usual axis, over the kept keys.
    """

    def __init__(self, channels: int, heads: int, softmax: str = "query") -> None:
        super().__init__(channels, heads)
        self.softmax = softmax

    def forward(
        self, x: Tensor, mask: Tensor, source: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mine for tokens x [B,N,C]; return tokens, and each one's correlation with the mask [B,N].

        Keys are x itself or a `source` [B,M,C]. The mask is [B,N] or [B,M]: keys with 0 are
        dropped, other values weigh the correlation.
        """
        keys = x if source is None else source
        pairs = (self.q, x), (self.k, keys), (self.v, keys)
        q, k, v = (at_least_float32(self.split(project(tokens))) for project, tokens in pairs)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        with autocast_disabled(x):
            out = mining_attention(q, k, v, mask != 0, over_keys=self.softmax == "key")
            correlation = soft_correlation(q, k, at_least_float32(mask))
        return self.o(out.transpose(1, 2).flatten(2)), correlation


def mining_attention(q: Tensor, k: Tensor, v: Tensor, keep: Tensor, *, over_keys: bool) -> Tensor:
    """Return softmax(q k^T / 0.1) v, columns of dropped keys set to 0 after the softmax.

    Equals the attention of `plain.mining_attention`. A dropped key contributes nothing, and with
    the softmax over queries its column affects no other column. So only kept keys are computed,
    and no matrix of N x N is kept (`_BlockwiseMining`). Double backward is not supported.

    q and k (unit vectors), v and the result are [B,heads,N,d]. `keep` is bool [B,N]. With
    `over_keys` the softmax runs over the kept keys instead.
    """
    kept = keep[:, None, :, None]
    most = int(keep.sum(1).max())
    if most < keep.shape[1]:  # kept keys first; rows that keep fewer are padded with dropped ones
        order = keep.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
        index = order[:, None, :, None]
        k, v = (x.gather(2, index.expand(-1, x.shape[1], -1, x.shape[3])) for x in (k, v))
        kept = kept.gather(2, index)
    return _BlockwiseMining.apply(q / TEMPERATURE, k, v, kept.to(v.dtype), over_keys)


class _BlockwiseMining(torch.autograd.Function):
    """out_i = sum_j P_ij v_j over kept keys j, P = exp(q k^T) / its sums, in blocks of keys.

    q is already divided by the temperature, so scores are at most 10 and exp needs no running
    maximum. Softmax over queries: P_ij divides by the sum of column j, which lies within one block.
    Softmax over keys: P_ij divides by the sum of row i, which is added up over the blocks.

    Backward computes P again, block by block. With g the gradient of out, over queries:
    dv_j = sum_i P_ij g_i, dscore_ij = P_ij (g_i v_j - v_j dv_j), as sum_i P_ij g_i v_j = v_j dv_j.
    Over keys: dscore_ij = P_ij (g_i v_j - g_i out_i).
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, kept: Tensor, over_keys: bool) -> Tensor:
        out, sums = torch.zeros_like(q), q.new_zeros(())
        for block in _key_blocks(q, k):
            weights = (q @ k[:, :, block].transpose(-2, -1)).exp_()  # [B,heads,N,block]
            value = v[:, :, block] * kept[:, :, block]
            if over_keys:
                sums = sums + weights @ kept[:, :, block]
            else:
                value = value / weights.sum(-2)[..., None]
            out += weights @ value
        if over_keys:
            sums = torch.as_tensor(sums).clamp(min=1e-12)
            out = out / sums
        ctx.over_keys = over_keys
        ctx.save_for_backward(q, k, v, kept, out, sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, kept, out, sums = ctx.saved_tensors
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for block in _key_blocks(q, k):
            key, value = k[:, :, block], v[:, :, block]
            weights = (q @ key.transpose(-2, -1)).exp_()
            weights /= sums if ctx.over_keys else weights.sum(-2, keepdim=True)
            dvalue = (weights.transpose(-2, -1) @ grad) * kept[:, :, block]
            inner = grad @ (value * kept[:, :, block]).transpose(-2, -1)
            if ctx.over_keys:
                weights *= kept[:, :, block].transpose(-2, -1)
                inner -= (grad * out).sum(-1, keepdim=True)  # g_i out_i
            else:
                inner -= (value * dvalue).sum(-1)[..., None, :]  # v_j dv_j
            weights *= inner
            dq += weights @ key
            dk[:, :, block] = weights.transpose(-2, -1) @ q
            dv[:, :, block] = dvalue
        return dq, dk, dv, None, None


def _key_blocks(q: Tensor, k: Tensor) -> list[slice]:
    """Slice the keys so that a block has at most `SCORES_PER_BLOCK` scores, or one key."""
    size = max(1, SCORES_PER_BLOCK // max(1, q.shape[:-1].numel()))
    return [slice(i, i + size) for i in range(0, k.shape[2], size)]


def soft_correlation(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """Return sum_j c_ij m_j / (sum_j m_j + 1e-9), c = q k^T / 0.1, mean over heads: [B,N].

    Equals the correlation of `plain.mining_attention`. It is linear in the keys, so the keys are
    summed first and no matrix of N x N is computed. q and k are [B,heads,N,d], the mask m [B,N].
    """
    summed = torch.einsum("bhnd,bn->bhd", k, mask)
    correlation = torch.einsum("bhnd,bhd->bn", q, summed) / (q.shape[1] * TEMPERATURE)
    return correlation / (mask.sum(1, keepdim=True) + 1e-9)


class MixFFN(nn.Module):
    """1x1 up, depthwise 3x3, GELU, 1x1 down; dropout after the GELU and at the end.

    Equals `plain.mix_ffn`; here the 1x1 convolutions act on tokens, without a change of layout.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, hidden, 1)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.project = nn.Conv2d(hidden, channels, 1)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Apply to tokens [B,N,C] of a grid (h, w); return tokens [B,N,C]."""
        x = F.linear(x, self.expand.weight.flatten(1), self.expand.bias)
        x = self.dropout(F.gelu(to_tokens(self.depthwise(to_map(x, grid)))))
        return self.dropout(F.linear(x, self.project.weight.flatten(1), self.project.bias))


class PreNormLayer(nn.Module):
    """x + Dropout(attention(LN x)), then x + MixFFN(LN x): what both kinds of layers share."""

    def __init__(self, attention: Projections, channels: int = 64, hidden: int = 256) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=LN_EPS)
        self.attention = attention
        self.norm2 = nn.LayerNorm(channels, eps=LN_EPS)
        self.ffn = MixFFN(channels, hidden)
        self.dropout = nn.Dropout(0.1)

    def add(self, x: Tensor, attended: Tensor, grid: tuple[int, int]) -> Tensor:
        """Add the attention's output to tokens x [B,N,C], then the feed-forward network's."""
        x = x + self.dropout(attended)
        return x + self.ffn(self.norm2(x), grid)


class EncoderLayer(PreNormLayer):
    """Layer of the pyramid."""

    attention: ReducedAttention

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Apply to tokens [B,N,C] of a grid (h, w); return tokens [B,N,C]."""
        return self.add(x, self.attention(self.norm1(x), grid), grid)


class MaskedMiningLayer(PreNormLayer):
    """Layer with masked mining attention."""

    attention: MaskedMiningAttention

    def forward(
        self, x: Tensor, mask: Tensor, source: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Apply to a map [B,C,h,w] and mask [B,1,h,w]; return a map and a correlation [B,h,w].

        Keys are the map's own, or those of a `source` [B,M,C] with a mask [B,M].
        """
        grid, tokens = grid_size(x), to_tokens(x)
        keys = None if source is None else self.norm1(source)
        mined, correlation = self.attention(self.norm1(tokens), mask.flatten(1), keys)
        return to_map(self.add(tokens, mined, grid), grid), correlation.unflatten(1, grid)
