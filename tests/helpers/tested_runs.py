"""Folders of tested runs, made from simulated episodes: result.json and the record of episodes."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from helpers import ROOT
from util.config import load_config, to_dict
from util.evaluate.metrics import BinaryTotals, Score
from util.evaluate.records import write_records
from util.report.bootstrap import Episodes

CLASSES = ("diningtable", "dog", "horse", "motorbike", "person")
FIRST_ID = 11  # of fold 2 of PASCAL-5i
KINDS = ("final", "meta")
AREAS = ("i", "u", "bg_i", "bg_u")


def scores_of(episodes: Episodes, pixels: np.ndarray) -> dict[str, dict]:
    """Return test seed -> score, by the counts of test.py; `pixels` is [episodes, 4]."""
    found = {}
    for seed in np.unique(episodes.seed):
        totals = BinaryTotals(len(CLASSES), torch.device("cpu"))
        for row in np.flatnonzero(episodes.seed == seed):
            object_areas, ground = torch.tensor(pixels[row]).long().view(2, 2)
            totals.totals[episodes.class_id[row]] += torch.stack((ground, object_areas))
        score = Score.of(totals.class_iou(), totals.fb_iou(), list(CLASSES))
        found[str(321 + seed)] = asdict(score)
    return found


def rows_of(episodes: Episodes, pixels: np.ndarray, control: str = "") -> list[dict]:
    """Return the rows of a run; `meta` has half of the object's intersection of `final`."""
    counts: dict[int, int] = {}
    rows = []
    meta = pixels.copy()
    meta[:, 0] //= 2
    for query, which, seed, *areas in zip(
        episodes.query, episodes.class_id, episodes.seed, pixels, meta, strict=True
    ):
        number = counts[seed] = counts.get(seed, -1) + 1
        row = {"seed": 321 + int(seed), "number": number, "control": control}
        row |= {"query": f"2008_{query:06}", "class_id": FIRST_ID + int(which)}
        row |= {"class_name": CLASSES[which], "supports": [f"2009_{number % 7:06}"]}
        row |= {"height": 375, "width": 500, "object_pixels": 5000 + int(query), "presence": 0.5}
        for kind, values in zip(KINDS, areas, strict=True):
            row |= {f"{kind}_{a}": int(v) for a, v in zip(AREAS, values, strict=True)}
        rows.append(row)
    return rows


def write_tested_run(
    folder: Path,
    episodes: Episodes,
    pixels: np.ndarray,
    *words: str,
    name: str = "episodes.parquet",
    change: Mapping[str, object] | None = None,
) -> None:
    """Write a run: `pixels` is [episodes, 4], `words` are overrides, `change` is put into row 5."""
    rows = rows_of(episodes, pixels)
    rows[5] |= change or {}
    wrong = [row | {f"final_{area}": 1 for area in AREAS} for row in rows[::10]]
    rows += [row | {"control": "other_class"} for row in wrong]
    cfg = load_config(ROOT / "config/pascal/pascal_split2_resnet50.yaml", list(words))
    seeds = scores_of(episodes, pixels)
    count = len(rows_of(episodes, pixels)) // len(seeds)
    result = {
        "checkpoint": f"{folder}/best.pth",
        "checkpoint_sha256": str(folder),
        "environment": {"lists": {"val": 1234}},
        "config": to_dict(cfg),
        "summary": {},
        "seeds": {s: {"final": score, "episodes": count} for s, score in seeds.items()},
    }
    write_records(folder / name, rows, {"iteration": 7})
    (folder / "result.json").write_text(json.dumps(result))
