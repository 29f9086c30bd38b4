"""The base learner: a PSPNet that knows the fold's base classes (method 1; BAM).

Stage one trains it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.backbones import build_backbone
from model.folding import conv3x3_of_enlarged
from model.resize import bilinear_ac

BINS = (1, 2, 3, 6)


@dataclass
class Features:
    """What the base learner sees in N images: stages 2 to 4 and f5 before its ReLU, [N,C,h,w]."""

    f2: Tensor
    f3: Tensor
    f4: Tensor
    f5: Tensor

    def map(self, function) -> "Features":
        """Applies a function to each of the four maps."""
        return Features(*(function(f) for f in self.maps()))

    def maps(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.f2, self.f3, self.f4, self.f5

    @staticmethod
    def cat(parts: list["Features"]) -> "Features":
        """Joins along the batch."""
        return Features(*map(torch.cat, zip(*(p.maps() for p in parts), strict=True)))


class PyramidPooling(nn.Module):
    """Pools to 1, 2, 3 and 6 cells a side, C -> C/4 each; returns the cells, not yet enlarged."""

    def __init__(self, channels: int):
        super().__init__()
        self.features = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(bins),
                nn.Conv2d(channels, channels // len(BINS), 1, bias=False),
                nn.BatchNorm2d(channels // len(BINS)),
                nn.ReLU(),
            )
            for bins in BINS
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        return [pool(x) for pool in self.features]


class BaseLearner(nn.Module):
    """Backbone, pyramid pooling and classifier.

    Args:
        backbone: as `Method.backbone`.
        classes: base classes of the fold, without background.
    """

    def __init__(self, backbone: str, classes: int):
        super().__init__()
        self.backbone = build_backbone(backbone)
        channels = self.backbone.channels[-1]
        self.ppm = PyramidPooling(channels)
        pooled = channels // len(BINS) * len(BINS)
        self.fuse = nn.Sequential(
            nn.Conv2d(channels + pooled, 512, 3, padding=1, bias=False), nn.BatchNorm2d(512)
        )
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(512, classes + 1, 1)

    def features(self, image: Tensor) -> Features:
        """Image [N,3,S,S] -> all four maps on the grid of f3.

        Only VGG's f2 and the maps of a backbone that is not dilated are resized.
        """
        f2, f3, f4 = self.backbone(image)
        grid = f3.shape[-2:]
        f2, f4 = (f if f.shape[-2:] == grid else bilinear_ac(f, grid) for f in (f2, f4))
        return Features(f2, f3, f4, self.context(f4))

    def context(self, f4: Tensor) -> Tensor:
        """f5 [N,512,h,w] = BN(conv3x3([f4, its pools enlarged])); see `conv3x3_of_enlarged`."""
        conv, norm = self.fuse
        channels, grid = f4.shape[1], f4.shape[-2:]
        own, *pooled = conv.weight.split([channels] + [channels // len(BINS)] * len(BINS), dim=1)
        out = nn.functional.conv2d(f4, own, conv.bias, padding=1)
        for cells, weight in zip(self.ppm(f4), pooled, strict=True):
            out = out + conv3x3_of_enlarged(cells, weight, grid)
        return norm(out)

    def classify(self, f5: Tensor) -> Tensor:
        """f5 -> logits [N, classes + 1, h, w], channel 0 the background."""
        return self.classifier(self.dropout(torch.relu(f5)))

    def forward(self, image: Tensor) -> Tensor:
        return self.classify(self.features(image).f5)
