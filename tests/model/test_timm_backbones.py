"""Any timm family as a backbone: the system runs with it, or it is refused with the reason."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from helpers import ROOT
from helpers.small import BASE_CLASSES, all_finite, images
from torch import nn

import train_base
from model import AMFormer, UserError, build_model
from model.backbones import build_backbone, check_size
from util.config import Config


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_config_with_an_unsuitable_size_builds_no_model() -> None:
    method = replace(Config().Method, backbone="timm/vit_tiny_patch16_224")
    cfg = replace(Config(), Method=method)  # Data.size 473
    with pytest.raises(UserError, match="^Data.size must be 1 mod 16 .* the nearest is 481$"):
        with torch.device("meta"):
            build_model(cfg)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("timm/levit_128", "takes no images of 65x65"),
        ("timm/mixer_s32_224", "so its size is fixed (Input height (65) doesn't match model (224)"),
    ],
)
def test_model_with_fixed_input_size_is_refused_when_built(name: str, reason: str) -> None:
    with pytest.raises(UserError) as refusal, torch.device("meta"):
        build_backbone(name)
    message = str(refusal.value)
    assert message.startswith(f"Method.backbone: {name} ") and reason in message
    assert "ViTs work, see docs/backbones.md" in message and "\n" not in message


def test_cell_centers_of_a_patch_backbone_lie_where_bilinear_ac_expects_them() -> None:
    backbone, size = build_backbone("timm/vit_tiny_patch16_224"), 97
    columns = torch.arange(size, dtype=torch.float32).expand(1, 3, size, size)
    patches = nn.functional.avg_pool2d(backbone._pad_to_patches(columns), 16)[0, 0]
    assert patches.shape == (7, 7)  # (97 - 1) / 16 + 1
    centers = 16 * torch.arange(1, 6) - 0.5  # a patch has an even number of pixels
    assert torch.allclose(patches[3, 1:-1], centers)
    rows = backbone._pad_to_patches(columns.mT)
    assert torch.equal(rows, backbone._pad_to_patches(columns).mT)


def test_plain_transformer_gives_outputs_at_half_three_quarters_and_full_depth() -> None:
    with torch.device("meta"):
        plain = build_backbone("timm/vit_tiny_patch16_224")
        staged = build_backbone("timm/pvt_v2_b0")
    assert plain.net.feature_info.out_indices == (5, 8, 11)
    assert staged.net.feature_info.reduction() == [8, 16, 32]


@pytest.mark.parametrize(
    ("name", "step", "smallest", "wrong", "nearest"),
    [
        ("timm/vit_tiny_patch16_224", 16, 49, 473, 481),
        ("timm/vit_tiny_patch16_224", 16, 49, 33, 49),
        ("timm/vit_small_patch14_dinov2", 56, 43, 473, 449),
        ("timm/pvt_v2_b0", 8, 65, 57, 65),
        ("vgg16", 8, 49, 41, 49),
        ("resnet50", 8, 33, 64, 65),
    ],
)
def test_unsuitable_size_is_refused_with_the_nearest_that_fits(
    name: str, step: int, smallest: int, wrong: int, nearest: int
) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name)
    check_size(backbone, (nearest, nearest), "Data.size")
    expected = (
        f"Data.size must be 1 mod {step} and at least {smallest} for this Method.backbone, given "
        f"{wrong}; the nearest is {nearest}"
    )
    for size in ((wrong, nearest), (nearest, wrong)):
        with pytest.raises(UserError) as refusal:
            check_size(backbone, size, "Data.size")
        assert str(refusal.value) == expected


def test_system_runs_at_the_smallest_size() -> None:
    model = AMFormer("timm/vit_tiny_patch16_224", BASE_CLASSES, 1).eval()
    with torch.no_grad():
        got = model(*images(1, 1, model.encoder.base.backbone.smallest))
    assert all_finite(got)


def test_docs_example_adds_the_transformer_of_mmsegmentation() -> None:
    page = (ROOT / "docs/backbones.md").read_text()
    [(code, expected)] = re.findall(r"```python\n(.*?)```\n```\n(.*?)```", page, re.DOTALL)
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == expected, done.stderr[-2000:]


def test_docs_show_the_error_message_of_an_unsuitable_size(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs/backbones.md").read_text()
    [(command, expected)] = re.findall(
        r"```sh\n# not run .*?\npython (.*?)\n```\n```\nerror: (.*?)\n```", page
    )
    monkeypatch.setattr(sys, "argv", command.split())
    monkeypatch.setattr(train_base, "open_base_images", lambda *_: ([0] * 12, []))
    monkeypatch.setattr(train_base, "stage_one_leaks", lambda _: {})
    with pytest.raises(UserError) as refusal:
        train_base.train_base()
    assert str(refusal.value) == expected
    monkeypatch.setattr(sys, "argv", command.replace("Data.size", "Base.size").split())
    with pytest.raises(UserError, match="^Base.size must be 1 mod 16 .* the nearest is 129$"):
        train_base.train_base()
