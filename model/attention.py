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
from model.device import is_accelerator, scores_per_block
from model.folding import WeightCache, must_compose
from model.resize import at_least_float32, autocast_disabled, grid_size, to_map, to_tokens

M = TypeVar("M", bound=nn.Module)
LN_EPS = 1e-6


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
        self.joined = WeightCache()
        self.q, self.k, self.v, self.o = (
            nn.Linear(channels, channels, bias=False) for _ in range(4)
        )

    def train(self, mode: bool = True) -> "Projections":
        """Set the mode and forget the joined weights."""
        self.joined.clear()
        return super().train(mode)

    def shrink_weights(self) -> None:
        """Draw the weights from a truncated normal of deviation 0.02."""
        for layer in (self.q, self.k, self.v, self.o):
            trunc_normal_(layer.weight, std=0.02)

    def project(self, x: Tensor, *layers: nn.Linear) -> Tensor:
        """Project tokens [B,N,C] by n layers, in one product: [n,B,heads,N,d]."""
        weights = [layer.weight for layer in layers]
        if not weights[1:]:
            weight = weights[0]
        elif must_compose(self):
            weight = torch.cat(weights)
        else:
            weight = self.joined(weights, lambda: torch.cat(weights))
        return (
            F.linear(x, weight).unflatten(2, (len(layers), self.heads, -1)).permute(2, 0, 3, 1, 4)
        )


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
        if source is x:
            q, k, v = self.project(x, self.q, self.k, self.v).unbind()
        else:
            q, (k, v) = self.project(x, self.q)[0], self.project(source, self.k, self.v).unbind()
        scale = 1 / (q.shape[-1] ** 0.5 + 1e-9)
        out = F.scaled_dot_product_attention(q, k, v, scale=scale)
        return self.o(out.transpose(1, 2).flatten(2))


def unit(x: Tensor) -> Tensor:
    """Return vectors [...,d] divided by their norms, but at least by 1e-12.

    Equals `F.normalize`; here its gradient, (g - y (y g)) / |x| with y the result, takes a third of
    the operations.
    """
    return _Unit.apply(x)


class _Unit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        length = x.norm(dim=-1, keepdim=True).clamp_(min=1e-12)
        y = x / length
        ctx.save_for_backward(y, length)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        y, length = ctx.saved_tensors
        along = (grad * y).sum(-1, keepdim=True)
        return torch.addcmul(grad, y, along, value=-1) / length


