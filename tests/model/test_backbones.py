"""Backbones: the system runs with each kind; pretrained weights load or are refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from helpers.small import BASE_CLASSES, all_finite, images
from safetensors.torch import save_file
from torch import nn

from model import AMFormer, UserError
from model.backbones import LITE0, build_backbone, load_pretrained, pixel_statistics


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("name", "size", "grid"),
    [
        ("vgg16", 65, 5),  # f3 is at stride 16, with ceil-mode pools
        ("resnet101", 65, 9),
        ("timm/resnet18", 65, 9),
        (LITE0, 65, 9),
        ("timm/convnext_tiny", 97, 12),
        ("timm/efficientnet_b0", 65, 9),
        ("timm/swin_tiny_patch4_window7_224", 81, 6),  # f3 is at stride 16, as with plain ViTs
        ("timm/vit_tiny_patch16_224", 65, 5),
        ("timm/vit_small_patch14_dinov2", 57, 5),
        ("timm/pvt_v2_b0", 65, 5),
    ],
)
def test_system_runs_with_every_kind_of_backbone(name: str, size: int, grid: int) -> None:
    model = AMFormer(name, BASE_CLASSES, 1).eval()
    with torch.no_grad():
        got = model(*images(1, 1, size))
    assert got.scores.shape == (1, 2, size, size)
    assert got.initial_mask.shape == (1, 1, grid, grid)
    assert all_finite(got) and got.scores.std() > 0
    channels = model.encoder.base.backbone.channels
    assert model.clue.down_query[0].in_channels == channels[0] + channels[1]


@pytest.mark.parametrize("name", ["resnet18", "vgg19", "timm/no_such_model", "timm/vit_nothing"])
def test_unknown_backbone_is_refused_by_name(name: str) -> None:
    with pytest.raises(UserError, match=r"^Method\.backbone: .*" + name):
        build_backbone(name)


def test_packaged_weights_replace_every_random_weight() -> None:
    backbone = build_backbone(LITE0)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    load_pretrained(backbone, LITE0, "package")
    after = backbone.state_dict()
    counters = {name for name in after if name.endswith("num_batches_tracked")}
    same = {name for name, value in after.items() if torch.equal(value, before[name])}
    assert same <= counters
    assert all(value.isfinite().all() for value in after.values())
    mean, std = pixel_statistics(LITE0)  # (pixel - 127) / 128
    assert torch.allclose(
        (torch.tensor([0.0, 127.0, 255.0]) / 255 - mean[0]) / std[0],
        torch.tensor([-127 / 128, 0.0, 1.0]),
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("name", "source", "part"),
    [
        ("resnet50", "package", "package holds weights of timm/tf_efficientnet_lite0 only"),
        ("vgg16", "no/such/file.pth", "there is no file no/such/file.pth"),
    ],
)
def test_unavailable_pretrained_weights_are_refused(name: str, source: str, part: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name)
    with pytest.raises(UserError, match=part):
        load_pretrained(backbone, name, source)


def family_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename timm's deep-stem ResNet to the names in the weight files of this family."""
    stem = {"conv1.0": "conv1", "conv1.1": "bn1", "conv1.3": "conv2", "conv1.4": "bn2"}
    stem |= {"conv1.6": "conv3", "bn1": "bn3"}
    split = {name: name.rpartition(".") for name in state}
    return {f"{stem.get(p[0], p[0])}.{p[2]}": state[name] for name, p in split.items()}


def mmseg_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename timm's deep-stem ResNet to the names of mmseg's ResNetV1c."""
    stem = {f"conv1.{i}": f"stem.{i}" for i in (0, 1, 3, 4, 6)} | {"bn1": "stem.7"}
    split = {name: name.rpartition(".") for name in state}
    return {f"{stem.get(p[0], p[0])}.{p[2]}": state[name] for name, p in split.items()}


def in_module(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"module.{name}": value for name, value in state.items()}


def in_backbone(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names of a whole segmentation model of mmseg, with its head."""
    return {f"backbone.{n}": v for n, v in state.items()} | {"decode_head.x": torch.ones(1)}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("name", "renamed"),
    [
        ("resnet50", dict), ("resnet50", family_names), ("resnet50", in_module),
        ("resnet50c", mmseg_names), ("resnet50c", lambda state: in_backbone(mmseg_names(state))),
        ("resnet50c", lambda state: in_module(in_backbone(mmseg_names(state)))),
    ],
)  # fmt: skip
def test_imagenet_weights_load_into_the_right_layers_of_resnet(
    tmp_path: Path, name: str, renamed: Callable, suffix: str
) -> None:
    torch.manual_seed(0)
    source = timm.create_model("resnet50c" if name == "resnet50c" else "resnet50s").eval()
    for key, value in source.state_dict().items():
        if key.endswith(("running_mean", "bn1.bias", "bn1.weight")):
            value.uniform_(0.5, 1.5)  # so that a swap would be noticed
    path, state = tmp_path / f"r50{suffix}", renamed(source.state_dict())
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    backbone = build_backbone(name).eval()
    load_pretrained(backbone, name, str(path))
    image = torch.randn(1, 3, 65, 65)
    with torch.no_grad():
        x = source.maxpool(source.act1(source.bn1(source.conv1(image))))
        torch.testing.assert_close(backbone(image)[0], source.layer2(source.layer1(x)))
    for layer in ("layer3", "layer4"):
        theirs, ours = (getattr(net, layer).state_dict() for net in (source, backbone))
        assert all(torch.equal(ours[key], value) for key, value in theirs.items())


