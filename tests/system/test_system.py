"""The entry points on a small demo: both stages, test, resume, early stop, and mistakes."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import ROOT
from helpers.processes import on_processes
from tensorboardX.proto.event_pb2 import Event

import test as test_entry
import train as train_entry
import train_base as base_entry
from model import build_model
from model.backbones import pixel_statistics
from util.checkpoint.file import read_checkpoint, write_checkpoint
from util.checkpoint.load import load_checkpoint
from util.config import load_config
from util.data.dataset import collate, open_episodes
from util.evaluate.evaluator import Evaluator
from util.evaluate.visualize import GALLERIES, TILE
from util.features import FeatureStore, encode
from util.folds import CLASSES
from util.runtime.cli import main
from util.runtime.distributed import Ranks
from util.train.stages import SystemRun

CONFIG = ROOT / "config" / "demo" / "demo_split0_lite0.yaml"


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demo data of 120 training and 36 validation pictures; `base.pth` is their base learner."""
    folder = tmp_path_factory.mktemp("demo")
    words = ["--out", str(folder / "data"), "--images", "120"]
    subprocess.run([sys.executable, "-m", "util.data.demo", *words], cwd=ROOT, check=True)
    call(base_entry.train_base, folder, "Base.epochs=1")
    return folder


def overrides(folder: Path) -> list[str]:
    """A run of two epochs of a few iterations each."""
    return [
        f"Data.data_root={folder}/data/VOCdevkit2012/VOC2012",
        f"Data.list_dir={folder}/lists",
        f"Method.pre_weight={folder}/base.pth",
        f"Train.save_path={folder}/run",
        "Data.size=65",
        "Base.size=65",
        "Train.batch_size=20",
        "Train.epochs=2",
        "Train.max_iterations=0",
        "Train.val_period=1",
        "Train.print_freq=1",
        "Eval.val_episodes=4",
        "Eval.episodes=6",
        "Eval.seeds=[1,2]",
    ]


def call(entry, folder: Path, *more: str) -> None:
    """Run an entry point in this process as the command line would."""
    words = ["--config", str(CONFIG), "--gpus", "0", *overrides(folder), *more]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [entry.__name__, *words])
        main(entry)


def refused(entry, folder: Path, capsys: pytest.CaptureFixture, *more: str) -> str:
    """Check that the entry point refuses with one line and status 2; return the line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        call(entry, folder, *more)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and error.startswith("error: ")
    return error


@pytest.fixture(scope="session")
def trained(demo: Path) -> Path:
    """The folder of a complete run, with its checkpoints and result."""
    call(train_entry.train, demo)
    call(test_entry.test, demo, "--visualize", "2")
    return demo / "run"


def epoch_of(folder: Path) -> int:
    """Iterations of an epoch of the demo runs."""
    cfg = load_config(CONFIG, overrides(folder))
    return len(open_episodes(cfg, "train", 1)[0]) // cfg.Train.batch_size


def scalars(folder: Path) -> set[str]:
    """Tags in a run's tensorboard file."""
    tags = set()
    data = next(folder.glob("events.out.tfevents.*")).read_bytes()
    while data:
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        tags |= {value.tag for value in event.summary.value}
        data = data[12 + length + 4 :]
    return tags


