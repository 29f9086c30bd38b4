"""Published checkpoints of BAM, HDMNet, PFENet -> ours and back; what a base learner gives."""

import json
import sys
from pathlib import Path

import pytest
import torch
from golden import golden
from helpers import ROOT
from torch import Tensor

from model import build_model
from model.backbones import LITE0, load_pretrained
from model.base_learner import BaseLearner, FrozenBackbone
from model.published import base_to_published
from util.checkpoint import convert
from util.checkpoint.file import read_checkpoint, write_checkpoint
from util.checkpoint.load import load_base_learner, load_checkpoint, trained_model
from util.config import load_config
from util.runtime.cli import main
from util.runtime.errors import UserError

R50 = ROOT / "config/pascal/pascal_split0_resnet50.yaml"
FILES = {
    "bam": ["bam_shapes_resnet50_1shot", "bam_shapes_resnet50_5shot"],
    "hdmnet": ["hdmnet_shapes_resnet50_1shot", "hdmnet_shapes_resnet50_5shot"],
    "pfenet": ["pfenet_shapes_resnet50"],
}
CASES = [(system, name) for system, names in FILES.items() for name in names]


def weights(name: str) -> dict[str, Tensor]:
    shapes = json.loads((golden.GOLDEN / f"{name}.json").read_text())
    return golden.fill_state(shapes, seed=1)


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["convert", *map(str, words)])
    main(convert.convert_file)


@pytest.mark.parametrize(("system", "name"), CASES)
def test_published_checkpoint_becomes_ours_and_comes_back_unchanged(
    system: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    published = weights(name)
    state = {f"module.{key}": value for key, value in published.items()}
    theirs, ours, back = (tmp_path / f"{n}.pth" for n in ("theirs", "ours", "back"))
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {}}, theirs)
    run(monkeypatch, theirs, ours)
    assert {"bam": "BAM", "hdmnet": "HDMNet", "pfenet": "PFENet"}[system] in capsys.readouterr().out
    run(monkeypatch, ours, back)
    got = read_checkpoint(back)
    assert got.keys() == published.keys()
    assert all(torch.equal(got[key], value) for key, value in published.items())
    shot = 5 if "5shot" in name else 1
    cfg = load_config(R50, [f"Method.name={system}", f"Data.shot={shot}"])
    load_checkpoint(build_model(cfg), ours)  # as the test does: every name and shape fits
    if system == "bam":
        other = load_config(R50, ["Method.name=hdmnet", f"Data.shot={shot}"])
        with pytest.raises(UserError, match="surplus|missing|shape"):
            trained_model(other, read_checkpoint(ours), ours)
        with pytest.raises(SystemExit):
            run(monkeypatch, theirs, tmp_path / "no.pth", "--config", R50)
        assert "is BAM, and Method.name of the config amformer" in capsys.readouterr().err


def base_learner(path: Path) -> tuple[BaseLearner, list[str]]:
    torch.manual_seed(0)
    base = BaseLearner(LITE0, 15)
    write_checkpoint(path, state_dict=base_to_published(base.state_dict()))
    words = [f"Method.backbone={LITE0}", "Method.pretrained=package", "Method.name=pfenet"]
    return base, [*words, f"Method.pre_weight={path}"]


def test_system_without_base_learner_takes_its_backbone_from_one(tmp_path: Path) -> None:
    base, words = base_learner(tmp_path / "base.pth")
    frozen = FrozenBackbone(LITE0)
    load_base_learner(frozen, load_config(R50, words))
    for name, value in base.backbone.state_dict().items():
        assert torch.equal(frozen.backbone.state_dict()[name], value)


def test_without_a_file_such_a_system_has_pretrained_weights_and_others_are_refused(
    tmp_path: Path,
) -> None:
    base, words = base_learner(tmp_path / "base.pth")
    cfg = load_config(R50, [*words, "Method.pre_weight="])
    frozen = FrozenBackbone(LITE0)
    assert load_base_learner(frozen, cfg) is None
    expected = FrozenBackbone(LITE0).backbone
    load_pretrained(expected, LITE0, "package")
    found = frozen.backbone.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.state_dict().items())
    with pytest.raises(UserError, match="Method.pre_weight is empty; name"):
        load_base_learner(base, cfg)


def test_base_learner_of_bam_that_holds_its_backbone_twice_is_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = BaseLearner("resnet50", 15)
    state = base_to_published(base.state_dict())
    copies = {f"encoder.{k[5:]}": v for k, v in state.items() if k.startswith("layer")}
    assert copies and all(k.startswith("encoder.") for k in copies)
    torch.save({"state_dict": {f"module.{k}": v for k, v in (state | copies).items()}},
               tmp_path / "bam.pth")  # fmt: skip
    loaded = BaseLearner("resnet50", 15)
    load_base_learner(loaded, load_config(R50, [f"Method.pre_weight={tmp_path}/bam.pth"]))
    assert all(torch.equal(loaded.state_dict()[k], v) for k, v in base.state_dict().items())
