"""The base learner: a PSPNet of the fold's base classes, trained in stage one (method 1; BAM)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from model.backbones import build_backbone
from model.folding import conv3x3_of_enlarged
from model.resize import bilinear_ac, grid_size

BINS = (1, 2, 3, 6)


@dataclass
class Features:
    """Feature maps [N,C,h,w] of N images: f2, f3, f4 of stages 2 to 4, and f5 before its ReLU.

    f5 has no channels where nothing reads it.
    """

    f2: Tensor
    f3: Tensor
    f4: Tensor
    f5: Tensor

    def maps(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return f2, f3, f4, f5."""
        return self.f2, self.f3, self.f4, self.f5

    def of_layer(self, name: str) -> Tensor:
        """Return the output of a stage of the backbone, "layer2", "layer3" or "layer4"."""
        return {"layer2": self.f2, "layer3": self.f3, "layer4": self.f4}[name]


class PyramidPooling(nn.Module):
    """Pool to 1, 2, 3 and 6 cells a side, with C/4 channels each."""

    def __init__(self, channels: int) -> None:
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
        """Return the cells [N,C/4,bins,bins] of a map [N,C,h,w], not enlarged."""
        return [pool(x) for pool in self.features]


class FrozenBackbone(nn.Module):
    """A backbone (as `Method.backbone`) whose maps have one grid."""

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.backbone = build_backbone(backbone)

    def maps(self, image: Tensor, weight: Tensor | None = None) -> Features:
        """Compute f2, f3 and f4 of images [N,3,S,S], on the grid of f3; `plain.features`.

        Resized are VGG's f2 and the maps of a backbone that is not dilated. With a `weight`
        [N,1,S,S], f4 is that of the weighted f3.
        """
        # A backbone of one's own may take images alone.
        f2, f3, f4 = self.backbone(image, *([] if weight is None else [weight]))
        grid = grid_size(f3)
        f2, f4 = (f if grid_size(f) == grid else bilinear_ac(f, grid) for f in (f2, f4))
        return Features(f2, f3, f4, f4[:, :0])

    def features(self, image: Tensor) -> Features:
        """Compute all maps of images [N,3,S,S] that there are."""
        return self.maps(image)


class BaseLearner(FrozenBackbone):
    """Backbone, pyramid pooling, classifier of `classes` and background."""

    def __init__(self, backbone: str, classes: int) -> None:
        super().__init__(backbone)
        channels = self.backbone.channels[-1]
        self.ppm = PyramidPooling(channels)
        pooled = channels // len(BINS) * len(BINS)
        conv = nn.Conv2d(channels + pooled, 512, 3, padding=1, bias=False)
        self.fuse = nn.Sequential(conv, nn.BatchNorm2d(512))
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(512, classes + 1, 1)

    def features(self, image: Tensor) -> Features:
        """Compute f2 to f5 of images [N,3,S,S]."""
        maps = self.maps(image)
        return replace(maps, f5=self.context(maps.f4))

    def context(self, f4: Tensor) -> Tensor:
        """Return f5 = BN(conv3x3([f4, its pooled cells enlarged])): [N,512,h,w].

        Equals `plain.context`; here the enlarged maps are never computed (`conv3x3_of_enlarged`).
        """
        conv, norm = self.fuse
        assert isinstance(conv, nn.Conv2d)
        out = nn.functional.conv2d(f4, self._own_weight(f4), conv.bias, padding=1)
        return norm(self._add_pooled(out, f4))

    def context_inside(self, f4: Tensor, inside: Tensor) -> list[Tensor]:
        """Return f5 of N maps f4 only where `inside` (bool [N,h,w]) is True: N times [512,m].

        Equals `plain.context` at these positions. Their neighborhoods are gathered, and each of the
        nine taps multiplies once.
        """
        conv, norm = self.fuse
        assert isinstance(conv, nn.Conv2d)
        taps = self._own_weight(f4).permute(2, 3, 1, 0).flatten(0, 1)  # [9,C,512]
        around = nn.functional.pad(f4, (1, 1, 1, 1)).permute(0, 2, 3, 1)  # [N,h+2,w+2,C]
        pooled = self._add_pooled(f4.new_zeros(()), f4)
        found = []
        for of_image, context, where in zip(around, pooled, inside, strict=True):
            y, x = where.nonzero().unbind(1)
            out = context[:, y, x].t()  # [m,512]
            for number, tap in enumerate(taps):
                out = torch.addmm(out, of_image[y + number // 3, x + number % 3], tap)
            out = out if conv.bias is None else out + conv.bias
            found.append(norm(out.t()[None, :, :, None])[0, :, :, 0])
        return found

    def _own_weight(self, f4: Tensor) -> Tensor:
        """Return the part of the convolution's weight that f4 itself meets."""
        return self.fuse[0].get_parameter("weight")[:, : f4.shape[1]]

    def _add_pooled(self, out: Tensor, f4: Tensor) -> Tensor:
        """Add what the convolution computes of the pooled cells, enlarged: [N,512,h,w]."""
        channels = f4.shape[1]
        pooled = self.fuse[0].get_parameter("weight")[:, channels:]
        for cells, weight in zip(
            self.ppm(f4), pooled.split(channels // len(BINS), dim=1), strict=True
        ):
            out = out + conv3x3_of_enlarged(cells, weight, grid_size(f4))
        return out

    def classify(self, f5: Tensor) -> Tensor:
        """Return the logits [N,classes+1,h,w] of f5, channel 0 the background."""
        return self.classifier(self.dropout(torch.relu(f5)))

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits [N,classes+1,h,w] of images [N,3,S,S]."""
        return self.classify(self.features(image).f5)
