"""Training and test on drawn FSS-1000 of more than 255 classes, and on PASCAL-Part's layers."""

import json
from pathlib import Path

import pytest
import torch
from helpers import ROOT, entries
from helpers.downloads import run
from helpers.other_sets import Drawn, make_fss1000, make_pascal_part

import test as test_entry
import train as train_entry
import train_base as base_entry
from model import Prediction
from util.checkpoint.file import read_checkpoint
from util.data.source import Source
from util.evaluate.evaluator import QueryScorer
from util.evaluate.order import Task
from util.evaluate.tally import Row, Tally
from util.folds import IGNORED

SMALL = (
    "Method.backbone=timm/tf_efficientnet_lite0", "Method.pretrained=package", "Data.size=33",
    "Data.augment=false", "Data.workers=0", "Base.size=33", "Base.augment=false",
    "Base.freeze_backbone=true", "Base.max_iterations=2", "Base.batch_size=4",
    "Train.max_iterations=2", "Train.batch_size=2", "Train.stop_interval=0",
    "Eval.val_episodes=3", "Eval.seeds=[1]", "Eval.ori_resize=true",
)  # fmt: skip


def words_of(config: str, folder: Path, *more: str) -> list[str]:
    return [
        "--config", str(ROOT / "config" / config), "--gpus", "0", *SMALL,
        f"Data.data_root={folder}/data", f"Data.list_dir={folder}/lists",
        f"Method.pre_weight={folder}/base.pth", f"Train.save_path={folder}/run", *more,
    ]  # fmt: skip


def call(entry, config: str, folder: Path, *more: str) -> None:
    assert entries.call(entry, *words_of(config, folder, *more), config=False) == 0


@pytest.mark.parametrize("store", [False, True])
def test_fss1000_of_more_than_255_classes_is_trained_and_tested(
    tmp_path: Path, store: bool
) -> None:
    make_fss1000(tmp_path / "in", images=2, trn=290, val=6, test=10)
    assert run("fss1000", "--from", tmp_path / "in", "--out", tmp_path / "data").status == 0
    train, tested = (f"fss1000/fss1000_split{i}_resnet50.yaml" for i in (1, 0))
    call(base_entry.train_base, train, tmp_path)
    call(train_entry.train, train, tmp_path, f"Train.feature_store={store}")
    weight = f"Eval.weight={tmp_path}/run/best.pth"
    call(test_entry.test, tested, tmp_path, weight, "Eval.episodes=20")
    weights = read_checkpoint(tmp_path / "base.pth")["state_dict"]
    head = next(w for name, w in weights.items() if name.endswith("cls.4.weight"))
    assert len(head) == 1 + 290 + 1  # background, 290 classes, and the number 255, which is none
    [path] = (tmp_path / "run").rglob("result.json")
    result = json.loads(path.read_text())
    config = result["config"]["Data"]
    assert len(config["classes"]) == 307 and config["classes"][254] == IGNORED
    assert len(config["base"]) == 290 and config["novel"] == [
        f"thing {i:04d}" for i in range(296, 306)
    ]
    text = json.dumps(result)
    assert all(name in text for name in config["novel"]) and f'"{IGNORED}": ' not in text


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Drawn]:
    folder = tmp_path_factory.mktemp("parts")
    drawn = make_pascal_part(folder / "in", images=2)
    assert run("pascal_part", "--from", folder / "in", "--out", folder / "data").status == 0
    return folder, drawn


def test_overlapping_parts_are_scored_with_all_their_pixels(
    parts: tuple[Path, Drawn], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, drawn = parts
    config = "pascal_part/pascal_part_split0_resnet50.yaml"
    call(base_entry.train_base, config, folder, "Base.val_images=2")
    call(train_entry.train, config, folder, "Train.feature_store=true")
    seen: list[tuple[str, int, torch.Tensor]] = []
    score = QueryScorer.score

    def recorded(
        self: QueryScorer, prediction: Prediction, row: int, task: Task, tally: Tally
    ) -> tuple[torch.Tensor, Row]:
        target, record = score(self, prediction, row, task, tally)
        if not task.control:
            seen.append((task.plan.query, task.plan.class_id, target))
        return target, record

    monkeypatch.setattr(QueryScorer, "score", recorded)
    call(test_entry.test, config, folder, "Eval.episodes=25")
    names = (folder / "data/classes.txt").read_text().splitlines()
    assert len(seen) == 25 and {c for _, c, _ in seen} == {1, 2, 3, 4, 5}  # in turn, five each
    source = Source(folder / "data", "custom", "val", len(names))
    hidden = 0
    for query, class_id, target in seen:
        mask = drawn[query][names[class_id - 1]]
        assert torch.equal(target == 1, torch.from_numpy(mask))
        hidden += int((target == 1).sum()) > (source.load(query)[1] == class_id).sum()
    assert hidden  # the first layer alone would not have done
