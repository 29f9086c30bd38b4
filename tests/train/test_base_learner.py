"""Stage one: its rates, its best epoch, and what its run leaves behind."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import entries
from helpers.runs import CONFIG, StopAt, make_data, same

import train_base as base_entry
from model.base_learner import BaseLearner
from util.checkpoint.file import read_checkpoint
from util.config import load_config
from util.data.base_images import open_base_images
from util.evaluate.scores import BaseScores
from util.report.__main__ import report
from util.report.runs import read_curves
from util.runtime.distributed import Ranks
from util.train import base_learner, run
from util.train.base_learner import BaseLearnerTrainer, Validation

CPU = Ranks(0, 1, torch.device("cpu"))
EPOCHS = "Base.max_iterations=0", "Base.epochs=3"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*make_data(tmp_path_factory.mktemp("data")), "Base.batch_size=8", "Base.val_images=6"]


StageOne = Callable[..., int]


@pytest.fixture
def stage_one(words: list[str], tmp_path: Path) -> StageOne:
    """Return a function that runs stage one; its base learner is `<name>.pth`.

    `mious` are what its validations find, in this order; without them it validates really.
    """

    def run(name: str, *options: str, mious: Sequence[float] = ()) -> int:
        left = iter(mious)

        def found(*_: object) -> tuple[BaseScores, list]:
            return BaseScores(next(left), 1.0, 6, {"cat": 5.0}), []

        path = f"Method.pre_weight={tmp_path}/{name}.pth"
        with pytest.MonkeyPatch.context() as patch:
            if mious:
                patch.setattr(Validation, "run", found)
            return entries.call(base_entry.train_base, *words, *EPOCHS, path, *options)

    return run


def result(folder: Path, name: str) -> dict:
    return json.loads((folder / name / "result.json").read_text())["base_learner"]


@pytest.mark.parametrize(
    ("name", "backbone", "head"),
    [("pascal/pascal_split1_resnet50", 2.5e-4, 2.5e-3), ("coco/coco_split1_vgg16", 2.5e-3, 2.5e-3)],
)
def test_rates_in_force_are_the_published_ones(name: str, backbone: float, head: float) -> None:
    cfg = load_config(f"config/{name}.yaml", ["Method.backbone=timm/tf_efficientnet_lite0"])
    model = BaseLearner(cfg.Method.backbone, cfg.num_base_classes)
    trainer = BaseLearnerTrainer(model, cfg, 1000, CPU)
    image = torch.randn(2, 3, 33, 33)
    values = trainer.step(image, torch.zeros(2, 33, 33, dtype=torch.long), 499)
    assert values.keys() == {"loss", "accuracy"} and 0 <= values["accuracy"] <= 1
    decay = (1 - 500 / 1000) ** 0.9
    rates = {id(p): g["lr"] for g in trainer.optimizer.param_groups for p in g["params"]}
    for parameter, weight in model.named_parameters():
        wanted = (backbone if parameter.startswith("backbone.") else head) * decay
        assert rates[id(weight)] == pytest.approx(wanted, rel=1e-9), parameter
    [momentum] = {g["momentum"] for g in trainer.optimizer.param_groups}
    [weight_decay] = {g["weight_decay"] for g in trainer.optimizer.param_groups}
    assert (momentum, weight_decay) == (0.9, 1e-4)


@pytest.mark.parametrize(
    ("name", "said"), [("base", "has no ending; write"), ("run.pth", "which is Train.save_path")]
)
def test_unusable_place_of_the_base_learner_is_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, name: str, said: str
) -> None:
    more = f"Method.pre_weight={tmp_path}/{name}", f"Train.save_path={tmp_path}/run"
    assert entries.call(base_entry.train_base, *words, *more) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: Method.pre_weight: ") and said in error
    assert error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_best_epoch_is_kept(stage_one: StageOne, tmp_path: Path) -> None:
    assert stage_one("best", mious=(10.0, 30.0, 20.0)) == 0
    assert read_checkpoint(tmp_path / "best.pth")["base_miou"] == 30.0
    assert result(tmp_path, "best") == {
        "miou": 30.0, "loss": 1.0, "images": 6, "classes": {"cat": 5.0}, "epoch": 2,
    }  # fmt: skip
    assert stage_one("later", mious=(10.0, 30.0, 40.0)) == 0
    later = read_checkpoint(tmp_path / "later.pth")["state_dict"]
    best = read_checkpoint(tmp_path / "best.pth")["state_dict"]
    assert any(not torch.equal(best[name], later[name]) for name in best)
    assert stage_one("again", mious=(10.0, 30.0, 20.0)) == 0
    same(tmp_path / "again.pth", tmp_path / "best.pth")


def test_stage_one_stops_early(
    stage_one: StageOne, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert stage_one("base", "Base.stop_interval=1", mious=(30.0, 10.0)) == 0
    assert "stopped early: 1 epochs without a better mIoU" in capsys.readouterr().out
    assert result(tmp_path, "base")["epoch"] == 1


def test_stage_one_stopped_in_the_epoch_before_its_early_stop_goes_on(
    stage_one: StageOne, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epoch 1 is the best, `stop_interval` is 2: epoch 3 still has a chance."""
    options = "Base.stop_interval=2", "Base.epochs=5"
    assert stage_one("whole", *options, mious=(30.0, 10.0, 40.0, 20.0, 20.0)) == 0
    with monkeypatch.context() as patch:
        patch.setattr(base_entry, "Stop", StopAt(6))  # in iteration 7, the first of epoch 3
        assert stage_one("base", *options, mious=(30.0, 10.0)) == 0
    assert not (tmp_path / "base.pth").exists()
    assert read_checkpoint(tmp_path / "base/last.pth")["iteration"] == 7
    assert stage_one("base", *options, "Train.resume=auto", mious=(40.0, 20.0, 20.0)) == 0
    assert result(tmp_path, "base") == result(tmp_path, "whole")
    assert result(tmp_path, "base")["epoch"] == 3
    same(tmp_path / "base.pth", tmp_path / "whole.pth")


