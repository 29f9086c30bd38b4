"""A run of both stages, its resume and its test on several data sets at once."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import entries
from helpers.drawn import demo_as_own_data
from helpers.runs import same

import test as test_entry
import train as train_entry
import train_base as base_entry
from util.checkpoint.file import read_checkpoint
from util.evaluate.by_set import scores_by_set
from util.folds import CLASSES
from util.predict.predictor import Predictor


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of the demo: two sets of drawn shapes, one of which calls sofas couches."""
    root = tmp_path_factory.mktemp("mix")
    names = {
        "one": CLASSES["pascal"],
        "two": [n.replace("sofa", "Couch") for n in CLASSES["pascal"]],
    }
    folders = []
    for seed, (name, classes) in enumerate(names.items()):
        own = demo_as_own_data(root / name / "made", classes, images=60, seed=seed)
        folder = own.rename(root / name / name)
        listed = sorted(path.stem for path in (folder / "masks").iterdir())
        for subset, ids in (("train", listed[::2]), ("val", listed[1::2])):
            (folder / f"{subset}.txt").write_text("\n".join(ids))
        folders.append(f"custom:{folder}")
    return [
        "Data.data_set=mix", f"Data.mix=[{','.join(folders)}]", f"Data.list_dir={root}/lists",
        f"Method.pre_weight={root}/base.pth", "Method.base_map=unshown", "Data.missing=skip",
        "Data.size=33", "Base.size=33", "Base.batch_size=8", "Base.max_iterations=2",
        "Base.val_images=4", "Data.augment=false", "Train.feature_store=true",
        "Data.absent=0.3", "Data.same_query=2", "Data.mix_weights=[1,2]", "Data.min_pixels=400",
        "Train.dice_weight=0.5", "Train.batch_size=4", "Train.max_iterations=6",
        "Train.evaluate=false", "Eval.val_episodes=2", "Eval.absent=0", "Data.workers=0",
    ]  # fmt: skip


def test_both_stages_train_resume_exactly_and_are_tested_with_scores_of_each_set(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert entries.call(base_entry.train_base, *words) == 0
    folder = f"Train.save_path={tmp_path}/run"
    assert entries.call(train_entry.train, *words, folder, "Train.save_minutes=1e-9") == 0
    half = tmp_path / "run/last.previous.pth"
    assert 0 < read_checkpoint(half)["iteration"] < 6
    other = f"Train.save_path={tmp_path}/other", f"Train.resume={half}"
    assert entries.call(train_entry.train, *words, *other) == 0
    same(tmp_path / "other/last.pth", tmp_path / "run/last.pth")
    capsys.readouterr()

    more = folder, "Eval.episodes=12", "Eval.seeds=[1]", "Eval.weight=last"
    assert entries.call(test_entry.test, *words, *more) == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert set(result["sets"]) == {"one", "two"}
    assert sum(each["episodes"] for each in result["sets"].values()) == 12
    assert "couch" not in str(result["sets"]) and "sofa" in str(result["seeds"]["1"])
    assert "one: mIoU" in (output := capsys.readouterr().out) and "two: mIoU" in output
    assert "no class is novel: all are trained on" in output
    predictor = Predictor.from_checkpoint(tmp_path / "run/last.pth")
    assert predictor.model.base_map == "unshown"


def test_scores_of_a_set_are_those_of_its_episodes() -> None:
    def row(query: str, name: str, final: tuple, meta: tuple, control: str = "") -> dict:
        areas = {"final_i": final[0], "final_u": final[1], "meta_i": meta[0], "meta_u": meta[1]}
        return {"query": query, "class_name": name, "control": control, **areas}

    rows = [
        row("a/1", "cat", (1, 4), (0, 4)), row("a/2", "cat", (3, 4), (2, 4)),
        row("a/1", "dog", (5, 5), (1, 5)), row("b/1", "cat", (0, 9), (0, 0)),
        row("b/1", "cat", (9, 9), (9, 9), "absent"),
    ]  # fmt: skip
    found = scores_by_set(rows)
    assert found["a"]["episodes"] == 3 and found["b"]["episodes"] == 1
    assert found["a"]["miou"] == pytest.approx(100 * np.mean([4 / 8, 1]))
    assert found["a"]["meta_miou"] == pytest.approx(100 * np.mean([2 / 8, 1 / 5]))
    assert found["b"] == {"episodes": 1, "miou": 0.0, "meta_miou": 0.0}
