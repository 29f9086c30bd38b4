"""The systems beside AMFormer: sizes, dropout, keys, and what they refuse."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import ROOT
from torch import nn

from model import System, UserError, build_model
from model.backbones import LITE0, build_backbone
from model.build import SYSTEMS, options_of
from model.resize import bilinear_ac
from model.system import kind_of
from util.config import Config, load_config
from util.config.schema import KEYS, facts_of
from util.features import FeatureStore

R50 = ROOT / "config/pascal/pascal_split0_resnet50.yaml"
TRAINING_ONLY = {"train_parts", "train_kshot"}  # keys of `Method` that optimizers read


def on_meta(system: str, *words: str) -> System:
    with torch.device("meta"):
        return build_model(load_config(R50, [f"Method.name={system}", *words]))


@pytest.mark.parametrize(
    ("system", "tensors", "parameters", "trained_tensors", "trained"),
    [
        ("bam", 383, 51_631_062, 21, 4_917_254),
        ("hdmnet", 625, 50_875_542, 221, 4_161_734),
        ("pfenet", 365, 34_448_842, 35, 10_817_034),
    ],
)
def test_a_system_has_the_published_numbers_of_weights(
    system: str, tensors: int, parameters: int, trained_tensors: int, trained: int
) -> None:
    model = on_meta(system)
    named = dict(model.named_parameters())
    learns = [p for n, p in named.items() if kind_of(type(model), n) != "frozen"]
    assert len(model.state_dict()) == tensors
    assert sum(p.numel() for p in named.values()) == parameters
    assert (len(learns), sum(p.numel() for p in learns)) == (trained_tensors, trained)


@pytest.mark.parametrize("backbone", ["resnet101", "vgg16"])
@pytest.mark.parametrize("system", ["bam", "hdmnet", "pfenet"])
def test_every_system_runs_on_every_published_backbone(system: str, backbone: str) -> None:
    model = on_meta(system, f"Method.backbone={backbone}", "Data.size=65").to_empty(device="cpu")
    for weight in model.state_dict().values():
        weight.fill_(0.01)
    mask = torch.ones(1, 1, 65, 65, dtype=torch.long)
    mask[..., 40:] = 0
    images = torch.randn(1, 3, 65, 65), torch.randn(1, 1, 3, 65, 65)
    with torch.no_grad():
        scores = model.eval()(*images, mask).scores
    assert scores.shape == (1, 2, 65, 65) and scores.isfinite().all()


def test_dropouts_are_the_published_ones() -> None:
    for system, heads in (("bam", 1), ("pfenet", 5)):
        found = {n: m.p for n, m in on_meta(system).named_modules() if isinstance(m, nn.Dropout2d)}
        found.pop("encoder.base.dropout", None)
        assert sorted(found.values()) == [0.1] * heads + [0.5, 0.5]
        assert found["down_query.2"] == found["down_supp.2"] == 0.5


@pytest.mark.parametrize("system", sorted(SYSTEMS))
def test_keys_of_method_name_the_systems_that_take_them(system: str) -> None:
    taken = {f"Method.{name}" for name in options_of(SYSTEMS[system])}
    named = {name for name in KEYS if system in facts_of(name)["systems"]}
    methods = {n for n in named if n.startswith("Method.")}
    assert methods - {f"Method.{name}" for name in TRAINING_ONLY} <= taken
    assert all(system in (facts_of(name)["systems"] or SYSTEMS) for name in taken)


@pytest.mark.parametrize(
    ("system", "word"),
    [
        ("bam", "Method.mask_threshold=1.0"),
        ("bam", "Train.adversarial=false"),
        ("hdmnet", "Train.momentum=0.8"),
        ("pfenet", "Method.fix_bn=false"),
        ("amformer", "Method.ppm_scales=[1.0]"),
    ],
)
def test_key_of_another_system_is_refused(system: str, word: str) -> None:
    name = word.partition("=")[0]
    with pytest.raises(UserError, match=f"{name} has no effect with Method.name {system}"):
        load_config(R50, [f"Method.name={system}", word])


@pytest.mark.parametrize("system", ["bam", "pfenet"])
def test_masking_of_features_refuses_a_backbone_without_stages(system: str) -> None:
    cfg = Config()
    backbone = "timm/vit_tiny_patch16_224"
    cfg = replace(cfg, Method=replace(cfg.Method, name=system, backbone=backbone))
    with pytest.raises(UserError, match=r"Method\.backbone: .*resnet50"):
        build_model(cfg)


@torch.no_grad()
def test_last_stage_of_a_timm_backbone_sees_only_the_masked_features() -> None:
    backbone = build_backbone(LITE0).eval()
    image, weight = torch.randn(2, 3, 65, 65), (torch.rand(2, 1, 65, 65) > 0.5).float()
    f2, f3, f4 = backbone(image)
    masked = f3 * bilinear_ac(weight, (9, 9))
    for block in list(backbone.net.blocks)[5:]:
        masked = block(masked)
    got = backbone(image, weight)
    assert torch.equal(got[0], f2) and torch.equal(got[1], f3) and torch.equal(got[2], masked)
    assert not torch.equal(masked, f4)
    assert all(map(torch.equal, backbone(image), (f2, f3, f4)))  # no trace of the mask is left


def test_stored_features_are_dropped_when_batch_norms_have_trained() -> None:
    encoder: Any = SimpleNamespace(changes=0)
    episodes: Any = None
    store = FeatureStore(encoder, episodes)
    entry = SimpleNamespace(tensors=lambda: (torch.zeros(2),))
    key = ("image", None, False)
    assert store._cached(key, lambda: entry) is entry
    other = SimpleNamespace(tensors=lambda: (torch.zeros(3),))
    assert store._cached(key, lambda: other) is entry
    encoder.changes = 1
    assert store._cached(key, lambda: other) is other and store.used == 12