def test_stage_one_resumes_from_a_snapshot_of_its_folder(
    stage_one: StageOne, tmp_path: Path
) -> None:
    assert stage_one("base", "Base.save_freq=1", mious=(10.0, 30.0, 20.0)) == 0
    (tmp_path / "base.pth").rename(tmp_path / "whole.pth")
    snapshot = f"Train.resume={tmp_path}/base/epoch_1.pth"
    assert stage_one("base", snapshot, mious=(30.0, 20.0)) == 0
    same(tmp_path / "base.pth", tmp_path / "whole.pth")


def test_failing_disk_does_not_cost_the_best_epoch(
    stage_one: StageOne, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stage_one("whole", mious=(10.0, 30.0, 20.0)) == 0
    written = run.atomic_write

    def full_while_training(path: Path, content: object, **more: object) -> None:
        if path.suffix == ".pth":
            raise OSError(28, "No space left on device")
        written(path, content, **more)

    monkeypatch.setattr(run, "atomic_write", full_while_training)
    assert stage_one("base", mious=(10.0, 30.0, 20.0)) == 0
    same(tmp_path / "base.pth", tmp_path / "whole.pth")


def test_without_validation_the_last_epoch_is_kept(
    stage_one: StageOne, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Validation, "run", lambda *_: pytest.fail("validated"))
    (tmp_path / "base").mkdir()
    (tmp_path / "base/predictions.png").write_bytes(b"of an earlier run")
    assert stage_one("base", "Base.evaluate=false", "Base.save_freq=2") == 0
    assert result(tmp_path, "base") == {"epoch": 3}
    assert not (tmp_path / "base/predictions.png").exists()
    assert read_checkpoint(tmp_path / "base.pth")["base_miou"] is None
    assert [path.name for path in (tmp_path / "base").glob("*.pth")] == ["epoch_2.pth"]


def test_run_leaves_curves_pictures_scores_and_a_page(
    stage_one: StageOne, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert stage_one("base", "Train.print_freq=1") == 0
    folder, found = tmp_path / "base", result(tmp_path, "base")
    names = {path.name for path in folder.iterdir() if not path.name.startswith("events")}
    assert names == {"config.yaml", "log.txt", "predictions.png", "result.json", "source.txt"}
    curves, _ = read_curves(sorted(folder.glob("events.out.tfevents.*")))
    assert [step for step, _ in curves["val/miou_base"]] == [3, 6, 9]
    assert len(curves["train/loss"]) == len(curves["train/accuracy"]) == 9
    assert len(curves["epoch/train_miou"]) == 3
    classes = {tag.removeprefix("val/iou/") for tag in curves if tag.startswith("val/iou/")}
    assert classes == found["classes"].keys() and found["images"] == 6
    assert found["miou"] == pytest.approx(max(v for _, v in curves["val/miou_base"]), rel=1e-5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["report", str(folder)])
        report()
    page = (folder / "report.html").read_text()
    assert "IoU of each base class" in page and "Predictions of the base learner" in page
    assert "Base learner: loss" in page and "not tested yet" not in page
    assert "no result.json" not in capsys.readouterr().out
    shutil.rmtree(folder)


def test_validation_counts_every_base_class_that_is_there(words: list[str]) -> None:
    """Scores equal those of one image after the other, with kept f4 and without."""
    cfg = load_config(CONFIG, words)
    tests, _ = open_base_images(cfg, "val", base_learner.transform(cfg, train=False), None)
    torch.manual_seed(0)
    model = base_learner.build_base_learner(cfg, CPU)
    idle = type("Idle", (), {"requested": False})()
    kept = Validation(tests, cfg, CPU)
    first, strips = kept.run(model, idle)
    assert len(strips) == 4 and model.training and not model.backbone.training
    again, _ = kept.run(model, idle)
    read = Validation(tests, replace(cfg, Base=replace(cfg.Base, augment=True)), CPU)
    fresh, _ = read.run(model, idle)
    for other in (again, fresh):
        assert other.miou == pytest.approx(first.miou, abs=0.05)
        assert other.loss == pytest.approx(first.loss, rel=1e-4)
    hits, union, there = (torch.zeros(16) for _ in range(3))
    model.eval()
    for index in range(6):
        image, label = tests[index]
        with torch.no_grad():
            scores = torch.nn.functional.interpolate(
                model(image[None]), label.shape, mode="bilinear", align_corners=True
            )
        found = scores[0].argmax(0)
        for c in range(16):
            p, t, valid = found == c, label == c, label != 255
            hits[c] += (p & t).sum()
            union[c] += ((p | t) & valid).sum()
            there[c] += t.sum()
    iou = (hits / union)[1:][there[1:] > 0]
    assert first.miou == pytest.approx(100 * iou.mean().item(), abs=0.05)
    assert len(first.classes) == len(iou)
