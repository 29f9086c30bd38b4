"""The attention kinds of G and the encoder layer they sit in (method 3).

Tokens are [B,N,C], N = h * w.
"""

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model.constants import TEMPERATURE
from model.precision import at_least_float32, autocast_disabled

LN_EPS = 1e-6
BLOCK = 2**22  # scores of the mining attention computed at a time, over batch and heads


def to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B,N,C] -> [B,C,h,w], a channels-last view of the same memory."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def to_tokens(x: Tensor) -> Tensor:
    """[B,C,h,w] -> [B,N,C]."""
    return x.flatten(2).transpose(1, 2)


class Projections(nn.Module):
    """q, k, v and o without bias, split into heads."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        for name in "qkvo":
            layer = nn.Linear(channels, channels, bias=False)
            trunc_normal_(layer.weight, std=0.02)
            setattr(self, name, layer)

    def split(self, x: Tensor) -> Tensor:
        """[B,N,C] -> [B,heads,N,d]."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class ReducedAttention(Projections):
    """Self-attention whose keys and values come from a map made `reduction` times coarser."""

    def __init__(self, channels: int, heads: int, reduction: int):
        super().__init__(channels, heads)
        self.reduction = reduction
        if reduction > 1:
            self.reduce = nn.Conv2d(channels, channels, reduction, stride=reduction)
            self.norm = nn.LayerNorm(channels, eps=LN_EPS)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        source = x
        if self.reduction > 1:
            source = self.norm(to_tokens(self.reduce(to_map(x, grid))))
        q, k, v = self.split(self.q(x)), self.split(self.k(source)), self.split(self.v(source))
        scale = 1 / (q.shape[-1] ** 0.5 + 1e-9)
        out = F.scaled_dot_product_attention(q, k, v, scale=scale)
        return self.o(out.transpose(1, 2).flatten(2))


class MaskedMiningAttention(Projections):
    """Attention of all query positions over those that a mask keeps, normalised over the QUERIES.

    Args:
        softmax: "query" as published, or "key" (the usual axis, over the kept keys).
    """

    def __init__(self, channels: int, heads: int, softmax: str = "query"):
        super().__init__(channels, heads)
        self.softmax = softmax

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """What each position gathers, and its correlation with the masked positions.

        Args:
            x: tokens [B,N,C].
            mask: [B,N]; 0 drops a key, its size weighs the correlation.

        Returns:
            Tokens [B,N,C] and the correlation [B,N].
        """
        q, k, v = (at_least_float32(self.split(project(x))) for project in (self.q, self.k, self.v))
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        with autocast_disabled(x):
            out = mining_attention(q, k, v, mask != 0, over_keys=self.softmax == "key")
            correlation = soft_correlation(q, k, at_least_float32(mask))
        return self.o(out.transpose(1, 2).flatten(2)), correlation


def mining_attention(q: Tensor, k: Tensor, v: Tensor, keep: Tensor, *, over_keys: bool) -> Tensor:
    """softmax(q k^T / 0.1) v with the columns of dropped keys set to 0 after the softmax.

    A dropped key gives nothing, and over queries its column touches no other: it is never computed.
    Nothing of size N x N is kept either; see `_Mining`. Twice differentiated it is not.

    Args:
        q, k, v: [B,heads,N,d]; q and k are unit vectors.
        keep: the keys that stay, bool [B,N].
        over_keys: softmax over the kept keys instead.

    Returns:
        [B,heads,N,d]
    """
    kept = keep[:, None, :, None]
    most = int(keep.sum(1).max())
    if most < keep.shape[1]:  # the kept keys first; rows that keep fewer are filled up with others
        order = keep.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
        index = order[:, None, :, None]
        k, v = (x.gather(2, index.expand(-1, x.shape[1], -1, x.shape[3])) for x in (k, v))
        kept = kept.gather(2, index)
    return _Mining.apply(q / TEMPERATURE, k, v, kept.to(v.dtype), over_keys)


