"""Published checkpoints are read and written with their own names."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from golden import golden
from torch import Tensor

from model import AMFormer, UserError
from model.base_learner import BaseLearner
from model.published import base_to_published, from_published, to_published
from util.checkpoint.load import load_base_learner
from util.config import Config

PREFIXES = pytest.mark.parametrize("prefix", ["", "module."], ids=["one GPU", "several GPUs"])


@cache
def own_state(backbone: str, classes: int = 15, shot: int = 1) -> dict[str, Tensor]:
    """Return our state dict on the meta device; shared, so do not change it."""
    with torch.device("meta"):
        return AMFormer(backbone, classes, shot).state_dict()


@pytest.fixture(params=[1, 5], ids=["1-shot", "5-shot"])
def published(request: pytest.FixtureRequest) -> dict[str, Tensor]:
    """Return a published checkpoint of ResNet-50 on the meta device."""
    shapes = golden.published_shapes(request.param)
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@PREFIXES
def test_published_checkpoint_maps_one_to_one_to_our_names_and_shapes(
    published: dict[str, Tensor], prefix: str
) -> None:
    shot = 5 if "kshot_rw.0.weight" in published else 1
    ours = from_published({prefix + name: value for name, value in published.items()})
    own = own_state("resnet50", shot=shot)
    assert ours.keys() == own.keys()
    assert {n: v.shape for n, v in ours.items()} == {n: v.shape for n, v in own.items()}


def test_published_checkpoint_survives_a_round_trip(published: dict[str, Tensor]) -> None:
    back = to_published(from_published(published))
    assert back.keys() == published.keys()
    assert all(back[name] is value for name, value in published.items())


@pytest.mark.parametrize(("backbone", "classes", "shot"), [("resnet101", 15, 1), ("vgg16", 60, 5)])
def test_our_state_dict_survives_a_round_trip(backbone: str, classes: int, shot: int) -> None:
    ours = own_state(backbone, classes, shot)
    theirs = to_published(ours)
    assert len(theirs) == len(ours)
    back = from_published(theirs)
    assert back.keys() == ours.keys() and all(back[name] is ours[name] for name in ours)


def test_published_names_of_vgg_differ_from_resnet_only_in_the_backbone() -> None:
    def others(names) -> set[str]:
        return {name for name in names if not name.startswith("layer")}

    vgg = to_published(own_state("vgg16"))
    assert others(vgg) == others(golden.published_shapes(1))
    own = {name.split(".")[0] for name in vgg.keys() - others(vgg)}
    assert own == {f"layer{i}" for i in range(5)}
    # BAM slices torchvision's features, so the numbers of a stage start at 0: conv, BN, ReLU, ...
    assert {"layer0.0.weight", "layer0.1.running_mean", "layer4.7.weight"} <= vgg.keys()
    assert vgg["layer0.0.weight"].shape == (64, 3, 3, 3)
    assert vgg["down_query.0.weight"].shape == (256, 512 + 256, 1, 1)


@PREFIXES
def test_missing_and_surplus_published_names_are_reported(prefix: str) -> None:
    missing = "transformer.mix_transformer.match_layers1.2.0.norm1.weight"
    theirs = to_published(own_state("vgg16"))
    state = {prefix + name: value for name, value in theirs.items()}
    value = state.pop(prefix + missing)
    with pytest.raises(UserError, match=rf"checkpoint; missing: {missing} \(1 in all\)$"):
        from_published(state)
    with pytest.raises(UserError, match=rf"surplus: nonsense \(1 in all\); missing: {missing}"):
        from_published(state | {prefix + "nonsense": value})


def test_missing_and_surplus_names_of_our_state_dict_are_reported() -> None:
    ours, name = own_state("vgg16"), "ensemble.cls_merge.weight"
    with pytest.raises(UserError, match=rf"missing: {name} \(1 in all\)"):
        to_published({n: value for n, value in ours.items() if n != name})
    for surplus in ("clue.nonsense", "nonsense"):
        with pytest.raises(UserError, match=rf"surplus: {surplus} \(1 in all\)"):
            to_published(ours | {surplus: ours[name]})


def test_timm_backbone_has_no_published_names() -> None:
    with pytest.raises(UserError, match=r"surplus: encoder\.base\.backbone\.net\."):
        to_published(own_state("timm/resnet18"))


# --- the base learner, as BAM writes it ---------------------------------------------------------


def config(path: Path) -> Config:
    made = Config()
    return replace(made, Method=replace(made.Method, pre_weight=str(path)))


@pytest.fixture
def bam_shapes() -> dict[str, list[int]]:
    """Return names and shapes of a base learner of BAM, whose classifier is `cls.4`."""
    starts = ("layer", "ppm.", "cls.", "base_learnear.")
    return {
        name.replace("base_learnear.2.", "cls.4."): shape
        for name, shape in golden.published_shapes(1).items()
        if name.startswith(starts)
    }


def test_base_learner_is_written_with_the_names_of_bam(bam_shapes: dict) -> None:
    assert {"cls.0.weight", "cls.1.bias", "cls.4.weight", "cls.4.bias"} <= bam_shapes.keys()
    with torch.device("meta"):
        state = BaseLearner("resnet50", 15).state_dict()
    assert {n: list(v.shape) for n, v in base_to_published(state).items()} == bam_shapes


@PREFIXES
def test_base_learner_of_bam_loads_unchanged(bam_shapes: dict, tmp_path: Path, prefix: str) -> None:
    with torch.device("meta"):
        base = BaseLearner("resnet50", 15)
    base.to_empty(device="cpu")
    # Each weight is filled with its own number and takes one number on disk.
    state = {name: torch.tensor(i).expand(s) for i, (name, s) in enumerate(bam_shapes.items())}
    state = {prefix + name: v if "num_b" in name else v.float() for name, v in state.items()}
    torch.save({"epoch": 7, "state_dict": state}, tmp_path / "bam.pth")
    load_base_learner(base, config(tmp_path / "bam.pth"))
    loaded = base_to_published(base.state_dict())
    for number, name in enumerate(bam_shapes):
        assert (loaded[name] == number).all(), name


def test_base_learner_of_stage_one_loads_unchanged(tmp_path: Path) -> None:
    source, target = (BaseLearner("timm/tf_efficientnet_lite0", 15) for _ in range(2))
    state = base_to_published(source.state_dict())
    torch.save({"state_dict": state}, tmp_path / "base.pth")
    load_base_learner(target, config(tmp_path / "base.pth"))
    expected = source.state_dict()
    assert all(torch.equal(expected[name], v) for name, v in target.state_dict().items())


def test_missing_base_learner_file_is_refused(tmp_path: Path) -> None:
    with torch.device("meta"):
        base = BaseLearner("timm/resnet18", 15)
    with pytest.raises(UserError, match=r"Method\.pre_weight: there is no file '.*nowhere\.pth'"):
        load_base_learner(base, config(tmp_path / "nowhere.pth"))


def test_base_learner_with_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    source = BaseLearner("timm/tf_efficientnet_lite0", 60)
    torch.save({"state_dict": base_to_published(source.state_dict())}, tmp_path / "coco.pth")
    target = BaseLearner("timm/tf_efficientnet_lite0", 15)
    with pytest.raises(UserError, match=r"coco\.pth: .* of another shape .*classifier"):
        load_base_learner(target, config(tmp_path / "coco.pth"))