def test_imagenet_weights_load_into_the_right_layers_of_vgg(tmp_path: Path) -> None:
    source = torchvision.models.vgg16_bn(init_weights=False).features
    state = {f"features.{name}": value for name, value in source.state_dict().items()}
    torch.save(state | {"classifier.0.weight": torch.ones(1)}, tmp_path / "vgg.pth")
    backbone = build_backbone("vgg16")
    load_pretrained(backbone, "vgg16", str(tmp_path / "vgg.pth"))
    pairs = zip(backbone.state_dict().values(), source.state_dict().values(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


@pytest.mark.parametrize(
    ("made", "name", "right"),
    [
        ("resnet50", "resnet50", "timm/resnet50"),
        ("resnet50c", "resnet50", "resnet50c"),
        ("resnet50s", "resnet50c", "resnet50"),
        ("resnet50", "resnet50c", "timm/resnet50"),
    ],
)
def test_resnet_with_another_stem_is_refused_with_the_backbone_that_it_is(
    tmp_path: Path, made: str, name: str, right: str
) -> None:
    path = tmp_path / "r50.pth"
    torch.save(timm.create_model(made).state_dict(), path)
    with pytest.raises(UserError, match=f"stem.*; set Method.backbone={right}, or name a file of"):
        load_pretrained(build_backbone(name), name, str(path))


def test_weight_file_with_missing_or_wrong_weights_is_refused(tmp_path: Path) -> None:
    state = timm.create_model("resnet50s").state_dict()
    backbone, path = build_backbone("resnet50"), tmp_path / "r50.pth"
    for content, part in (
        ({k: v for k, v in state.items() if "layer4.2" not in k}, "lacks 15 weights of resnet50"),
        (state | {"layer3.0.conv1.weight": torch.ones(3)}, "does not fit resnet50"),
    ):
        torch.save(content, path)
        with pytest.raises(UserError, match=f"Method.pretrained: .*r50.pth {part}"):
            load_pretrained(backbone, "resnet50", str(path))


@pytest.mark.parametrize("name", ["resnet50", "vgg16", "timm/resnet18"])
def test_download_without_network_asks_for_a_file(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*args, **options):
        raise OSError("no route to host")

    backbone = build_backbone(name)
    monkeypatch.setattr("timm.models._builder.load_pretrained", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(UserError, match=f"weights of {name} cannot be downloaded here"):
        load_pretrained(backbone, name, "download")


def test_weight_file_of_another_model_is_refused_for_timm_backbones(tmp_path: Path) -> None:
    name = "timm/resnet18"
    backbone, path = build_backbone(name), tmp_path / "weights.pth"
    good = timm.create_model("resnet18").state_dict()
    for content, part in (
        (good, None),
        ({f"backbone.{key}": value for key, value in good.items()}, "lacks 20 weights"),
        ({"layer4.0.conv1.weight": torch.ones(1)} | good, None),
        (good | {"layer4.0.conv1.weight": torch.ones(1)}, "not a file of weights of timm/res"),
        (b"damaged", "torn, or not a PyTorch checkpoint"),
    ):
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        if part:
            with pytest.raises(UserError, match=f"Method.pretrained: .*{part}"):
                load_pretrained(backbone, name, str(path))
        else:
            load_pretrained(backbone, name, str(path))
            assert torch.equal(backbone.net.layer4[0].conv1.weight, good["layer4.0.conv1.weight"])


@pytest.mark.parametrize("depth", [50, 101])
def test_resnet_stages_3_and_4_are_dilated_from_their_first_block(depth: int) -> None:
    with torch.device("meta"):
        backbone = build_backbone(f"resnet{depth}")
        maps = backbone(torch.empty(1, 3, 97, 97))
    assert [tuple(f.shape) for f in maps] == [(1, c, 13, 13) for c in (512, 1024, 2048)]
    blocks = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth]
    for layer, (count, dilation) in enumerate(zip(blocks, (1, 1, 2, 4), strict=True), start=1):
        stage = getattr(backbone, f"layer{layer}")
        convs = [m for m in stage.modules() if isinstance(m, nn.Conv2d)]
        threes = [m for m in convs if m.kernel_size == (3, 3)]
        assert len(stage) == len(threes) == count
        assert {m.dilation for m in threes} == {m.padding for m in threes} == {(dilation,) * 2}
        strides = [m.stride for m in convs if m.stride != (1, 1)]
        # layer 2's first 3x3 and, with it, its shortcut halve the map; layers 3 and 4 do not.
        assert len(strides) == (2 if layer == 2 else 0)
    stem = [m for m in backbone.layer0 if isinstance(m, nn.Conv2d)]
    assert [(m.out_channels, m.stride[0]) for m in stem] == [(64, 2), (64, 1), (128, 1)]
