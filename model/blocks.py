"""Convolutions that systems share; maps are [B,256,h,w] if nothing else is said."""

from torch import Tensor, nn

CHANNELS = 256


def conv3x3() -> nn.Conv2d:
    """Return a 3x3 convolution without bias."""
    return nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)


def reduce_to(out: int, channels: int) -> nn.Sequential:
    """Return conv1x1 without bias, ReLU."""
    return nn.Sequential(nn.Conv2d(channels, out, 1, bias=False), nn.ReLU())


class Refinement(nn.Sequential):
    """x + ReLU(conv3x3(ReLU(conv3x3 x)))."""

    def __init__(self) -> None:
        super().__init__(conv3x3(), nn.ReLU(), conv3x3(), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Refine a map."""
        return x + super().forward(x)


def mask_head() -> nn.Sequential:
    """Return conv3x3, ReLU, Dropout2d(0.1), conv1x1 with bias: logits [B,2,h,w] of a map."""
    return nn.Sequential(conv3x3(), nn.ReLU(), nn.Dropout2d(0.1), nn.Conv2d(CHANNELS, 2, 1))
