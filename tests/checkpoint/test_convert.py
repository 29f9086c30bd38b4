"""Published weights -> ours, and back: equal outputs, or one line about what differs."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import golden
from helpers import ROOT
from helpers.small import images
from torch import Tensor

from model import AMFormer
from model.backbones import LITE0, load_pretrained
from model.base_learner import BaseLearner
from model.published import base_to_published, to_published
from util.checkpoint import convert
from util.checkpoint.file import read_checkpoint, write_checkpoint
from util.checkpoint.load import load_base_learner, load_checkpoint
from util.config import load_config, to_dict
from util.runtime.cli import main
from util.runtime.errors import UserError

LITE0_CONFIG = ROOT / "config/demo/demo_split0_lite0.yaml"
R50_CONFIG = ROOT / "config/pascal/pascal_split0_resnet50.yaml"
VGG_CONFIG = ROOT / "config/pascal/pascal_split0_vgg16.yaml"


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["convert", *map(str, words)])
    main(convert.convert_file)


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path):
    def refused(source: Path, *words: object) -> str:
        before = sorted(tmp_path.iterdir())
        with pytest.raises(SystemExit) as stop:
            run(monkeypatch, source, tmp_path / "out.pth", *words)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.count("\n") == 1
        assert error.startswith(f"error: {source}: ") and sorted(tmp_path.iterdir()) == before
        return error

    return refused


@pytest.fixture(scope="module")
def vgg() -> AMFormer:
    torch.manual_seed(0)
    return AMFormer("vgg16", 15, 1).eval()


@torch.no_grad()
def same_outputs(a: AMFormer, b: AMFormer) -> bool:
    torch.manual_seed(1)
    episode = images(1, a.shot)
    both = a.eval()(*episode), b.eval()(*episode)
    names = ("scores", "meta", "base", "prior", "initial_mask")
    return all(torch.equal(*(getattr(one, name) for one in both)) for name in names)


def test_weights_converted_to_published_names_and_back_give_equal_outputs(
    vgg: AMFormer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    ours, theirs, back = (tmp_path / f"{name}.pth" for name in ("ours", "theirs", "back"))
    write_checkpoint(ours, model=vgg.state_dict(), iteration=7, optimizer_g={}, config={"x": 1})
    run(monkeypatch, ours, theirs)
    told = "AMFormer of 15 base classes and 1 shots on vgg16"
    assert f"written: {theirs}, {told}" in capsys.readouterr().out
    assert read_checkpoint(theirs).keys() == to_published(vgg.state_dict()).keys()
    run(monkeypatch, theirs, back, "--to", "ours", "--config", VGG_CONFIG)
    assert read_checkpoint(back)["config"] == to_dict(load_config(VGG_CONFIG))
    model = AMFormer("vgg16", 15, 1)
    assert not same_outputs(vgg, model)
    load_checkpoint(model, back)
    assert same_outputs(vgg, model)


@pytest.mark.parametrize("shot", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_converted_published_weights_give_the_published_outputs(
    shot: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The file has HDMNet's layout: `state_dict`, and the prefix that several GPUs add."""
    published = golden.fill_state(golden.published_shapes(shot), seed=37)
    state = {f"module.{name}": value for name, value in published.items()}
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {}}, tmp_path / "in.pth")
    run(monkeypatch, tmp_path / "in.pth", tmp_path / "ours.pth")
    run(monkeypatch, tmp_path / "ours.pth", tmp_path / "back.pth")
    back = read_checkpoint(tmp_path / "back.pth")
    assert back.keys() == published.keys()
    assert all(torch.equal(back[name], value) for name, value in published.items())

    model = AMFormer("resnet50", 15, shot).eval()
    load_checkpoint(model, tmp_path / "ours.pth")
    episode = golden.episode({1: "public/eval", 5: "public/5shot"}[shot], 2, shot, 129, 15)
    if shot == 5:
        episode["support_mask"][0, 4] = 0
    with torch.no_grad():
        got = model(episode["query"], episode["support"], episode["support_mask"])
    expected = golden.arrays(f"pascal_resnet50_{shot}shot_eval")
    for name, value in (("final", got.scores), ("meta", got.meta), ("prior", got.prior)):
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=5e-5, err_msg=name)


@pytest.mark.parametrize(
    ("prefix", "classifier"), [("module.", "cls.4."), ("", "base_learnear.2.")]
)
def test_base_learner_of_bam_is_converted_and_back_without_a_change(
    prefix: str, classifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    base, image = BaseLearner("vgg16", 15).eval(), torch.randn(1, 3, 65, 65)
    bam = base_to_published(base.state_dict())
    state = {prefix + n.replace("cls.4.", classifier): v for n, v in bam.items()}
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "bam.pth")
    run(monkeypatch, tmp_path / "bam.pth", tmp_path / "ours.pth")
    assert read_checkpoint(tmp_path / "ours.pth")["state_dict"].keys() == base.state_dict().keys()
    run(monkeypatch, tmp_path / "ours.pth", tmp_path / "back.pth")
    back = read_checkpoint(tmp_path / "back.pth")["state_dict"]
    assert back.keys() == bam.keys() and all(torch.equal(back[n], v) for n, v in bam.items())
    loaded = BaseLearner("vgg16", 15).eval()
    load_base_learner(loaded, load_config(VGG_CONFIG, [f"Method.pre_weight={tmp_path}/ours.pth"]))
    with torch.no_grad():
        assert torch.equal(base(image), loaded(image))


