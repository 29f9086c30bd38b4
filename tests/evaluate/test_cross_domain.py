"""Trained on COCO-20i, tested on the PASCAL classes that it never saw."""

import json
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from helpers.pictures import refused

import test as test_entry
import train as train_entry
import train_base as base_entry
from util.checkpoint.file import read_checkpoint
from util.checkpoint.origin import require_unseen
from util.class_names import COCO_NAMES
from util.config import config_from, load_config
from util.data.dataset import open_episodes
from util.data.lists import list_name, write_lists
from util.data.prepare import prepare_coco
from util.folds import CLASSES, coco_to_pascal, published_fold
from util.runtime.cli import main
from util.runtime.log import configure

FOLD_1 = ROOT / "config/coco2pascal/coco2pascal_split1_resnet50.yaml"
# Boudiaf et al., CVPR 2021: the classes of PASCAL that are tested, per fold of COCO-20i.
PUBLISHED = (
    "aeroplane boat chair diningtable dog person",
    "bicycle bus horse sofa",
    "bird car pottedplant sheep train tvmonitor",
    "bottle cat cow motorbike",
)
SMALL = (
    "Method.backbone=timm/tf_efficientnet_lite0", "Method.pretrained=package", "Data.size=65",
    "Data.missing=skip", "Data.augment=false", "Data.workers=0", "Base.size=65",
    "Base.augment=false", "Base.freeze_backbone=true", "Base.max_iterations=1",
    "Base.val_images=2", "Train.max_iterations=2", "Eval.val_episodes=2", "Eval.episodes=4",
    "Eval.seeds=[1]",
)  # fmt: skip


def names(split: int) -> list[str]:
    fold = coco_to_pascal(split)
    return [fold.names[c - 1] for c in fold.novel]


