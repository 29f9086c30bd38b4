"""Exact algebra that makes the published computation cheap: the same numbers up to rounding.

Each function states its identity and when it holds. Nothing here has weights of its own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


class LinearChain(nn.Sequential):
    """conv1x1, BN, conv3x3 (padding 1), BN, conv1x1 [, BN]: a chain with no nonlinearity inside.

    While its batch norms are frozen (eval mode) the chain is ONE 3x3 convolution in -> out whose
    weights are composed on the fly, so it trains as the chain does. What the first convolution adds
    as a bias meets the zero padding of the second, so it is carried as one more input channel that
    is constantly one. With batch norms that train, the chain runs as it stands.
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

    def forward(self, x: Tensor) -> Tensor:
        if self[1].training:
            return super().forward(x)
        weight, inner, bias = self.compose()
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
