"""The published lists, the check of a data set, and custom data sets."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import ROOT
from helpers.pictures import refused
from PIL import Image

from util.config import load_config, with_class_names
from util.data.base_images import open_base_images
from util.data.check import check
from util.data.dataset import open_episodes
from util.data.demo.make import make_demo
from util.data.image_io import read_label
from util.data.lists import EXPECTED, compare_with_published, fold_list, list_name, write_lists
from util.data.source import SUBSETS
from util.data.tables import load_table
from util.data.transform import EvalTransform
from util.folds import Fold, published_fold
from util.runtime.log import configure

PASCAL = "config/pascal/pascal_split0_resnet50.yaml"
CLASSES = ("cup", "red box", "leaf", "ring")


def write_custom_data(folder: Path, images: int = 24) -> Path:
    """A custom data set: two rectangles in every image, JPEG and PNG in turn."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(images):
        label = np.zeros((60, 80), np.uint8)
        label[4:28, 4:40], label[30:58, 20:70] = i % 4 + 1, (i // 4) % 2 + 1
        picture = rng.integers(0, 255, (60, 80, 3), np.uint8) // 4 + 40 * label[..., None]
        cv2.imwrite(str(folder / f"images/photo {i:02d}.{('jpg', 'png')[i % 2]}"), picture)
        Image.fromarray(label).save(folder / f"masks/photo {i:02d}.png")
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return folder


@pytest.fixture
def own(tmp_path: Path) -> Callable:
    """Write a custom data set; return a function that reads its config with more overrides."""
    root = write_custom_data(tmp_path / "my data")
    text = f"Data: {{data_set: custom, data_root: {root}, list_dir: {tmp_path}/lists, size: 65,"
    text += " novel: [leaf, ring], min_pixels: 100}"
    (tmp_path / "mine.yaml").write_text(text)
    return lambda *more: with_class_names(load_config(tmp_path / "mine.yaml", list(more)))


# --- the published lists -------------------------------------------------------------------------


def test_expected_json_has_the_published_lists_of_every_fold() -> None:
    expected = json.loads(EXPECTED.read_text())
    assert {name for name in expected if name.startswith("pascal")} == {
        f"pascal/{subset}_{split}" for subset in SUBSETS for split in range(4)
    }
    counts = [expected[f"coco/{s}_{i}"]["images"] for s in SUBSETS for i in range(4)]
    assert counts == [[21917], [41809], [43045], [44614], [26052], [15305], [13138], [12640]]
    assert [len(expected[f"pascal/{s}_0"]["by_class"]) for s in SUBSETS] == [15, 5]


def test_rebuilt_pascal_lists_are_reported_as_published(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root = tree / "VOCdevkit2012/VOC2012"
    cfg = load_config(PASCAL, [f"Data.data_root={root}", f"Data.list_dir={tmp_path}/pascal"])
    configure()
    assert write_lists(cfg.Data) == []
    assert capsys.readouterr().out.count("as published\n") == 8
    kept = json.loads((tmp_path / "pascal/val_2.json").read_text())
    assert len(kept["images"]) == 592 and len(kept["by_class"]["12"]) == 125


def test_differences_from_the_published_lists_are_named() -> None:
    fold = fold_list({}, published_fold("pascal", 0), "val")
    lines = compare_with_published("pascal/val_0", fold)
    assert lines[0] == "pascal/val_0: 0 images, 364 published" and len(lines) == 6
    assert "class 3 (bird): 0 images," in lines[3]
    many = {f"a{i}": {1: 5000} for i in range(364)}
    lines = compare_with_published(
        "pascal/val_0", fold_list(many, published_fold("pascal", 0), "val")
    )
    assert lines[0] == "pascal/val_0: 364 images as published, but other ones"
    assert compare_with_published("mine/val_0", fold) is None


def test_training_reports_a_list_that_is_not_the_published_one(tmp_path: Path) -> None:
    make_demo(tmp_path / "demo", images=60, seed=1)
    root = tmp_path / "demo/VOCdevkit2012/VOC2012"
    words = [f"Data.data_root={root}", f"Data.list_dir={tmp_path}/pascal"]
    _, report = open_episodes(load_config(PASCAL, words), "train", 1)
    assert "pascal/train_0:" in report[0] and "4208 published" in report[0]


# --- the check -----------------------------------------------------------------------------------


def test_check_finds_no_mistake_in_good_data(own: Callable) -> None:
    for subset in SUBSETS:
        report = check(own().Data, subset)
        assert report.mistakes == [] and len(report.table) == 24
        assert report.on_disk == set(report.fold.images)


def test_check_names_every_mistake_and_exits_with_2(own: Callable, tmp_path: Path) -> None:
    root = tmp_path / "my data"
    (root / "images/photo 00.jpg").unlink()
    (root / "images/photo 01.png").write_bytes(b"\x89PNG and no more")
    (root / "masks/photo 02.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    Image.new("L", (9, 9), 1).save(root / "masks/photo 03.png")
    Image.new("RGB", (80, 60)).save(root / "masks/photo 04.png")
    Image.new("L", (80, 60), 5).save(root / "masks/photo 05.png")
    words = [sys.executable, "-m", "util.data.check", str(tmp_path / "mine.yaml"), "Data.shot=9"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    train = done.stdout.partition("val: ")[0]
    wrong = [line for line in train.splitlines() if "wrong: " in line]
    for name, said in [
        ("photo 00", "no such image"), ("photo 01", "cannot be read as an image"),
        ("photo 02", "cannot be read as a mask"), ("photo 03", "9x9"),
        ("photo 04", "mode RGB"), ("photo 05", "label 5; there are classes 1 to 4"),
        ("class 1 (cup)", "9-shot needs 10"), ("class 2 (red box)", "9-shot needs 10"),
    ]:  # fmt: skip
        assert any(name in line and said in line for line in wrong), (name, said)
    assert len(wrong) == 8
    # Both subsets have the same files, whose six mistakes count once; two classes lack images in
    # each subset.
    every = [line for line in done.stdout.splitlines() if "wrong: " in line]
    assert len(every) == len(set(every)) == 10
    assert done.stderr.splitlines()[-1].endswith(": 10 mistakes; correct what is listed above")


def test_check_accepts_absent_images_that_may_be_skipped(own: Callable) -> None:
    data = own().Data
    (Path(data.data_root) / "images/photo 00.jpg").unlink()
    assert "no such image" in check(data, "train").mistakes[0]
    report = check(own("Data.missing=skip").Data, "train")
    assert report.mistakes == [] and "photo 00" not in report.on_disk


# --- custom data sets ----------------------------------------------------------------------------


def test_custom_data_gives_episodes_of_base_and_novel_classes(own: Callable) -> None:
    cfg = own()
    assert cfg.num_base_classes == 2 and cfg.Data.classes == CLASSES
    for subset, wanted in (("train", {1, 2}), ("val", {3, 4})):
        episodes, _ = open_episodes(cfg, subset, 1)
        assert {episodes[i].plan.class_id for i in range(30)} == wanted
        fold = episodes.sampler.fold
        held = [set(np.unique(read_label(episodes.source.label_path(i)))) for i in fold.images]
        assert all(bool(has & {3, 4}) == (subset == "val") for has in held)
    assert open_base_images(cfg, "val", EvalTransform((65, 65)), None)[0][0][1].max() in (1, 2)


def test_lists_of_custom_data_are_reported_as_unpublished(
    own: Callable, capsys: pytest.CaptureFixture
) -> None:
    configure()
    data = own("Data.split=5").Data
    assert write_lists(data) == [] and list_name(data, "val") == "custom/val_5"
    assert capsys.readouterr().out.count("no published list") == 2
    kept = json.loads((Path(data.list_dir) / "val_5.json").read_text())
    assert list(kept["by_class"]) == ["3", "4"] and kept["images"]


def test_custom_data_never_replaces_the_table_of_another_data_set(
    own: Callable, tmp_path: Path
) -> None:
    table = tmp_path / "pascal/train.json"
    table.parent.mkdir()
    table.write_text(json.dumps({"data_set": "pascal", "crc32": 1, "images": {"a": {"1": 5000}}}))
    before = table.read_bytes()
    refused([str(table), "set Data.list_dir"], open_episodes, own(f"Data.list_dir={table.parent}"),
            "train", 1)  # fmt: skip
    assert table.read_bytes() == before


def test_train_txt_and_val_txt_split_custom_data(own: Callable) -> None:
    data = own().Data
    root = Path(data.data_root)
    (root / "train.txt").write_text("photo 05\nphoto 00\nphoto 04\n")
    episodes, _ = open_episodes(own("Data.missing=skip"), "train", 1)
    assert episodes.sampler.fold.images == ["photo 05", "photo 00", "photo 04"]
    (root / "val.txt").write_text("photo 02\nphoto 99\n")
    refused(["val.txt", "photo 99", "no mask"], open_episodes, own(), "val", 1)


def test_changed_mask_is_read_again(own: Callable) -> None:
    data = own().Data
    fold = Fold(CLASSES, (3, 4))
    episodes, _ = open_episodes(own(), "train", 1)
    before = fold_list(load_table(episodes.source, data.list_dir), fold, "train", 100)
    Image.new("L", (80, 60), 4).save(episodes.source.label_path(before.images[0]))
    after = fold_list(load_table(episodes.source, data.list_dir), fold, "train", 100)
    assert after.images == before.images[1:]


@pytest.mark.parametrize(
    "override, words",
    [
        ("Data.novel=[]", ["Data.novel", "holds out"]),
        ("Data.novel=[tree]", ["'tree'", "cup, red box"]),
        ("Data.novel=[cup,red box,leaf,ring]", ["no class to train on"]),
        ("Data.novel=cup", ["Data.novel wants a list"]),
        ("Data.data_root=nowhere", ["nowhere/classes.txt", "class names"]),
    ],
)
def test_wrong_novel_classes_are_refused(own: Callable, override: str, words: list[str]) -> None:
    refused(words, own, override)


def test_wrong_custom_data_is_refused(own: Callable) -> None:
    root = Path(own().Data.data_root)
    (root / "images/photo 00.png").write_bytes((root / "images/photo 01.png").read_bytes())
    refused(["photo 00.png", "same name"], open_episodes, own(), "train", 1)
    (root / "classes.txt").write_text("cup\ncup\n")
    refused(["classes.txt", "'cup' twice"], own)
    (root / "classes.txt").write_text("\n")
    refused(["classes.txt", "names no class"], own)
    refused(["Data.classes", "no effect"], load_config, PASCAL, ["Data.classes=[a,b]"])
    refused(["Data.split wants at most 3"], load_config, PASCAL, ["Data.split=4"])
