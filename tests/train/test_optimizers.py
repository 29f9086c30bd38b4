"""Optimizers: every trainable parameter is in one group, at the published rate."""

from dataclasses import replace

import pytest
import torch
from helpers.small import BASE_CLASSES, config
from torch import nn

from model import AMFormer
from model.backbones import LITE0
from util.runtime.errors import UserError
from util.train.optimizers import build_optimizers


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


GROUPS = {  # start of a name -> (network, at ten times the rate?), as in method 6
    "object_mining.": ("G", False),
    "clue.down_query.": ("G", True),
    "clue.down_supp.": ("G", True),
    "clue.query_merge.": ("G", True),
    "ensemble.gram_merge.": ("G", True),
    "ensemble.cls_merge.": ("G", True),
    "ensemble.kshot.": ("G", True),  # ours, when it is trained
    "detail_mining.attention.": ("D", False),
    "detail_mining.discriminators.": ("D", True),
}


def expected_group(name: str) -> tuple[str, bool]:
    (group,) = (group for start, group in GROUPS.items() if name.startswith(start))
    if name.startswith("detail_mining.attention.") and name.endswith(".norm.bias"):
        return "D", True  # as published: the bias of D's LayerNorm, not its weight
    return group


@pytest.mark.parametrize("switches", [False, True], ids=["as published", "all trained"])
def test_every_trainable_parameter_is_in_one_group_at_the_published_rate(switches: bool) -> None:
    model = AMFormer(LITE0, BASE_CLASSES, 5)
    cfg = config(train_parts=switches, train_kshot=switches)
    cfg = replace(cfg, Train=replace(cfg.Train, lr=2e-4))
    g, d = build_optimizers(model, cfg)
    assert type(g) is torch.optim.AdamW and type(d) is torch.optim.Adam
    found: dict[int, list[tuple[str, float]]] = {}
    for network, optimizer in (("G", g), ("D", d)):
        for group in optimizer.param_groups:
            assert group["betas"] == (0.9, 0.999) and group["weight_decay"] == 0.01
            assert group["eps"] == 1e-8 and not group["amsgrad"]
            for p in group["params"]:
                found.setdefault(id(p), []).append((network, group["lr"]))
    for name, p in model.named_parameters():
        if not p.requires_grad:
            assert id(p) not in found, name
            continue
        network, multiplied = expected_group(name)
        assert found.pop(id(p)) == [(network, pytest.approx(2e-3 if multiplied else 2e-4))], name
    assert not found


@pytest.mark.parametrize(
    ("switch", "names"),
    [
        ("train_parts", {f"detail_mining.attention.{i}.parts" for i in range(3)}),
        ("train_kshot", {f"ensemble.kshot.{i}.{p}" for i in (0, 2) for p in ("weight", "bias")}),
    ],
)
def test_parameters_in_no_published_optimizer_are_frozen_unless_their_key_is_on(
    switch: str, names: set[str]
) -> None:
    model = AMFormer(LITE0, BASE_CLASSES, 5)
    parameters = dict(model.named_parameters())
    build_optimizers(model, config())
    frozen = {n for n, p in parameters.items() if not p.requires_grad and "encoder." not in n}
    build_optimizers(model, config(**{switch: True}))
    assert {n for n in frozen if parameters[n].requires_grad} == names
    build_optimizers(model, config())
    assert not any(parameters[name].requires_grad for name in names)


@pytest.mark.parametrize("place", ["", "encoder", "detail_mining"])
def test_trainable_parameter_without_a_group_is_refused_by_name(place: str) -> None:
    model = AMFormer(LITE0, BASE_CLASSES, 1)
    model.get_submodule(place).register_parameter("surplus", nn.Parameter(torch.zeros(1)))
    name = f"{place}.surplus".lstrip(".")
    with pytest.raises(UserError, match=f"^{name} is trainable but in no optimizer"):
        build_optimizers(model, config())
