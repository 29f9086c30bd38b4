"""Exact algebra that makes the published computation cheap: the same numbers up to rounding.

Each function states its identity, when it holds, and the function of `model/amformer/plain.py` that
it equals. Nothing here has weights.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)

DEPTHWISE_PADDING = 4  # pixels that oneDNN's fast depthwise kernel pads at most


class WeightCache:
    """Keep a value computed from a module's weights until one of them changes.

    Changing a weight in place, for example by loading a checkpoint, raises its version. A new type
    or device means new memory. Both are noticed without being told. Fused optimizers do not raise
    versions: call `clear` when the weights may have been trained.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget the value."""
        self._key: tuple | None = None
        self._value: Any = None

    def __call__(self, of: nn.Module | Sequence[Tensor], compute: Callable[[], Any]) -> Any:
        """Return the kept value, or compute it if the weights, or those of a module, changed."""
        weights = (*of.parameters(), *of.buffers()) if isinstance(of, nn.Module) else of
        key = tuple((w.data_ptr(), w._version, w.dtype) for w in weights)
        if key != self._key:
            self._value, self._key = compute(), key
        return self._value

    def __deepcopy__(self, memo: dict) -> "WeightCache":
        """Return an empty cache: a copied module computes its own value."""
        return WeightCache()


def must_compose(module: nn.Module) -> bool:
    """Whether what is composed of a module's weights cannot be kept: they train, or are compiled.

    A compiled graph composes them itself: it cannot ask whether they have changed.
    """
    return module.training or torch.is_grad_enabled() or torch.compiler.is_compiling()


def conv3x3_of_enlarged(cells: Tensor, weight: Tensor, size: tuple[int, int]) -> Tensor:
    """Return `conv2d(bilinear_ac(cells, size), weight, padding=1)` without the enlarged map.

    The convolution of `plain.context`, cells [B,C,a,b] and weight [O,C,3,3] -> [B,O,h,w].
    Enlargement is linear, U cells V^T, and so is each tap of a convolution. So the weights act on
    the few cells first. Then two small matrices enlarge; they are U and V shifted by the tap, with
    zero rows for the padding. Holds for any weight and size, and can be differentiated.
    """
    batch, channels, a, b = cells.shape
    out = weight.shape[0]

    def taps(length: int, count: int) -> Tensor:  # [3,length,count]; tap d reads row i + d - 1
        eye = torch.eye(count, dtype=cells.dtype, device=cells.device)[None]
        one_axis = F.interpolate(eye, size=length, mode="linear", align_corners=True)[0].t()
        rows = F.pad(one_axis, (0, 0, 1, 1))  # of `bilinear_ac` along one axis
        return torch.stack([rows[d : d + length] for d in range(3)])

    high = taps(size[0], a)
    across = high if (size[1], b) == (size[0], a) else taps(size[1], b)
    per_tap = weight.permute(2, 3, 0, 1).reshape(9 * out, channels) @ cells.flatten(2)
    per_tap = per_tap.view(batch, 3, 3, out, a, b)
    wide = torch.einsum("ejq,bdeopq->bodpj", across, per_tap)
    high = high.permute(1, 0, 2).reshape(size[0], 3 * a)
    return high @ wide.reshape(batch, out, 3 * a, size[1])


def affine_of(norms: Sequence[nn.BatchNorm2d]) -> tuple[Tensor, Tensor]:
    """Return n batch norms in eval mode, of as many channels, as scale and shift, each [n,C]."""
    names = ("weight", "bias", "running_mean", "running_var")
    weight, bias, mean, var = (torch.stack([getattr(n, name) for n in norms]) for name in names)
    scale = weight * torch.rsqrt(var + norms[0].eps)
    return scale, bias - scale * mean


@torch.no_grad()
def fold_batch_norms(module: M) -> M:
    """Return a copy of a frozen base learner whose batch norms are folded into its convolutions.

    The convolutions and norms of `plain.features`. norm(conv(x)) = scale (W x + b) + shift =
    (scale W) x + (scale b + shift), exact for any padding, because the norm comes after it. It
    holds if a convolution's output goes into exactly one batch norm in eval mode. That is assumed
    where the two are neighbors in one module, as in every ResNet, VGG and EfficientNet. Then a test
    image is run, `module.features(image).maps()`: if the copy computes something else, or if batch
    norms train, the module itself is returned.
    """
    if any(norm.training for norm in module.modules() if isinstance(norm, nn.BatchNorm2d)):
        return module
    folded = copy.deepcopy(module)
    for parent in folded.modules():
        children = list(parent.named_children())
        for (_, conv), (name, norm) in zip(children, children[1:], strict=False):
            known = type(norm) in (nn.BatchNorm2d, BatchNormAct2d)
            if isinstance(conv, nn.Conv2d) and known and norm.affine and norm.track_running_stats:
                _fold_into(conv, norm)
                after = [norm.drop, norm.act] if isinstance(norm, BatchNormAct2d) else []
                setattr(parent, name, nn.Sequential(*after))
    if next(module.parameters()).device.type == "cpu":  # its kernels are slow with wide padding
        _pad_depthwise_beforehand(folded)
    return folded if _compute_the_same(folded, module) else module


def _pad_depthwise_beforehand(module: nn.Module) -> None:
    """Let depthwise convolutions pad `DEPTHWISE_PADDING` pixels; pad the rest in a separate step.

    The zeros are the same. With more padding oneDNN does not use its depthwise kernel: the dilated
    5x5 convolutions of EfficientNet-Lite0 then take 5 to 8 times as long (docs/performance.md).
    """
    for parent in list(module.modules()):
        for name, conv in list(parent.named_children()):
            if type(conv) is not nn.Conv2d or conv.groups < conv.in_channels:
                continue
            if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
                continue
            high, wide = (max(0, padding - DEPTHWISE_PADDING) for padding in conv.padding)
            if high or wide:
                conv.padding = conv.padding[0] - high, conv.padding[1] - wide
                border = nn.ZeroPad2d((wide, wide, high, high))
                setattr(parent, name, nn.Sequential(border, conv))


def _fold_into(conv: nn.Conv2d, norm: Any) -> None:
    """Make conv compute norm(conv); the weights are composed in float64."""
    dtype = conv.weight.dtype
    [scale], [shift] = affine_of([copy.deepcopy(norm).double()])
    start = 0 if conv.bias is None else conv.bias.double()
    folded = (scale[:, None, None, None] * conv.weight.double()).to(dtype)
    conv.weight = nn.Parameter(folded, requires_grad=False)
    conv.bias = nn.Parameter((scale * start + shift).to(dtype), requires_grad=False)


def _compute_the_same(folded: Any, module: Any) -> bool:
    """Check that both give the same features of a test image, up to rounding."""
    like = next(module.parameters())
    if like.is_meta:  # shapes without values: nothing to compare
        return True
    ramp = torch.linspace(-2, 2, 3 * 65 * 65, dtype=like.dtype, device=like.device)
    image = (ramp * 7).sin().view(1, 3, 65, 65)
    with torch.autocast(like.device.type, enabled=False):
        pairs = zip(folded.features(image).maps(), module.features(image).maps(), strict=True)
        return all(bool((a - b).norm() <= 1e-3 * b.norm()) for a, b in pairs)


class LinearChain(nn.Sequential):
    """conv1x1, BN, conv3x3 (padding 1), BN, conv1x1 [, BN]: a chain without nonlinearities inside.

    Equals `plain.chain`. While its batch norms are in eval mode, the chain is ONE 3x3 convolution
    channels -> out. Its weights are composed at every call, so it trains as the chain does. The
    bias of the first convolution meets the zero padding of the second; it is carried as one more
    input channel that is constantly one. If batch norms train, the layers run one after the other.
    In eval mode without gradients the composed weights are kept until the mode is set again.
    """

    def __init__(self, channels: int, out: int, *, hidden: int = 256, last_norm: bool) -> None:
        first = nn.Conv2d(channels, hidden, 1), nn.BatchNorm2d(hidden)
        middle = nn.Conv2d(hidden, hidden, 3, padding=1), nn.BatchNorm2d(hidden)
        last = [nn.Conv2d(hidden, out, 1)] + [nn.BatchNorm2d(out)] * last_norm
        super().__init__(*first, *middle, *last)
        self.composed = WeightCache()

    def train(self, mode: bool = True) -> "LinearChain":
        """Set the mode and forget the composed weights."""
        self.composed.clear()
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the chain to [B,channels,h,w]; return [B,out,h,w]."""
        if self[1].training:
            return super().forward(x)
        if must_compose(self):
            return _composed(x, *self.compose())
        (weight, inner, bias), borders = self.composed(self, lambda: (self.compose(), {}))
        key = x.shape[-2:], x.dtype
        if key not in borders:
            borders[key] = _border(x, inner, bias)
        return F.conv2d(x, weight, padding=1) + borders[key]

    def compose(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the weight [O,C,3,3], that of the constant-one channel [O,1,3,3], the bias [O]."""
        [chain] = compose([self])
        return chain


def compose(chains: Sequence[LinearChain]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return `LinearChain.compose` of each of n chains of one shape, computed together."""

    def stacked(layer: int, name: str) -> Tensor:
        return torch.stack([chain[layer].get_parameter(name) for chain in chains])

    def affine(layer: int) -> tuple[Tensor, Tensor]:
        return affine_of([cast(nn.BatchNorm2d, chain[layer]) for chain in chains])

    scale1, shift1 = affine(1)
    scale2, shift2 = affine(3)
    inward = scale1[..., None] * stacked(0, "weight").flatten(2)  # [n,hidden,C]
    inner = torch.addcmul(shift1, scale1, stacked(0, "bias"))
    outward = stacked(4, "weight").flatten(2)  # [n,O,hidden]
    middle = torch.addcmul(shift2, scale2, stacked(2, "bias"))
    bias = torch.baddbmm(stacked(4, "bias")[..., None], outward, middle[..., None])[..., 0]
    if len(chains[0]) > 5:  # with a last norm
        scale3, shift3 = affine(5)
        outward, bias = scale3[..., None] * outward, torch.addcmul(shift3, scale3, bias)
    count, out, hidden = outward.shape
    # One by one: joined, the largest weights would be copied, and kept for the backward pass.
    weights = [chain[2].get_parameter("weight").flatten(1) for chain in chains]
    pairs = zip((outward * scale2[:, None]).unbind(), weights, strict=True)
    taps = torch.stack([own @ weight for own, weight in pairs])  # [n,O,hidden*9]
    taps = taps.view(count, out, hidden, 9).transpose(2, 3).reshape(count, out * 9, hidden)
    weight = (taps @ inward).view(count, out, 9, -1).transpose(2, 3).contiguous()
    weight = weight.view(count, out, -1, 3, 3)
    one = (taps @ inner[..., None]).view(count, out, 1, 3, 3)
    biases = [each + 0 for each in bias.unbind()]  # no views: inductor refuses them on a CPU
    return list(zip(weight.unbind(), one.unbind(), biases, strict=True))


def composed_together(chains: Iterable[nn.Module]) -> list[Callable[[Tensor], Tensor]]:
    """Return chains of one shape as functions; those that train are composed together."""
    chains = list(chains)
    trained = [c for c in chains if isinstance(c, LinearChain) and not c[1].training]
    if len(trained) < len(chains) or not must_compose(trained[0]):
        return list(chains)  # each keeps its composed weights, or has none
    return [partial(_composed, weight=w, inner=i, bias=b) for w, i, b in compose(trained)]


class ComposedChain(nn.Module):
    """A trained `LinearChain` as the one convolution that it computes: cannot be trained further.

    It holds 0.06 of the numbers of a chain of 64 channels.
    """

    weight: Tensor
    inner: Tensor
    bias: Tensor

    def __init__(self, chain: LinearChain) -> None:
        super().__init__()
        with torch.no_grad():
            weight, inner, bias = chain.compose()
        self.register_buffer("weight", weight)
        self.register_buffer("inner", inner)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the chain to [B,channels,h,w]; return [B,out,h,w]."""
        return _composed(x, self.weight, self.inner, self.bias)


def _composed(x: Tensor, weight: Tensor, inner: Tensor, bias: Tensor) -> Tensor:
    """Apply what `LinearChain.compose` returned."""
    return F.conv2d(x, weight, padding=1) + _border(x, inner, bias)


def _border(x: Tensor, inner: Tensor, bias: Tensor) -> Tensor:
    """Return what the constant-one channel and the bias add to each position: [1,O,h,w]."""
    return F.conv2d(x.new_ones(1, 1, *x.shape[-2:]), inner, bias, padding=1)