def test_run_writes_checkpoints_config_curves_and_pictures(trained: Path, demo: Path) -> None:
    state, epoch = read_checkpoint(trained / "last.pth"), epoch_of(demo)
    assert state["iteration"] == 2 * epoch > 2 and state["best"] >= 0
    assert read_checkpoint(trained / "best.pth")["iteration"] in (epoch, 2 * epoch)
    saved = load_config(trained / "config.yaml")
    assert saved.Train.batch_size == 20 and saved.Method.backbone == "timm/tf_efficientnet_lite0"
    losses = {"main", "aux", "distillation", "base", "adversarial_g", "loss_g"}
    losses |= {"adversarial_d", "diversity", "loss_d", "lr_x1", "lr_x10", "accuracy"}
    wanted = {f"train/{name}" for name in losses}
    scores = ("miou_final", "miou_meta", "miou_base", "fb_iou", "fb_iou_meta", "p_iou", "loss")
    wanted |= {f"val/{name}" for name in (*scores, "pictures")}
    wanted |= {f"epoch/train_{name}" for name in ("miou", "macc", "allacc")}
    costs = ("iterations_per_s", "train_s", "validation_s", "peak_memory_gb")
    wanted |= {f"cost/{name}" for name in costs}
    classes = json.loads((trained / "result.json").read_text())["seeds"]["1"]["final"]["classes"]
    assert len(classes) == 5
    wanted |= {f"val/iou/{name}" for name in classes}
    found = scalars(trained)
    base = {tag.removeprefix("val/iou_base/") for tag in found if tag.startswith("val/iou_base/")}
    assert base and base < set(CLASSES["pascal"]) - classes.keys()
    assert found == wanted | {f"val/iou_base/{name}" for name in base}
    source = (trained / "source.txt").read_text()
    assert "command: " in source and "commit: " in source and source.startswith("time: ")


def test_result_file_holds_every_seed_and_their_mean(trained: Path) -> None:
    result = json.loads((trained / "result.json").read_text())
    seeds = result["seeds"]
    assert set(seeds) == {"1", "2"} and seeds["1"]["episodes"] == 6
    mean = np.mean([seed["final"]["miou"] for seed in seeds.values()])
    assert result["summary"]["final mIoU"]["mean"] == pytest.approx(mean)
    assert {"final mIoU", "meta mIoU", "prior mIoU", "base mIoU"} <= set(result["summary"])
    assert all("confusion" not in seed for seed in seeds.values())
    assert result["confusion"].keys() == seeds["1"]["final"]["classes"].keys()
    assert result["cost"]["seconds"] > 0 and 0.1 < result["cost"]["peak_memory_gb"] < 64
    for name in GALLERIES:
        picture = cv2.imread(str(trained / f"{name}.png"))
        assert picture.shape[0] > 2 * TILE and picture.shape[1] > 8 * TILE


