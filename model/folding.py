"""Exact algebra that makes the published computation cheap: the same numbers up to rounding.

Each function states its identity and when it holds. Nothing here has weights of its own.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn


class Memo:
    """Keeps what was computed from a module's weights until one of them changes.

    A change of a weight in place (a checkpoint's, say) counts up its version, and one of type or
    device gives it other memory; so whoever makes one need not say so. Fused optimisers count no
    versions: of what they train nothing may be kept beyond a phase in eval mode (`forget`).
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self._seen: tuple | None = None
        self._made: Any = None

    def __call__(self, module: nn.Module, make: Callable[[], Any]) -> Any:
        """What `make` gives; computed anew when the module's weights are not the last call's."""
        weights = (*module.parameters(), *module.buffers())
        seen = tuple((w.data_ptr(), w._version, w.dtype) for w in weights)
        if seen != self._seen:
            self._made, self._seen = make(), seen
        return self._made

    def __deepcopy__(self, memo: dict) -> "Memo":
        """A copied module computes anew."""
        return Memo()


def interpolation_matrix(size: int, cells: int, like: Tensor) -> Tensor:
    """The linear map of bilinear(AC) enlargement along one axis: [size, cells]."""
    eye = torch.eye(cells, dtype=like.dtype, device=like.device)[None]
    return F.interpolate(eye, size=size, mode="linear", align_corners=True)[0].t()


def conv3x3_of_enlarged(cells: Tensor, weight: Tensor, size: tuple[int, int]) -> Tensor:
    """`conv2d(bilinear_ac(cells, size), weight, padding=1)` without ever making the enlarged map.

    Enlargement is linear, U cells V^T, and so is each tap of a convolution; so the weights act on
    the few cells first and two small matrices, shifted by the tap (rows shifted in from outside are
    zero: the padding), enlarge afterwards. Holds for any weight and size, and trains.

    Args:
        cells: [B,C,a,b].
        weight: [O,C,3,3].
        size: (h, w) of the result.

    Returns:
        [B,O,h,w]
    """
    batch, channels, a, b = cells.shape
    out = weight.shape[0]

    def taps(length: int, count: int) -> Tensor:  # [3, length, count], tap d reads row i + d - 1
        rows = F.pad(interpolation_matrix(length, count, cells), (0, 0, 1, 1))
        return torch.stack([rows[d : d + length] for d in range(3)])

    per_tap = weight.permute(2, 3, 0, 1).reshape(9 * out, channels) @ cells.flatten(2)
    per_tap = per_tap.view(batch, 3, 3, out, a, b)
    wide = torch.einsum("ejq,bdeopq->bodpj", taps(size[1], b), per_tap)
    high = taps(size[0], a).permute(1, 0, 2).reshape(size[0], 3 * a)
    return high @ wide.reshape(batch, out, 3 * a, size[1])


def affine_of(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """A batch norm in eval mode as scale and shift, each [C]."""
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale, norm.bias - scale * norm.running_mean


FAST_PADDING = 4  # pixels that oneDNN's depthwise kernel pads by itself


@torch.no_grad()
def fold_batch_norms(module: nn.Module) -> nn.Module:
    """A copy of a frozen module whose batch norms have become part of its convolutions.

    norm(conv(x)) = scale (W x + b) + shift = (scale W) x + (scale b + shift), exact at any padding,
    as the norm comes after it. It holds where a convolution's output goes into one batch norm in
    eval mode: where the two stand next to each other in one module, in the order in which they run,
    as in every ResNet, VGG and EfficientNet. A trial image tells whether the copy computes what the
    module does; where it does not, or where batch norms train, the module itself is given back.
    On the CPU the copy's depthwise convolutions pad in two steps (`_pad_beforehand`).
    """
    if any(norm.training for norm in module.modules() if isinstance(norm, nn.BatchNorm2d)):
        return module
    folded = copy.deepcopy(module)
    for parent in folded.modules():
        children = list(parent.named_children())
        for (_, conv), (name, norm) in zip(children, children[1:], strict=False):
            if isinstance(conv, nn.Conv2d) and _follows(conv, norm):
                _scale(conv, norm)
                after = [norm.drop, norm.act] if isinstance(norm, BatchNormAct2d) else []
                setattr(parent, name, nn.Sequential(*after))
    if next(module.parameters()).device.type == "cpu":
        _pad_beforehand(folded)
    return folded if _same(folded, module) else module


def _pad_beforehand(module: nn.Module) -> None:
    """Lets depthwise convolutions pad `FAST_PADDING` pixels themselves, what is more beforehand.

    The zeros are the same. With more of them oneDNN leaves its depthwise kernel: the dilated 5x5
    ones of EfficientNet-Lite0 then take 5 to 8 times as long (docs/performance.md).
    """
    for parent in list(module.modules()):
        for name, conv in list(parent.named_children()):
            if type(conv) is not nn.Conv2d or conv.groups < conv.in_channels:
                continue
            if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
                continue
            high, wide = (max(0, padding - FAST_PADDING) for padding in conv.padding)
            if high or wide:
                conv.padding = conv.padding[0] - high, conv.padding[1] - wide
                border = nn.ZeroPad2d((wide, wide, high, high))
                setattr(parent, name, nn.Sequential(border, conv))


def _follows(conv: nn.Conv2d, norm: nn.Module) -> bool:
    known = type(norm) in (nn.BatchNorm2d, BatchNormAct2d)
    return known and norm.affine and norm.track_running_stats


def _scale(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """conv becomes norm(conv), composed in float64."""
    dtype = conv.weight.dtype
    weights = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    weight, bias, mean, var = (w.double() for w in weights)
    scale = weight * torch.rsqrt(var + norm.eps)
    start = 0 if conv.bias is None else conv.bias.double()
    folded = (scale[:, None, None, None] * conv.weight.double()).to(dtype)
    conv.weight = nn.Parameter(folded, requires_grad=False)
    conv.bias = nn.Parameter((scale * (start - mean) + bias).to(dtype), requires_grad=False)


def _same(folded: nn.Module, module: nn.Module) -> bool:
    """Whether both give the same features of a trial image, up to rounding."""
    like = next(module.parameters())
    if like.is_meta:  # shapes alone: nothing to compare
        return True
    ramp = torch.linspace(-2, 2, 3 * 65 * 65, dtype=like.dtype, device=like.device)
    image = (ramp * 7).sin().view(1, 3, 65, 65)
    with torch.autocast(like.device.type, enabled=False):
        pairs = zip(folded.features(image).maps(), module.features(image).maps(), strict=True)
        return all(bool((a - b).norm() <= 1e-3 * b.norm()) for a, b in pairs)


class LinearChain(nn.Sequential):
    """conv1x1, BN, conv3x3 (padding 1), BN, conv1x1 [, BN]: a chain with no nonlinearity inside.

    While its batch norms are frozen (eval mode) the chain is ONE 3x3 convolution in -> out whose
    weights are composed on the fly, so it trains as the chain does. What the first convolution adds
    as a bias meets the zero padding of the second, so it is carried as one more input channel that
    is constantly one. With batch norms that train, the chain runs as it stands. In eval mode and
    without gradients the weights are composed once, until the mode is set again.
    """

    def __init__(self, channels: int, out: int, *, hidden: int = 256, last_norm: bool):
        layers = [
            nn.Conv2d(channels, hidden, 1),
            nn.BatchNorm2d(hidden),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.BatchNorm2d(hidden),
            nn.Conv2d(hidden, out, 1),
        ]
        super().__init__(*layers, *([nn.BatchNorm2d(out)] if last_norm else []))
        self.composed = Memo()

    def train(self, mode: bool = True) -> "LinearChain":
        self.composed.forget()
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if self[1].training:
            return super().forward(x)
        changing = self.training or torch.is_grad_enabled()
        weight, inner, bias = self.compose() if changing else self.composed(self, self.compose)
        ones = x.new_ones(1, 1, *x.shape[-2:])
        return F.conv2d(x, weight, bias, padding=1) + F.conv2d(ones, inner, padding=1)

    def compose(self) -> tuple[Tensor, Tensor, Tensor]:
        """(weight [O,C,3,3], weight of the constant-one channel [O,1,3,3], bias [O])."""
        first, norm1, middle, norm2, last, *rest = self
        scale1, shift1 = affine_of(norm1)
        scale2, shift2 = affine_of(norm2)
        inward = scale1[:, None] * first.weight.flatten(1)  # [hidden, C]
        inner = scale1 * first.bias + shift1
        outward = last.weight.flatten(1)  # [O, hidden]
        bias = outward @ (scale2 * middle.bias + shift2) + last.bias
        if rest:
            scale3, shift3 = affine_of(rest[0])
            outward, bias = scale3[:, None] * outward, scale3 * bias + shift3
        out, hidden = outward.shape
        taps = (outward * scale2) @ middle.weight.flatten(1)  # [O, hidden * 9]
        taps = taps.view(out, hidden, 9).transpose(1, 2)  # [O, 9, hidden]
        full = taps @ torch.cat((inward, inner[:, None]), dim=1)  # [O, 9, C + 1]
        full = full.transpose(1, 2).reshape(out, -1, 3, 3)
        return full[:, :-1].contiguous(), full[:, -1:].contiguous(), bias