@pytest.fixture(scope="module")
def voc(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for the real part of VOC; its masks are read once."""
    lists = tmp_path_factory.mktemp("lists")
    return [f"Data.data_root={tree}/VOCdevkit2012/VOC2012", f"Data.list_dir={lists}"]


# --- classes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", range(4))
def test_tested_classes_are_the_published_ones(split: int) -> None:
    assert names(split) == PUBLISHED[split].split()


def test_every_pascal_class_has_a_coco_name_and_is_tested_in_one_fold() -> None:
    counterparts = [COCO_NAMES.get(name, name) for name in CLASSES["pascal"]]
    assert len(set(counterparts)) == 20 and set(counterparts) < set(CLASSES["coco"])
    assert set(COCO_NAMES) < set(CLASSES["pascal"])
    assert sorted(sum((names(split) for split in range(4)), [])) == sorted(CLASSES["pascal"])


@pytest.mark.parametrize("split", range(4))
def test_base_labels_are_numbered_as_in_the_coco_fold(split: int) -> None:
    fold, learned = coco_to_pascal(split), published_fold("coco", split)
    table = fold.base_table()
    assert table[255] == 255 and table[0] == 0 and not table[21:255].any()
    for c, name in enumerate(CLASSES["pascal"], 1):
        of_coco = CLASSES["coco"].index(COCO_NAMES.get(name, name)) + 1
        assert table[c] == learned.base_table()[of_coco]
        assert (table[c] == 0) == (c in fold.novel)


def test_each_fold_has_a_config_for_the_model_of_its_coco_config() -> None:
    for split in range(4):
        for shots in ("", "_5shot"):
            name = f"split{split}{shots}_resnet50"
            ours = load_config(ROOT / f"config/coco2pascal/coco2pascal_{name}.yaml")
            theirs = load_config(ROOT / f"config/coco/coco_{name}.yaml")
            assert ours.Method == theirs.Method and ours.num_base_classes == 60
            assert (ours.Data.size, ours.Data.shot) == (theirs.Data.size, theirs.Data.shot)
            assert ours.Eval.weight == f"{theirs.Train.save_path}/best.pth"
            assert ours.Data.split == split and ours.Eval.episodes == 1000


# --- refusals ------------------------------------------------------------------------------------


def test_cross_domain_config_refuses_to_train(voc: list[str]) -> None:
    cfg = load_config(FOLD_1, voc)
    refused(["Data.trained_on coco", "only tests", "config/coco/"], open_episodes, cfg, "train", 1)
    wrong = ["Data.trained_on=coco", "Data.data_set=coco"]
    refused(["Data.trained_on", "pascal"], load_config, FOLD_1, wrong)
    unknown = ["Data.trained_on=ade"]
    refused(["Data.trained_on wants '', coco or other"], load_config, FOLD_1, unknown)


def test_checkpoint_trained_on_a_tested_class_is_refused() -> None:
    def state(path: str) -> dict:
        data = vars(load_config(ROOT / path).Data)
        return {"config": {"Data": {**data, "of_a_later_version": 1}}}

    right, wrong = (state(f"config/coco/coco_split{split}_resnet50.yaml") for split in (1, 2))
    cfg = load_config(FOLD_1)
    require_unseen(right, Path("best.pth"), cfg)
    require_unseen({"model": {}}, Path("published.pth"), cfg)
    told = ["best.pth", "trained on bicycle, bus, horse, sofa,", "give the config"]
    refused(told, require_unseen, wrong, Path("best.pth"), cfg)
    pascal = ROOT / "config/pascal/pascal_split1_resnet50.yaml"
    told = ["trained on bus, car, cat, chair, cow,"]
    fold_0 = state("config/pascal/pascal_split0_resnet50.yaml")
    refused(told, require_unseen, fold_0, Path("best.pth"), load_config(pascal))


@pytest.mark.parametrize("odd", [3, None, ["Data"], {"Data": 3}])
def test_checkpoint_with_an_unusable_config_is_refused(odd: object) -> None:
    cfg = load_config(FOLD_1)
    refused(["best.pth: its config"], require_unseen, {"config": odd}, Path("best.pth"), cfg)
    refused(["best.pth: its config"], config_from, odd, "best.pth")


# --- lists and episodes --------------------------------------------------------------------------


def test_lists_hold_only_the_tested_classes(voc: list[str], capsys: pytest.CaptureFixture) -> None:
    data = load_config(FOLD_1, voc).Data
    folder = Path(data.list_dir)
    configure()
    assert write_lists(data) == [] and list_name(data, "val").endswith("/val_1_coco")
    assert capsys.readouterr().out.count("no published list") == 8  # folds by both conventions
    counts = []
    for split in range(4):
        kept = json.loads((folder / f"val_{split}_coco.json").read_text())
        assert list(map(int, kept["by_class"])) == list(coco_to_pascal(split).novel)
        counts.append(len(kept["images"]))
    assert counts == [685, 299, 447, 328]
    assert not list(folder.glob("train*"))


def test_predicted_classes_that_pascal_lacks_count_as_background(voc: list[str]) -> None:
    episodes, _ = open_episodes(load_config(FOLD_1, [*voc, "Data.missing=skip"]), "val", 1)
    base = [CLASSES["coco"][c - 1] for c in published_fold("coco", 1).base]
    got = episodes.keep_annotated(torch.arange(61))
    kept = [base[n - 1] for n in got.tolist() if n]
    assert kept == [name for name in base if name in map(_coco, CLASSES["pascal"])]
    assert len(kept) == 16 and torch.equal(got[got > 0], got.nonzero().flatten())


def _coco(name: str) -> str:
    return COCO_NAMES.get(name, name)


def test_model_trained_on_real_coco_images_is_tested_on_real_pascal_images(
    tree: Path, voc: list[str], tmp_path: Path
) -> None:
    prepare_coco(tree / "MSCOCO2014", tmp_path, copy=False, workers=1)
    run, base = tmp_path / "run", tmp_path / "base.pth"
    coco = [f"Data.data_root={tmp_path}/MSCOCO2014", f"Data.list_dir={tmp_path}/coco"]
    coco += [f"Method.pre_weight={base}", f"Train.save_path={run}", "Train.batch_size=2"]
    for entry in (base_entry.train_base, train_entry.train):
        _call(entry, ROOT / "config/coco/coco_split1_resnet50.yaml", *coco)
    kept = read_checkpoint(run / "best.pth")["config"]["Data"]
    assert (kept["data_set"], kept["split"], kept["trained_on"]) == ("coco", 1, "")
    words = [f"Eval.weight={run}/best.pth", f"Train.save_path={tmp_path}/tested"]
    _call(test_entry.test, FOLD_1, *voc, *words)
    result = json.loads((tmp_path / "tested/result.json").read_text())
    tested = result["seeds"]["1"]
    assert tested["episodes"] == 4
    # The classes that this fold of COCO never saw; the part of VOC may be too small for one.
    classes = set(tested["final"]["classes"])
    assert {"bus", "horse", "sofa"} <= classes <= {"bicycle", "bus", "horse", "sofa"}
    assert result["config"]["Data"]["trained_on"] == "coco"


def _call(entry, config: Path, *more: str) -> None:
    words = ["", "--config", str(config), "--gpus", "0", *SMALL, *more]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        main(entry)