def test_base_learner_on_a_timm_backbone_needs_its_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused
) -> None:
    base = BaseLearner(LITE0, 15)
    write_checkpoint(tmp_path / "in.pth", state_dict=base_to_published(base.state_dict()))
    error = refused(tmp_path / "in.pth")
    assert "surplus (net." in error and "wants --config" in error
    run(monkeypatch, tmp_path / "in.pth", tmp_path / "out.pth", "--config", LITE0_CONFIG)
    assert read_checkpoint(tmp_path / "out.pth")["state_dict"].keys() == base.state_dict().keys()


@pytest.fixture
def published(vgg: AMFormer) -> dict[str, Tensor]:
    return to_published(vgg.state_dict())


def test_weights_that_do_not_fit_are_refused_with_the_names_that_differ(
    published: dict[str, Tensor], tmp_path: Path, refused
) -> None:
    source = tmp_path / "in.pth"
    gone = [name for name in published if ".match_layers_r" in name]
    narrow = "down_query.0.weight"
    changed = {name: value for name, value in published.items() if name not in gone}
    changed |= {narrow: torch.zeros(64, 3, 1, 1), "query_new.weight": torch.zeros(1)}
    write_checkpoint(source, state_dict=changed)
    error = refused(source)
    assert f"{len(gone)} missing ({', '.join(gone[:3])}, ...)" in error
    assert "1 surplus (query_new.weight)" in error
    assert f"1 of another shape ({narrow} [64, 3, 1, 1] for [256, 768, 1, 1])" in error


def test_config_that_the_weights_do_not_fit_is_refused(
    published: dict[str, Tensor], tmp_path: Path, refused
) -> None:
    write_checkpoint(tmp_path / "in.pth", **published)
    assert "on resnet50: " in refused(tmp_path / "in.pth", "--config", R50_CONFIG)


def test_file_without_convertible_weights_is_refused_with_the_reason(
    vgg: AMFormer, tmp_path: Path, refused
) -> None:
    source = tmp_path / "in.pth"
    assert "no such checkpoint" in refused(source)
    source.write_bytes(b"torn")
    assert "not a PyTorch checkpoint" in refused(source)
    write_checkpoint(source, epoch=3)
    assert "holds no weights ('epoch' is no tensor)" in refused(source)
    write_checkpoint(source, state_dict={})
    assert "holds no weights (it is empty)" in refused(source)
    write_checkpoint(source, weight=torch.zeros(1))
    assert "neither our names nor published ones (weight, ...)" in refused(source)
    write_checkpoint(source, model=vgg.state_dict() | {"encoder.nonsense": torch.zeros(1)})
    assert "1 surplus (encoder.nonsense)" in refused(source)
    assert "its names are ours already" in refused(source, "--to", "ours")
    with torch.device("meta"):
        system = AMFormer("timm/resnet18", 15, 1).state_dict()
    few = {name: torch.zeros(value.shape) for name, value in system.items()}
    write_checkpoint(source, model=few)
    assert "surplus (encoder.base.backbone.net." in refused(source)


def test_input_file_is_never_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    source = tmp_path / "in.pth"
    write_checkpoint(source, state_dict=base_to_published(BaseLearner(LITE0, 15).state_dict()))
    before = source.read_bytes()
    with pytest.raises(SystemExit):
        run(monkeypatch, source, source, "--config", LITE0_CONFIG)
    assert "is an input of this run and would be replaced" in capsys.readouterr().err
    assert source.read_bytes() == before


@pytest.mark.parametrize("config", [VGG_CONFIG, R50_CONFIG])
def test_converted_base_learner_keeps_what_it_was_trained_on(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs, back = (tmp_path / f"{name}.pth" for name in ("ours", "theirs", "back"))
    trained = load_config(config, ["Data.split=1"])
    record = {"config": to_dict(trained), "images": 9}
    base = BaseLearner(trained.Method.backbone, 15)
    write_checkpoint(ours, state_dict=base_to_published(base.state_dict()), base_miou=1.0, **record)
    run(monkeypatch, ours, theirs)
    run(monkeypatch, theirs, back)
    for path in (theirs, back):
        state = read_checkpoint(path)
        assert {name: state[name] for name in record} == record
        cfg = load_config(config, [f"Method.pre_weight={path}"])
        with pytest.raises(UserError, match="was trained on other base classes"):
            load_base_learner(BaseLearner(cfg.Method.backbone, 15), cfg)


@pytest.mark.parametrize("config", [VGG_CONFIG, R50_CONFIG])
def test_base_learner_of_unknown_classes_is_taken_as_such(config: Path, tmp_path: Path) -> None:
    path = tmp_path / "bam.pth"
    cfg = load_config(config, [f"Method.pre_weight={path}"])
    base = BaseLearner(cfg.Method.backbone, 15)
    write_checkpoint(path, state_dict=base_to_published(base.state_dict()))
    assert load_base_learner(base, cfg) is None  # train.py then says so


@pytest.mark.parametrize("backbone", ["vgg16", "resnet50"])
@pytest.mark.parametrize("names", ["ours", "published"])
def test_base_learner_is_refused_as_imagenet_weights(
    backbone: str, names: str, tmp_path: Path
) -> None:
    """Its backbone has seen the base classes of its fold, which may be novel in this one."""
    model = BaseLearner(backbone, 15)
    weights = model.state_dict()
    weights = base_to_published(weights) if names == "published" else weights
    write_checkpoint(tmp_path / "base.pth", state_dict=weights)
    with pytest.raises(UserError, match="Method.pretrained: .*base.pth: is a base learner"):
        load_pretrained(model.backbone, backbone, str(tmp_path / "base.pth"))