class MaskedMiningAttention(Projections):
    """Attention of all positions to those inside a mask, normalized over the QUERIES.

    Equals `plain.mining_attention`. `heads` divide the channels; `softmax` is "query" as published,
    or "key": the usual axis, over the kept keys.
    """

    def __init__(self, channels: int, heads: int, softmax: str = "query") -> None:
        super().__init__(channels, heads)
        self.softmax = softmax

    def forward(
        self, x: Tensor, mask: Tensor, source: Tensor | None = None, *, correlate: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Mine for tokens x [B,N,C]; return tokens, and each one's correlation with the mask [B,N].

        Keys are x itself or a `source` [B,M,C]. The mask is [B,N] or [B,M]: keys with 0 are
        dropped, other values weigh the correlation, which is [B,0] without `correlate`.
        """
        q, k, v = self._unit_heads(x, source)
        with autocast_disabled(x):
            out = mining_attention(q, k, v, mask != 0, over_keys=self.softmax == "key")
            weights = at_least_float32(mask)
            correlation = soft_correlation(q, k, weights) if correlate else weights[:, :0]
        return self.o(out.transpose(1, 2).flatten(2)), correlation

    def _unit_heads(self, x: Tensor, source: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return q and k, divided by their norms, and v: [B,heads,N or M,d]."""
        if source is None:  # contiguous: products would copy each factor, and again backward
            qkv = at_least_float32(self.project(x, self.q, self.k, self.v)).contiguous()
            both, v = qkv.split((2, 1))
            q, k = unit(both).unbind()
            return q, k, v.squeeze(0)
        k, v = at_least_float32(self.project(source, self.k, self.v)).contiguous().unbind()
        q = at_least_float32(self.project(x, self.q)[0]).contiguous()
        return unit(q), unit(k), v


def mining_attention(q: Tensor, k: Tensor, v: Tensor, keep: Tensor, *, over_keys: bool) -> Tensor:
    """Return softmax(q k^T / 0.1) v, columns of dropped keys set to 0 after the softmax.

    Equals the attention of `plain.mining_attention`. A dropped key contributes nothing, and with
    the softmax over queries its column affects no other column. So only kept keys are computed,
    but on an accelerator, where their number is not known; and no matrix of N x N is kept
    (`_BlockwiseMining`). Double backward is not supported.

    q and k (unit vectors), v and the result are [B,heads,N,d]. `keep` is bool [B,N]. With
    `over_keys` the softmax runs over the kept keys instead.
    """
    kept = keep[:, None, :, None]
    most = keep.shape[1] if is_accelerator(keep) else max(1, int(keep.sum(1).max()))
    if most < keep.shape[1]:  # kept keys first; rows that keep fewer are padded with dropped ones
        order = keep.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
        index = order[:, None, :, None]
        k, v = (x.gather(2, index.expand(-1, x.shape[1], -1, x.shape[3])) for x in (k, v))
        kept = kept.gather(2, index)
    kept = kept.to(v.dtype).expand(-1, v.shape[1], -1, -1)
    # Heads count as batch.
    out = _BlockwiseMining.apply(*(x.flatten(0, 1) for x in (q, k, v, kept)), over_keys)
    return out.unflatten(0, q.shape[:2])


class _BlockwiseMining(torch.autograd.Function):
    """out_i = sum_j P_ij v_j over kept keys j, P = exp(q k^T / 0.1) / its sums, in blocks of keys.

    Scores are at most 10, so exp needs no running maximum. Softmax over queries: P_ij divides by
    the sum of column j, which lies within one block. Softmax over keys: P_ij divides by the sum of
    row i, which is added up over the blocks.

    Backward computes exp again, block by block. With g the gradient of out, over queries:
    dv_j = sum_i P_ij g_i, dscore_ij = P_ij (g_i v_j - v_j dv_j), as sum_i P_ij g_i v_j = v_j dv_j.
    Over keys: dscore_ij = P_ij (g_i v_j - g_i out_i). The sums divide vectors, never a matrix.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, kept: Tensor, over_keys: bool) -> Tensor:
        out: Any = None
        sums: Any = None  # of the rows, with `over_keys`
        for block in _key_blocks(q, k):
            weights, factor = _product(q, k[:, block].mT).exp_(), kept[:, block]  # [B*heads,N,n]
            if over_keys:
                sums = _add_product(sums, weights, factor)
            else:
                factor = factor / weights.sum(1)[..., None]
            out = _add_product(out, weights, v[:, block] * factor)
        if over_keys:
            sums.clamp_(min=1e-12)
            out /= sums
        ctx.over_keys = over_keys
        ctx.save_for_backward(q, k, v, kept, out, sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, kept, out, sums = ctx.saved_tensors
        grad, dq, dk, dv = grad.contiguous(), None, [], []
        of_rows = (grad * out).sum(-1, keepdim=True) if ctx.over_keys else None  # g_i out_i
        scaled_grad, scaled_q = (grad / sums, q / sums) if ctx.over_keys else (grad, q)
        for block in _key_blocks(q, k):
            key, value, factor = k[:, block], v[:, block], kept[:, block]
            weights = _product(q, key.mT).exp_()
            if not ctx.over_keys:
                factor = factor / weights.sum(1)[..., None]
            dv.append((weights.mT @ scaled_grad) * factor)
            taken = (value * dv[-1]).sum(-1)[:, None] if of_rows is None else of_rows  # v_j dv_j
            weights *= torch.baddbmm(taken, grad, value.mT, beta=-1)
            dq = _add_product(dq, weights, key * (factor / TEMPERATURE))
            dk.append(_product(weights.mT, scaled_q) * factor)
        dq = dq / sums if ctx.over_keys else dq
        return dq, torch.cat(dk, dim=1), torch.cat(dv, dim=1), None, None


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return a b / 0.1 of two batches of matrices."""
    return torch.baddbmm(a.new_empty(1, 1, 1), a, b, beta=0, alpha=1 / TEMPERATURE)


def _add_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    return a @ b if total is None else torch.baddbmm(total, a, b)


def _key_blocks(q: Tensor, k: Tensor) -> list[slice]:
    """Slice the keys so that a block has at most `scores_per_block`, or one key."""
    size = max(1, scores_per_block(q) // max(1, q.shape[:-1].numel()))
    return [slice(i, i + size) for i in range(0, k.shape[1], size)]


def soft_correlation(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """Return sum_j c_ij m_j / (sum_j m_j + 1e-9), c = q k^T / 0.1, mean over heads: [B,N].

    Equals the correlation of `plain.mining_attention`. It is linear in the keys, so the keys are
    summed first and no matrix of N x N is computed. q and k are [B,heads,N,d], the mask m [B,N].
    """
    scale = (mask.sum(1, keepdim=True) + 1e-9) * (q.shape[1] * TEMPERATURE)
    summed = (mask / scale)[:, None, None] @ k  # [B,heads,1,d]
    return (q * summed).sum((1, 3))


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
        self, x: Tensor, mask: Tensor, source: Tensor | None = None, *, correlate: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Apply to a map [B,C,h,w] and mask [B,1,h,w]; return a map and a correlation [B,h,w].

        Keys are the map's own, or those of a `source` [B,M,C] with a mask [B,M]. Without
        `correlate`, the correlation is [B,0].
        """
        grid, tokens = grid_size(x), to_tokens(x)
        keys = None if source is None else self.norm1(source)
        found = self.attention(self.norm1(tokens), mask.flatten(1), keys, correlate=correlate)
        mined, correlation = found
        correlation = correlation.unflatten(1, grid) if correlate else correlation
        return to_map(self.add(tokens, mined, grid), grid), correlation
