"""What training and validation have seen of novel classes, against slow literal counts."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from helpers.drawn import write_rectangles
from helpers.pictures import changed, data_config

from util.config import Config, config_from, to_dict
from util.data import leaks as leaks_command
from util.data.base_images import open_base_images
from util.data.dataset import open_episodes
from util.data.image_io import read_label
from util.data.leaks import (
    NOT_PRETRAINED,
    PRETRAINED,
    STAGES,
    Trained,
    find_leaks,
    format_leaks,
    leak_notes,
    leak_table,
    stage_one_leaks,
)
from util.data.lists import FoldList
from util.data.mixed import open_source
from util.data.transform import EvalTransform
from util.folds import fold_of
from util.runtime.cli import main


@pytest.fixture(params=["pascal", "custom", "coco"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Config:
    """A config of drawn data in each layout; of COCO's, two training images are not on disk."""
    if request.param == "pascal":
        return request.getfixturevalue("pictures")
    classes = 7 if request.param == "custom" else 80
    write_rectangles(tmp_path / "data", request.param, classes)
    keys = {"data_set": request.param, "data_root": f"{tmp_path}/data", "min_pixels": 90}
    if request.param == "custom":
        keys["novel"] = ["kind 2", "kind 5"]
    else:
        for name in ("train003", "train011"):
            (tmp_path / f"data/train2014/{name}.jpg").unlink()
    return data_config(**keys, list_dir=f"{tmp_path}/lists", missing="skip", split=0)


def with_keys(cfg: Config, **sections: dict) -> Config:
    tree = to_dict(cfg)
    return config_from({name: tree[name] | sections.get(name, {}) for name in tree}, "a test")


def literal(cfg: Config, subset: str, used: Iterable[str], names: Iterable[str]) -> dict:
    """Read every mask of the subset and count each class in it, one after another."""
    source, used, found = open_source(cfg.Data, subset), set(used), {}
    masks = {i: read_label(source.label_path(i)) for i in source.image_ids()}
    for name in names:
        c = fold_of(cfg.Data).names.index(name) + 1
        found[name] = {"images": 0, "pixels": 0, "left_out": 0}
        for image, mask in masks.items():
            pixels = int((mask == c).sum())
            if pixels and image in used:
                found[name]["images"] += 1
                found[name]["pixels"] += pixels
            elif pixels:
                found[name]["left_out"] += 1
    return found


def list_of_test(cfg: Config) -> FoldList:
    return open_episodes(cfg, "val", 1)[0].sampler.fold


def images_of_training(cfg: Config) -> set[str]:
    """Return the images that stage two may draw, by the rule of docs/protocol.md."""
    source, fold = open_source(cfg.Data, "train"), fold_of(cfg.Data)
    kept = set()
    for image in source.image_ids():
        mask = read_label(source.label_path(image))
        has_novel = np.isin(mask, fold.novel).any()
        large = [c for c in fold.base if (mask == c).sum() >= cfg.Data.min_pixels]
        if large and not (has_novel and cfg.Data.novel_in_training == "drop"):
            kept.add(image)
    return kept