def test_new_test_removes_the_pictures_of_the_earlier_one(
    trained: Path, demo: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(trained, tmp_path / "run")
    call(test_entry.test, demo, f"Train.save_path={folder}", "Eval.visualize=0")
    assert (folder / "result.json").exists() and not list(folder.glob("*.png"))


def test_run_resumed_in_the_middle_equals_an_uninterrupted_run(
    trained: Path, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SystemRun, "exhausted", lambda run: run.best_epoch > 0)
    call(train_entry.train, demo, f"Train.save_path={tmp_path}")
    assert read_checkpoint(tmp_path / "last.pth")["iteration"] == epoch_of(demo)
    monkeypatch.undo()
    words = f"Train.save_path={tmp_path}", f"Train.resume={tmp_path}/last.pth"
    call(train_entry.train, demo, *words)
    whole, resumed = (read_checkpoint(p / "last.pth") for p in (trained, tmp_path))
    assert resumed["best"] == whole["best"] and resumed["iteration"] == whole["iteration"]
    for name, value in whole["model"].items():
        assert torch.equal(value, resumed["model"][name]), name


def test_run_without_improvement_stops_early(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = f"Train.save_path={tmp_path}", "Train.stop_interval=2", "Train.epochs=9"
    call(train_entry.train, demo, *words, "Train.lr=1e-30", "Train.weight_decay=0")
    assert "stopped early: 2 epochs" in capsys.readouterr().out
    assert read_checkpoint(tmp_path / "last.pth")["iteration"] == 3 * epoch_of(demo)


def test_without_adversarial_training_the_discriminator_stays_unchanged(
    demo: Path, tmp_path: Path
) -> None:
    words = f"Train.save_path={tmp_path}", "Train.adversarial=false", "Train.max_iterations=2"
    call(train_entry.train, demo, *words)
    state = read_checkpoint(tmp_path / "last.pth")
    cfg = load_config(CONFIG, overrides(demo))
    torch.manual_seed(cfg.Train.seed)
    fresh = build_model(cfg).state_dict()
    for name, value in state["model"].items():
        if name.startswith("detail_mining."):
            assert torch.equal(value, fresh[name]), name
    assert not torch.equal(
        state["model"]["clue.down_query.0.weight"], fresh["clue.down_query.0.weight"]
    )


def test_augmented_training_runs_with_worker_processes(demo: Path, tmp_path: Path) -> None:
    words = f"Train.save_path={tmp_path}", "Data.augment=true", "Train.feature_store=false"
    call(train_entry.train, demo, *words, "Data.workers=2", "Train.max_iterations=2")
    assert read_checkpoint(tmp_path / "last.pth")["iteration"] == 2


def test_nonfinite_loss_stops_the_run_and_names_the_episodes(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    state = read_checkpoint(demo / "base.pth")
    state["state_dict"]["cls.4.weight"][:] = (
        3e38  # finite, as weights must be; its products are not
    )
    write_checkpoint(tmp_path / "nan.pth", **state)
    words = f"Method.pre_weight={tmp_path}/nan.pth", f"Train.save_path={tmp_path}/run"
    with pytest.raises(SystemExit) as stop:
        call(train_entry.train, demo, *words)
    error = capsys.readouterr().err
    assert stop.value.code == 1
    assert "iteration 0: the loss is nan" in error and "query='demo0_train_" in error
    assert not (tmp_path / "run" / "last.pth").exists()


def parts(folder: Path, *more: str):
    """Config, trained model and validation episodes."""
    cfg = load_config(CONFIG, [*overrides(folder), *more])
    model = build_model(cfg)
    load_checkpoint(model, folder / "run" / "last.pth")
    statistics = pixel_statistics(cfg.Method.backbone)
    episodes, _ = open_episodes(cfg, "val", 1, *statistics)
    return cfg, model, episodes


def scores_on(ranks: Ranks) -> dict:
    """The scores of 7 episodes: no number of ranks in this test divides 7."""
    cfg, model, episodes = parts(Path(os.environ["DEMO_RUN"]))
    evaluator = Evaluator(model, episodes, cfg, ranks)
    return asdict(evaluator.run(evaluator.order(7, [5]))[5])


def test_evaluation_on_several_ranks_equals_one_process_exactly(
    trained: Path, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEMO_RUN", str(demo))  # inherited by the processes
    # One thread each: with another number, float32 sums have another order and may move a pixel.
    [alone] = on_processes(1, scores_on, tmp_path)
    assert alone["prior"]["miou"] > 0 and alone["final"]["fb_iou"] > 0
    for world in (2, 3, 4):
        assert on_processes(world, scores_on, tmp_path) == [alone] * world


def scores_with_own_statistics(ranks: Ranks) -> dict:
    """Like `scores_on`, with other batch norm statistics of G on each rank."""
    cfg, model, episodes = parts(Path(os.environ["DEMO_RUN"]), "Method.fix_bn=false")
    for name, value in model.named_buffers():
        if name.endswith("running_mean") and not name.startswith("encoder."):
            value += 3 * ranks.rank
    evaluator = Evaluator(model, episodes, cfg, ranks)
    return asdict(evaluator.run(evaluator.order(7, [5]))[5])


def test_ranks_evaluate_rank_0s_model_even_if_their_batch_statistics_differ(
    trained: Path, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEMO_RUN", str(demo))
    [alone] = on_processes(1, scores_with_own_statistics, tmp_path)
    assert on_processes(2, scores_with_own_statistics, tmp_path) == [alone] * 2


@pytest.mark.parametrize("flip", [False, True])
def test_feature_store_returns_what_the_encoder_returns(
    trained: Path, demo: Path, flip: bool
) -> None:
    """This holds for mirrored images too, and for a store too small to keep anything."""
    cfg, model, _ = parts(demo, f"Data.flip={flip}")
    episodes, _ = open_episodes(cfg, "train", 1, *pixel_statistics(cfg.Method.backbone))
    model.eval()
    direct = encode(model.encoder, collate([episodes[i] for i in range(4)]))
    for gigabytes in (None, 0.0):
        store = FeatureStore(model.encoder, episodes, gigabytes)
        stored = store.batch(list(range(4)))
        views = [(stored.query, direct.query)]
        for shots in zip(stored.supports, direct.supports, strict=True):
            views += zip(*shots, strict=True)
        for view, other in views:
            for mine, theirs in zip(view.tensors(), other.tensors(), strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
        for name in ("query_mask", "query_base_mask", "class_index"):
            assert torch.equal(getattr(stored, name), getattr(direct, name)), name


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["Data.data_root=/nowhere/VOC2012"], "/nowhere/VOC2012"),
        (["Data.shot=60", "Train.feature_store=true"], "Data.shot"),
        (["Train.lrr=1"], "did you mean Train.lr?"),
        (["Train.lr=fast"], "Train.lr wants a number"),
        (["Method.pre_weight=/nowhere/base.pth"], "/nowhere/base.pth"),
        (["Method.backbone=timm/resnet18", "Method.pretrained=none"], "another architecture"),
        (["Method.backbone=timm/nonesuch", "Method.pretrained=none"], "Method.backbone"),
        (["Train.batch_size=99"], "batch_size 99"),
        (["Train.resume=/nowhere/last.pth"], "/nowhere/last.pth"),
        (["--gpus", "9"], "GPUS 9"),
    ],
)
def test_training_refuses_a_users_mistake_in_one_line(
    demo: Path, capsys: pytest.CaptureFixture, words: list[str], told: str
) -> None:
    folder = demo / "run"
    before = {p: p.stat().st_mtime_ns for p in folder.glob("*")} if folder.exists() else {}
    assert told in refused(train_entry.train, demo, capsys, *words)
    assert before == ({p: p.stat().st_mtime_ns for p in folder.glob("*")} if before else {})


def damaged(demo: Path, folder: Path) -> Path:
    """A copy of the demo data for a test to damage; lists and base learner are copied too."""
    shutil.copytree(demo / "data", folder / "data")
    shutil.copytree(demo / "lists", folder / "lists")
    shutil.copy(demo / "base.pth", folder)
    return folder / "data" / "VOCdevkit2012" / "VOC2012"


@pytest.mark.parametrize("fault", ["no image", "no mask", "mask of another size", "torn image"])
def test_broken_data_is_one_line_that_names_the_file(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture, fault: str
) -> None:
    root = damaged(demo, tmp_path)
    for image in sorted((root / "JPEGImages").glob("*train*.jpg")):
        mask = root / "SegmentationClassAug" / f"{image.stem}.png"
        if fault == "no image":
            image.unlink()
        elif fault == "no mask":
            mask.unlink()
        elif fault == "torn image":
            image.write_bytes(image.read_bytes()[:90])
        else:
            cv2.imwrite(str(mask), np.zeros((9, 9), np.uint8))
    error = refused(train_entry.train, tmp_path, capsys)
    assert "demo0_train_" in error


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["Train.save_path=/nowhere/run"], "/nowhere/run/best.pth"),
        (["Eval.weight=/nowhere/weights.pth"], "/nowhere/weights.pth"),
        (["Method.backbone=timm/resnet18", "Method.pretrained=none"], "another architecture"),
        (["Data.shot=5"], "trained with 1 support per query, and Data.shot is 5; set Eval.kshot"),
    ],
)
def test_testing_refuses_a_missing_or_unfitting_checkpoint(
    trained: Path, demo: Path, capsys: pytest.CaptureFixture, words: list[str], told: str
) -> None:
    result = (trained / "result.json").read_bytes()
    assert told in refused(test_entry.test, demo, capsys, *words)
    assert (trained / "result.json").read_bytes() == result
