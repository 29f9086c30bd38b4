"""Runs and results as train.py and test.py leave them, and util.report on them."""

import json
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboardX import SummaryWriter

from helpers import ROOT
from util.config import load_config, save_config, to_dict
from util.evaluate.visualize import GALLERIES, encode_strips
from util.report import __main__ as entry
from util.runtime.cli import main

PASCAL = "config/pascal/pascal_split{}_resnet50.yaml"


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["report", *map(str, words)])
    main(entry.report)


LEAKS = {
    "backbone": "backbone: may have seen them",
    "not_tested": ["<i>sofa</i>"],
    "stage one": {
        **{"images": 5953, "test_images": 0, "objects": "background"},
        "classes": {"cat": {"images": 1240, "pixels": 98765, "left_out": 0}, "dog": None},
    },
    "stage two": {"unknown": "lists/x/train.json: no table of the masks"},
}


def result(cfg, mious: dict[int, float], **more: object) -> dict:
    """Return what test.py writes for two classes; `mious`: test seed -> mIoU."""

    def score(miou: float) -> dict:
        return {"miou": miou, "fb_iou": miou + 20, "classes": {"cat": miou - 5, "dog": miou + 5}}

    def cell(values: list[float]) -> dict:
        return {"mean": statistics.fmean(values), "std": statistics.pstdev(values)}

    values, summary = list(mious.values()), {}
    for kind in ("final", "meta", "prior"):
        summary[f"{kind} mIoU"] = cell(values)
        summary[f"{kind} FB-IoU"] = cell([v + 20 for v in values])
        summary[f"  {kind} cat"] = cell([v - 5 for v in values])
        summary[f"  {kind} dog"] = cell([v + 5 for v in values])
    summary["base mIoU"] = cell(values)
    seeds = {
        str(seed): {"final": score(v), "meta": score(v), "prior": score(v), "episodes": 7}
        for seed, v in mious.items()
    }
    config = to_dict(cfg)
    basic = {"checkpoint": "exp/x/best.pth", "iteration": 40, "summary": summary}
    return {**basic, "seeds": seeds, "config": config, **more}


def write_result(folder: Path, words: list[str], mious: dict[int, float], fold: int = 0) -> Path:
    folder.mkdir(parents=True)
    content = result(load_config(ROOT / PASCAL.format(fold), words), mious)
    (folder / "result.json").write_text(json.dumps(content))
    return folder / "result.json"


def write_run(folder: Path, seed: int, *, tested: bool = True) -> Path:
    """Write the folder of a run as train.py and test.py leave it."""
    cfg = load_config(ROOT / PASCAL.format(0), [f"Train.seed={seed}", f"Train.save_path={folder}"])
    folder.mkdir(parents=True)
    save_config(cfg, folder / "config.yaml")
    rng = np.random.default_rng(seed)
    with SummaryWriter(str(folder)) as writer:
        for step in range(1, 41):
            for name in ("loss_g", "main", "distillation", "loss_d", "lr_x1", "lr_x10"):
                writer.add_scalar(f"train/{name}", rng.random(), step)
        for step in (20, 40):
            for name in ("miou_final", "miou_meta", "miou_base", "fb_iou"):
                writer.add_scalar(f"val/{name}", 50 + 10 * rng.random(), step)
            costs = {"iterations_per_s": 2.5, "train_s": 8, "peak_memory_gb": 1.25}
            for name, value in {**costs, "validation_s": 60}.items():
                writer.add_scalar(f"cost/{name}", value, step)
    if tested:
        counts = {"hit": 60, "background": 30, "<b>car</b>": 10}
        confusion = {name: {"predicted": counts, "object": counts} for name in ("cat", "dog")}
        extra = {"cost": {"seconds": 75.0, "episodes_per_s": 4.0, "peak_memory_gb": 0.5}}
        extra |= {"environment": {"packages": {"torch": "9.9.9"}, "code": {"commit": "abc123"}}}
        content = result(cfg, {1: 50.0, 2: 52.0}, confusion=confusion, leaks=LEAKS, **extra)
        (folder / "result.json").write_text(json.dumps(content))
        for name in GALLERIES:
            strip = rng.integers(0, 255, (60, 300, 3), dtype=np.uint8)
            (folder / f"{name}.png").write_bytes(encode_strips([strip]))
    return folder