# --- counts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("novel_in_training", ["drop", "background"])
@pytest.mark.parametrize("train_list", ["all", "fold"])
def test_counts_are_those_of_a_literal_count(
    small: Config, train_list: str, novel_in_training: str
) -> None:
    cfg = with_keys(
        small,
        Data={"novel_in_training": novel_in_training},
        Base={"train_list": train_list, "val_images": 25},
        Eval={"val_episodes": 15, "val_seed": 4},
    )
    tested = list_of_test(cfg)
    names = [tested.name(c) for c in sorted(tested.by_class)]
    assert names
    base, _ = open_base_images(cfg, "train", EvalTransform((65, 65)), None)
    episodes, _ = open_episodes(cfg, "train", 1)
    got = find_leaks(tested, cfg.Data, Trained(cfg, len(base)), Trained(cfg, len(episodes)))
    ids = open_source(cfg.Data, "train").image_ids()
    on_disk = open_source(cfg.Data, "train").images_on_disk()
    stage_one = on_disk.intersection(ids if train_list == "all" else images_of_training(cfg))
    assert set(base.images) == stage_one
    stage_two = set(episodes.sampler.fold.images)
    if cfg.Data.data_set != "coco":  # there, some classes have too few images
        assert stage_two == images_of_training(cfg)
    chosen = set()
    validation, _ = open_episodes(cfg, "val", 4)
    for plan in (validation[i].plan for i in range(15)):
        chosen.update((plan.query, *plan.supports))
    used = {
        "stage one": ("train", stage_one),
        "stage two": ("train", stage_two),
        "validation of stage one": ("val", open_source(cfg.Data, "val").image_ids()[:25]),
        "validation of stage two": ("val", chosen),
    }
    assert list(STAGES) == list(used)
    of_test = set(tested.images)
    for stage, (subset, images) in used.items():
        assert got[stage]["classes"] == literal(cfg, subset, images, names), stage
        assert got[stage]["images"] == len(images)
        assert got[stage]["test_images"] == len(of_test.intersection(images))
    seen = {stage: sum(c["images"] for c in got[stage]["classes"].values()) for stage in used}
    keeps = novel_in_training == "background"
    assert (seen["stage one"] > 0) == (train_list == "all" or keeps)
    assert (seen["stage two"] > 0) == keeps
    assert got["stage two"]["objects"] == ("background" if keeps else "left out")
    is_background = train_list == "all" or keeps
    assert got["stage one"]["objects"] == ("background" if is_background else "left out")
    assert got["validation of stage two"]["objects"] == "labeled"
    assert json.loads(json.dumps(got)) == got


def test_stage_one_alone_has_the_same_counts(small: Config) -> None:
    list_of_test(small), open_base_images(small, "train", EvalTransform((65, 65)), None)
    alone = stage_one_leaks(small)
    assert alone.keys() & STAGES.keys() == {"stage one", "validation of stage one"}
    both = find_leaks(list_of_test(small), small.Data, Trained(small), None)
    for name, counts in both["stage one"]["classes"].items():
        assert alone["stage one"]["classes"][name] == counts
    assert "stage two was trained" in both["stage two"]["unknown"]


def test_custom_images_that_are_not_divided_are_seen_by_stage_one_and_tested(
    tmp_path: Path,
) -> None:
    write_rectangles(tmp_path, "custom", 5)
    for name in ("train.txt", "val.txt"):
        (tmp_path / name).unlink()
    cfg = data_config(
        data_set="custom", data_root=str(tmp_path), list_dir=f"{tmp_path}/lists",
        novel=["kind 1"], min_pixels=90,
    )  # fmt: skip
    tested = list_of_test(cfg)
    open_base_images(cfg, "train", EvalTransform((65, 65)), None)
    got = find_leaks(tested, cfg.Data, Trained(cfg), Trained(cfg))
    assert got["stage one"]["images"] == 100 > got["stage one"]["test_images"] > 10
    assert got["stage one"]["test_images"] == len(tested.images)
    assert got["stage two"]["test_images"] == 0
    assert f"100 images, {len(tested.images)} of the test;" in leak_notes(got)[0]


def test_without_validation_no_image_has_chosen_the_checkpoint(pictures: Config) -> None:
    cfg = with_keys(pictures, Base={"evaluate": False}, Train={"evaluate": False})
    got = find_leaks(list_of_test(cfg), cfg.Data, Trained(cfg), Trained(cfg))
    for stage in ("validation of stage one", "validation of stage two"):
        assert got[stage]["images"] == got[stage]["test_images"] == 0


# --- another data set ----------------------------------------------------------------------------


def test_test_on_other_data_counts_classes_of_the_same_name_in_the_data_of_the_training(
    pictures: Config, tmp_path: Path
) -> None:
    write_rectangles(tmp_path, "custom", 4)
    (tmp_path / "classes.txt").write_text("Aero-Plane\nunseen thing\ntrain\nBottle\n")
    known = fold_of(pictures.Data).base_names
    other = data_config(
        data_set="custom", data_root=str(tmp_path), list_dir=f"{tmp_path}/lists", min_pixels=90,
        trained_on="other", known=list(known), overlap="remove",
    )  # fmt: skip
    tested = list_of_test(other)
    open_episodes(pictures, "train", 1)
    got = find_leaks(tested, other.Data, Trained(pictures), Trained(pictures))
    names = {"Aero-Plane": "aeroplane", "Bottle": "bottle"}
    ids = open_source(pictures.Data, "train").image_ids()
    wanted = literal(pictures, "train", ids, names.values())
    classes = got["stage one"]["classes"]
    same = {ours: wanted[theirs] for ours, theirs in names.items()}
    assert classes == same | {"unseen thing": None}
    assert got["stage one"]["test_images"] is None and got["not_tested"] == ["train"]
    notes = leak_notes(got)
    assert "not tested, the model was trained on it: train" in notes
    assert "of the test" not in notes[0]
    assert "unknown, no labels in the data of the training: unseen thing" in notes
    assert [row[0] for row in leak_table(got)] == ["class", "Aero-Plane", "Bottle"]