class _Mining(torch.autograd.Function):
    """out_i = sum_j P_ij v_j over kept keys j, P = exp(q k^T) / its sums, block by block of keys.

    q (already divided by the temperature) and k make scores of at most 10, so exp needs no running
    maximum and the sums are plain sums: over queries those of a key's column, s_j, which a block
    holds whole; over keys those of a query's row, Z_i, gathered along the way.

    Backward computes each block's P again. With g the gradient of out, over queries:
    dv_j = sum_i P_ij g_i, dscore_ij = P_ij (g_i v_j - v_j dv_j), as sum_i P_ij g_i v_j = v_j dv_j.
    Over keys: dscore_ij = P_ij (g_i v_j - g_i out_i).
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, kept: Tensor, over_keys: bool) -> Tensor:
        out, sums = torch.zeros_like(q), q.new_zeros(())
        for block in _blocks(q, k):
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
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, kept, out, sums = ctx.saved_tensors
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        of_rows = (grad * out).sum(-1, keepdim=True) if ctx.over_keys else None
        for block in _blocks(q, k):
            key, value = k[:, :, block], v[:, :, block]
            weights = (q @ key.transpose(-2, -1)).exp_()
            weights /= sums if ctx.over_keys else weights.sum(-2, keepdim=True)
            dvalue = (weights.transpose(-2, -1) @ grad) * kept[:, :, block]
            columns = (value * dvalue).sum(-1)[..., None, :]
            inner = grad @ (value * kept[:, :, block]).transpose(-2, -1)
            if ctx.over_keys:
                weights *= kept[:, :, block].transpose(-2, -1)
                inner -= of_rows
            else:
                inner -= columns
            weights *= inner
            dq += weights @ key
            dk[:, :, block] = weights.transpose(-2, -1) @ q
            dv[:, :, block] = dvalue
        return dq, dk, dv, None, None


def _blocks(q: Tensor, k: Tensor) -> list[slice]:
    """Slices of the keys, so that a block's scores are at most `BLOCK` (or one key's)."""
    size = max(1, BLOCK // max(1, q.shape[:-1].numel()))
    return [slice(i, i + size) for i in range(0, k.shape[2], size)]


def soft_correlation(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """Mean over heads of sum_j (c_j M_j) / (sum M + 1e-9), c = q k^T / 0.1.

    Linear in the keys, so the keys are summed first.

    Args:
        q, k: [B,heads,N,d].
        mask: M [B,N].

    Returns:
        [B,N]
    """
    summed = torch.einsum("bhnd,bn->bhd", k, mask)
    correlation = torch.einsum("bhnd,bhd->bn", q, summed) / (q.shape[1] * TEMPERATURE)
    return correlation / (mask.sum(1, keepdim=True) + 1e-9)


class MixFFN(nn.Module):
    """1x1 up, depthwise 3x3, GELU, 1x1 down; dropout behind the GELU and at the end."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.expand = nn.Conv2d(channels, hidden, 1)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.project = nn.Conv2d(hidden, channels, 1)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        x = F.linear(x, self.expand.weight.flatten(1), self.expand.bias)
        x = self.dropout(F.gelu(to_tokens(self.depthwise(to_map(x, grid)))))
        return self.dropout(F.linear(x, self.project.weight.flatten(1), self.project.bias))


class EncoderLayer(nn.Module):
    """Pre-norm: x + Dropout(attention(LN x)), then x + MixFFN(LN x)."""

    def __init__(self, attention: nn.Module, channels: int = 64, hidden: int = 256):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=LN_EPS)
        self.attention = attention
        self.norm2 = nn.LayerNorm(channels, eps=LN_EPS)
        self.ffn = MixFFN(channels, hidden)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), grid))
        return x + self.ffn(self.norm2(x), grid)


class MaskedMiningLayer(EncoderLayer):
    """The encoder layer with masked mining attention; also returns the correlation [B,h,w]."""

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Map [B,C,h,w], mask [B,1,h,w] -> map [B,C,h,w], correlation [B,h,w]."""
        grid = x.shape[-2:]
        tokens = to_tokens(x)
        mined, correlation = self.attention(self.norm1(tokens), mask.flatten(1))
        tokens = tokens + self.dropout(mined)
        tokens = tokens + self.ffn(self.norm2(tokens), grid)
        return to_map(tokens, grid), correlation.unflatten(1, grid)
