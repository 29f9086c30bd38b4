"""Training of every system: the rates of its config, exact resume, and what follows a training."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from helpers.runs import StopAt, make_data, same

import test as test_entry
import train as train_entry
from model import build_model
from model.backbones import LITE0
from model.build import SYSTEMS
from util.checkpoint import export
from util.checkpoint.file import read_checkpoint
from util.config import load_config
from util.predict import Example, Predictor
from util.runtime.cli import main
from util.runtime.distributed import Ranks
from util.runtime.errors import UserError
from util.train.trainers import build_trainer

pytestmark = pytest.mark.usefixtures("one_thread")
ALONE = Ranks(0, 1, torch.device("cpu"))
OTHERS = sorted(SYSTEMS.keys() - {"amformer"})
MORE = {"pfenet": ["Method.ppm_scales=[1.0,0.5,0.4,0.2]"]}


# --- rates ----------------------------------------------------------------------------------------

# Config -> weight decay and, by the start of a parameter's name, the rate before the first step of
# a hundred, without the factor of the schedule.
RATES = {
    "pascal_split0_bam_resnet50": (1e-4, {"": 0.05}),
    "pascal_split3_5shot_bam_vgg16": (1e-4, {"": 0.05}),
    "coco_split1_bam_vgg16": (1e-4, {"": 0.05}),
    "pascal_split2_pfenet_resnet50": (1e-4, {"": 0.025}),
    "coco_split0_pfenet_resnet101": (1e-4, {"": 0.2}),
    "pascal_split0_hdmnet_resnet50": (0.01, {"matching.": 1e-4, "": 1e-3}),
    "coco_split3_5shot_hdmnet_resnet50": (0.01, {"matching.": 1e-4, "": 1e-3}),
}


@pytest.mark.parametrize("name", RATES)
def test_every_weight_learns_at_the_published_rate(name: str) -> None:
    words = [f"Method.backbone={LITE0}", "Method.pretrained=none"]
    cfg = load_config(ROOT / f"config/{name.partition('_')[0]}/{name}.yaml", words)
    decay, rates = RATES[name]
    model = build_model(cfg)
    trainer = build_trainer(model, cfg, 100, ALONE)
    [optimizer] = trainer.optimizers.values()
    names = {id(p): n for n, p in model.named_parameters()}
    frozen = {"encoder.", *(["ensemble.kshot."] if cfg.Method.name == "hdmnet" else [])}
    seen = set()
    for iteration in (0, 49, 99):
        trainer.set_rates(iteration)
        for group in optimizer.param_groups:
            assert group["weight_decay"] == decay
            for parameter in group["params"]:
                found = names[id(parameter)]
                rate = next(value for start, value in rates.items() if found.startswith(start))
                expected = rate * (1 - (iteration + 1) / 100) ** 0.9
                assert group["lr"] == pytest.approx(expected, rel=1e-12), found
                seen.add(found)
    assert seen == {n for n in names.values() if not n.startswith(tuple(frozen))}
    if cfg.Method.name == "bam" and cfg.Data.shot == 5:
        assert "ensemble.kshot.0.weight" in seen
    momentum = {group.get("momentum") for group in optimizer.param_groups}
    assert momentum == ({None} if cfg.Method.name == "hdmnet" else {0.9})


def test_features_are_not_kept_while_batch_norms_train() -> None:
    words = ["Method.name=pfenet", "Train.feature_store=true", "Data.augment=false"]
    path = ROOT / "config/pascal/pascal_split0_resnet50.yaml"
    with pytest.raises(UserError, match="set Method.train_backbone_norms false"):
        load_config(path, words)
    assert load_config(path, [*words, "Method.train_backbone_norms=false"]).Train.feature_store


# --- runs on drawn data ---------------------------------------------------------------------------

CONFIG = ROOT / "config/demo/demo_split0_lite0.yaml"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def call(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[..., str]:
    """Run a script of a system in this process; return its output."""

    def call(entry: object, system: str, *more: str) -> str:
        given = [*words, f"Method.name={system}", *MORE.get(system, []), *more]
        run = {train_entry: "train", test_entry: "test"}[entry]
        monkeypatch.setattr(sys, "argv", [run, "--config", str(CONFIG), "--gpus", "0", *given])
        main(getattr(entry, run))
        return capsys.readouterr().out

    return call


@pytest.mark.parametrize("system", OTHERS)
@pytest.mark.parametrize("query", [3, 5], ids=["between steps", "while validating"])
def test_a_system_stopped_and_resumed_equals_an_undisturbed_run(
    system: str, query: int, call: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = "Train.max_iterations=6"
    call(train_entry, system, f"Train.save_path={tmp_path}/whole", steps)
    with monkeypatch.context() as patch:
        patch.setattr(train_entry, "Stop", StopAt(query))
        output = call(train_entry, system, f"Train.save_path={tmp_path}/parts", steps)
    assert "; resume with:" in output
    assert read_checkpoint(tmp_path / "parts/last.pth")["iteration"] < 6
    output = call(
        train_entry, system, f"Train.save_path={tmp_path}/parts", steps, "Train.resume=auto"
    )
    assert "resumed from" in output and "changed since" not in output
    same(tmp_path / "parts/last.pth", tmp_path / "whole/last.pth")


@pytest.mark.parametrize("system", OTHERS)
def test_a_trained_system_is_tested_exported_and_predicts(
    system: str, call: Callable, tmp_path: Path
) -> None:
    more = [f"Train.save_path={tmp_path}/run", "Eval.episodes=4", "Eval.seeds=[1]"]
    has_base = system != "pfenet"
    call(train_entry, system, *more, "Train.max_iterations=2", "Train.epochs=1")
    output = call(test_entry, system, *more, "Eval.visualize=1")
    assert ("base mIoU" in output) == has_base and "prior mIoU" in output
    [scores] = json.loads((tmp_path / "run/result.json").read_text())["seeds"].values()
    assert (scores["base_miou"] is not None) == has_base
    assert scores["prior_channel"] in SYSTEMS[system].PRIORS

    checkpoint, small = tmp_path / "run/best.pth", tmp_path / "small.safetensors"
    small.write_bytes(export.exported(checkpoint, {}))
    image = torch.randint(0, 255, (40, 50, 3), dtype=torch.uint8).numpy()
    found = []
    for path in (checkpoint, small):
        predictor = Predictor.from_checkpoint(path)
        predictor.add_class("thing", Example(image, box=(5, 5, 30, 30)))
        stages = predictor.explain(image)
        assert stages.initial is None and len(stages.refinements) == 1
        found.append(stages.result.scores)
    assert abs(found[0] - found[1]).max() < 0.05  # half precision