# --- what is unknown -----------------------------------------------------------------------------


def test_what_is_not_recorded_or_not_on_disk_is_unknown_and_reads_no_mask(
    pictures: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested = list_of_test(pictures)
    monkeypatch.setattr("util.data.tables.build_table", None)
    nothing = find_leaks(tested, pictures.Data, None, None)
    assert all(nothing[stage].keys() == {"unknown"} for stage in STAGES)
    text = format_leaks(nothing)
    assert text.count("unknown: the checkpoint does not say how stage") == 4 and PRETRAINED in text
    for keys, why in (
        ({"data_root": f"{tmp_path}/gone"}, "gone: no such folder"),
        ({"list_dir": f"{tmp_path}/gone"}, "gone/train.json: no table of the masks"),
    ):
        there = Trained(changed(pictures, **keys))
        got = find_leaks(tested, pictures.Data, there, there)
        assert why in got["stage one"]["unknown"] and not (tmp_path / "gone").exists()


def test_numbers_of_a_list_that_has_changed_are_unknown(pictures: Config) -> None:
    tested, count = list_of_test(pictures), len(open_episodes(pictures, "train", 1)[0])
    got = find_leaks(tested, pictures.Data, Trained(pictures, 3), Trained(pictures, count + 1))
    for stage, run in (("stage one", 3), ("stage two", count + 1)):
        assert f"the run had {run}" in got[stage]["unknown"]
    right = find_leaks(tested, pictures.Data, None, Trained(pictures, count))
    assert right["stage two"]["images"] == count


def test_backbone_without_pretraining_has_seen_nothing(pictures: Config) -> None:
    cfg = with_keys(pictures, Method={"pretrained": "none"})
    tested = list_of_test(cfg)
    assert find_leaks(tested, cfg.Data, None, Trained(cfg))["backbone"] == NOT_PRETRAINED
    assert find_leaks(tested, cfg.Data, None, None)["backbone"] == PRETRAINED


# --- text ----------------------------------------------------------------------------------------


def test_text_shows_counts_in_columns() -> None:
    seen, none = ({"images": n, "pixels": 1000 * n, "left_out": 3 - n} for n in (3, 0))
    entry = {"images": 1234, "test_images": 0, "objects": "background"}
    leaks = {
        "backbone": PRETRAINED,
        "not_tested": [],
        "stage one": entry | {"classes": {"cat": seen, "a long name": None, "ox": None}},
        "stage two": entry
        | {"objects": "left out", "classes": {"cat": none, "a long name": seen, "ox": None}},
    }
    assert format_leaks(leaks).splitlines() == [
        "images (pixels) of the novel classes that the run has seen:",
        "class        stage one     stage two",
        "cat          3 (3,000 px)  0, left out 3",
        "a long name  unknown       3 (3,000 px)",
        "stage one: 1,234 images, 0 of the test; novel objects are background",
        "stage two: 1,234 images, 0 of the test; images with a novel object are left out",
        "unknown, no labels in the data of the training: ox",
        PRETRAINED,
    ]


def test_command_prints_the_table_of_a_config(
    pictures: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    config = str(ROOT / "config/demo/demo_split0_lite0.yaml")
    data = f"Data.data_root={pictures.Data.data_root}"
    words = ["leaks", config, data, f"Data.list_dir={tmp_path}/lists"]
    monkeypatch.setattr("sys.argv", words)
    main(leaks_command._main)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:3] == ["class", "stage", "one"] and lines[2].startswith("aeroplane")
    assert lines[-1] == PRETRAINED
    monkeypatch.setattr("sys.argv", [*words, "Data.trained_on=coco"])
    with pytest.raises(SystemExit) as stop:
        main(leaks_command._main)
    assert stop.value.code == 2 and "name the config of the training" in capsys.readouterr().err
