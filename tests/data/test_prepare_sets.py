"""Other data sets of the field, prepared from drawn downloads in the layouts of their papers."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.downloads import refused, run, snapshot, times
from helpers.other_sets import (
    DEEPGLOBE,
    Drawn,
    make_chestx,
    make_deepglobe,
    make_fss1000,
    make_isic,
    make_lvis,
    make_pascal_part,
    write,
)
from helpers.pictures import data_config

from util.data.image_io import read_image
from util.data.lists import fold_list
from util.data.source import Source
from util.data.tables import build_table
from util.folds import IGNORED, Fold, fold_of, read_classes

EMPTY = np.zeros((40, 48), np.uint8)


def same_as_drawn(out: Path, drawn: Drawn, subset: str = "val") -> None:
    """Assert that each class of each image has the pixels that were drawn, and their counts."""
    names = read_classes(out)
    ids = {name: i for i, name in enumerate(names, 1)}
    source = Source(out, "custom", subset, len(names))
    table = build_table(source, source.image_ids())
    assert table
    for image_id, pixels in table.items():
        wanted = drawn[image_id]
        assert pixels == {ids[n]: int(m.sum()) for n, m in wanted.items() if m.any()}
        for name, mask in wanted.items():
            image, label = source.load(image_id, ids[name])
            assert image.shape[:2] == label.shape == mask.shape
            assert np.array_equal(label == ids[name], mask), (image_id, name)


@pytest.fixture(scope="module")
def fss(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Drawn]:
    root = tmp_path_factory.mktemp("FSS-1000")
    return root, make_fss1000(root, images=3, trn=4, val=2, test=3)


def test_fss1000_keeps_masks_splits_and_order_of_hsnet(
    fss: tuple[Path, Drawn], tmp_path: Path
) -> None:
    root, drawn = fss
    result = run("fss1000", "--from", root, "--out", tmp_path)
    assert result.status == 0 and "27 images of 9 classes; 60 files created" in result.out
    assert "found 4 classes in trn.txt, 520 were published" in result.err
    assert "found 27 images, 10000 were published" in result.err
    for subset in ("train", "val"):
        same_as_drawn(tmp_path, drawn, subset)
    names = [f"thing {i:04d}" for i in range(9)]
    # HSNet numbers the sorted classes of training, then of validation, then of test.
    assert list(read_classes(tmp_path)) == names
    for split, novel in ((0, names[6:]), (1, names[4:6])):
        fold = fold_of(data_config(
            data_set="custom", data_root=str(tmp_path), split=split, novel=(), classes=()
        ).Data)  # fmt: skip
        assert [fold.names[c - 1] for c in fold.novel] == novel
        assert [fold.names[c - 1] for c in fold.base] == names[:4]
    source = Source(tmp_path, "custom", "val", 9)
    fold = Fold(tuple(names), (7, 8, 9), unused=(5, 6))
    listed = fold_list(build_table(source, source.image_ids()), fold, "val", 1)
    assert listed.images == [f"{name}_{i}" for name in names[6:] for i in (1, 2, 3)]
    assert all(path.is_symlink() for path in (tmp_path / "images").iterdir())
    before = times(tmp_path)
    assert "nothing to do" in run("fss1000", "--from", root, "--out", tmp_path).out
    assert times(tmp_path) == before


def test_fss1000_of_300_classes_has_ids_beyond_255_and_none_is_255(tmp_path: Path) -> None:
    drawn = make_fss1000(tmp_path / "in", images=2, trn=280, val=10, test=10)
    assert run("fss1000", "--from", tmp_path / "in", "--out", tmp_path / "out").status == 0
    names = read_classes(tmp_path / "out")
    assert len(names) == 301 and names[254] == IGNORED
    assert (names[253], names[255]) == ("thing 0253", "thing 0254")
    for subset in ("train", "val"):
        same_as_drawn(tmp_path / "out", drawn, subset)


def test_isic_takes_its_classes_from_folders_or_from_the_table(tmp_path: Path) -> None:
    results = []
    for folders in (True, False):
        root, out = tmp_path / f"in{folders}", tmp_path / f"out{folders}"
        drawn = make_isic(root, folders=folders)
        write(root / "ISIC2018_Task1_Training_GroundTruth/ISIC_9_segmentation.png", EMPTY)
        result = run("isic", "--from", root, "--out", out)
        assert result.status == 0 and "left out 1 masks without an image" in result.err
        same_as_drawn(out, drawn)
        results.append({name: b for name, b in snapshot(out).items() if name.startswith("masks")})
    assert results[0] == results[1] and len(results[0]) == 9
    assert (out / "novel_0.txt").read_text() == (out / "classes.txt").read_text()


def test_deepglobe_joins_the_class_folders_of_a_tile(tmp_path: Path) -> None:
    drawn = make_deepglobe(tmp_path / "in")
    write(tmp_path / "in/2/test/groundtruth/99_sat_00.png", EMPTY)
    result = run("deepglobe", "--from", tmp_path / "in", "--out", tmp_path / "out", "--copy")
    assert result.status == 0 and "8 images of 6 classes" in result.out
    assert "left out 1 masks without a tile in origin, such as 99_sat_00" in result.err
    assert read_classes(tmp_path / "out") == DEEPGLOBE
    same_as_drawn(tmp_path / "out", drawn)


def test_chest_xray_leaves_out_what_has_no_mask_and_says_how_much(tmp_path: Path) -> None:
    drawn = make_chestx(tmp_path / "in")
    write(tmp_path / "in/CXR_png/MCUCXR_0001_0.png", EMPTY)
    write(tmp_path / "in/masks/MCUCXR_0001_0.png", EMPTY)
    result = run("chestx", "--from", tmp_path / "in", "--out", tmp_path / "out")
    assert result.status == 0 and "4 images of 1 classes" in result.out
    assert "left out 1 masks whose name does not end in _mask.png" in result.err
    assert "left out 1 images without such a mask" in result.err
    same_as_drawn(tmp_path / "out", drawn)


def test_lvis_has_ten_folds_in_the_order_of_the_file_and_complete_classes(tmp_path: Path) -> None:
    drawn = make_lvis(tmp_path / "in")
    result = run("lvis", "--from", tmp_path / "in", "--out", tmp_path / "out")
    assert result.status == 0, result.err
    assert "left out 3 categories that no fold of ten holds" in result.err
    assert "left out 1 categories with one picture in lvis_val.pkl from the folds" in result.err
    assert "found 2 classes in a fold, 92 were published" in result.err
    for subset in ("train", "val"):
        same_as_drawn(tmp_path / "out", drawn, subset)
    table = pickle.loads((tmp_path / "in/lvis_val.pkl").read_bytes())
    tested = [f"category_{i}" for i, pictures in table.items() if len(pictures) > 1]
    for i in range(10):
        novel = (tmp_path / f"out/novel_{i}.txt").read_text().split()
        assert novel == [tested[i], tested[i + 10]]


def test_pascal_part_cuts_out_objects_and_keeps_overlapping_parts_complete(tmp_path: Path) -> None:
    drawn, out = make_pascal_part(tmp_path / "in"), tmp_path / "out"
    result = run("pascal_part", "--from", tmp_path / "in", "--out", out)
    assert result.status == 0, result.err
    assert "left out 2 parts that Matcher leaves out, or only one subset has" in result.err
    assert "left out 36 objects without a part of these classes" in result.err
    for subset in ("train", "val"):
        same_as_drawn(out, drawn, subset)
    assert sum(len(read_lines(out / f"{s}.txt")) for s in ("train", "val")) == len(drawn) == 72
    novel = [set(read_lines(out / f"novel_{i}.txt")) for i in range(4)]
    assert novel[3] == {"aeroplane+BODY", "car+WHEELS", "car+WINDOW"}
    assert set.union(*novel) == set(read_classes(out)) and len(read_classes(out)) == 13
    # Some class is covered by another one in the first layer, so that layers were needed.
    source = Source(out, "custom", "val", 13)
    assert any(source.has_layers(i) for i in source.image_ids())
    name = next(iter(drawn))
    whole = read_image(tmp_path / f"in/VOCdevkit/VOC2010/JPEGImages/{name[:-2]}.jpg")
    assert np.array_equal(source.load(f"{name[:-1]}1")[0], whole[2:37, 5:44])


def read_lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


MAKERS: dict[str, Callable[[Path], Drawn]] = {
    "fss1000": lambda root: make_fss1000(root, trn=2, val=2, test=2),
    "isic": lambda root: make_isic(root, folders=False),
    "deepglobe": make_deepglobe,
    "chestx": make_chestx,
    "lvis": make_lvis,
    "pascal_part": lambda root: make_pascal_part(root, images=1),
}


def _remove(pattern: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = sorted(root.glob(pattern))[0]
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def _replace(pattern: str, content: bytes) -> Callable[[Path], None]:
    return lambda root: sorted(root.glob(pattern))[0].write_bytes(content) and None


SMALL = cv2.imencode(".png", np.zeros((3, 4), np.uint8))[1].tobytes()
PART = "VOCdevkit/VOC2010"


class Evil:
    def __reduce__(self) -> tuple:
        return print, ("run",)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("fss1000", _remove("splits/val.txt"), ["val.txt", "HSNet"]),
        ("fss1000", _replace("splits/val.txt", b"thing 0000\n"), ["lists name 'thing 0000' twice"]),
        ("fss1000", _replace("splits/val.txt", b"\n"), ["val.txt", "names no class"]),
        ("fss1000", _replace("splits/val.txt", b"thing 9\n"), ["'thing 9', which has no folder"]),
        ("fss1000", _remove("thing 0003/2.png"), ["thing 0003", "only one of 2.jpg and 2.png"]),
        ("fss1000", _replace("thing 0003/2.png", SMALL), ["48x40 pixels, and its mask 4x3"]),
        ("fss1000", _replace("thing 0003/2.png", b"no"), ["2.png", "cannot be read as an image"]),
        ("fss1000", _replace("thing 0003/2.jpg", b"no"), ["2.jpg", "cannot be read as an image"]),
        ("isic", _remove("class_id.csv"), ["folders 1, 2, 3", "class_id.csv"]),
        ("isic", _replace("class_id.csv", b"ID,Class\nISIC_0000000,wart\n"), ["'wart'"]),
        ("isic", _remove("ISIC2018_Task1_Training_GroundTruth"), ["contains no ISIC 2018"]),
        ("deepglobe", _remove("6"), ["contains no DeepGlobe", "6/test/groundtruth"]),
        ("deepglobe", _remove("*/test/groundtruth/*.png"), ["has no mask", ".png"]),
        ("chestx", _remove("CXR_png/*.png"), ["_mask.png", "CXR_png lacks"]),
        ("chestx", _remove("masks"), ["contains no chest X-rays (CXR_png, masks)"]),
        ("lvis", _remove("coco/val2017/*.jpg"), ["no such picture", "val2017.zip"]),
        ("lvis", _replace("lvis_val.pkl", b"no"), ["lvis_val.pkl", "pickle of plain data"]),
        ("lvis", _replace("lvis_val.pkl", pickle.dumps([1])), ["lvis_val.pkl", "no table"]),
        ("lvis", _replace("lvis_val.pkl", pickle.dumps({1: {}})), ["0 categories of more than"]),
        ("lvis", _replace("lvis_val.pkl", pickle.dumps({1: Evil()})), ["print", "no plain data"]),
        ("lvis", _replace("lvis_val.pkl", pickle.dumps({1: {"../a.jpg": {"annotations": []}}})),
         ["../a.jpg", "outside"]),
        ("lvis", _replace("coco/train2017/*1.jpg", SMALL), ["another size than its annotations"]),
        ("pascal_part", _remove(f"{PART}/all_obj*"), ["contains no PASCAL-Part"]),
        ("pascal_part", _replace(f"{PART}/all_obj*", b"{}"), ["no table", "animals"]),
        ("pascal_part", _remove(f"{PART}/JPEGImages/*"), ["no such picture"]),
        ("pascal_part", _remove(f"{PART}/Ann*/*"), [".json", "no such file"]),
        ("pascal_part", _replace(f"{PART}/Ann*/*", b'{"object": [{}]}'), ["is no annotation"]),
        ("pascal_part", _replace(f"{PART}/Ann*/*", b"{"), ["not a complete JSON"]),
    ],
)  # fmt: skip
def test_wrong_layout_is_one_line_with_a_remedy(
    tmp_path: Path, name: str, change: Callable[[Path], None], words: list[str]
) -> None:
    MAKERS[name](tmp_path / "in")
    change(tmp_path / "in")
    refused(run(name, "--from", tmp_path / "in", "--out", tmp_path / "out"), *words)


@pytest.mark.parametrize("name", MAKERS)
def test_a_missing_or_an_empty_folder_is_refused(tmp_path: Path, name: str) -> None:
    refused(run(name, "--from", tmp_path / "gone", "--out", tmp_path / "out"))
    (tmp_path / "empty").mkdir()
    refused(run(name, "--from", tmp_path / "empty", "--out", tmp_path / "out"))


def test_what_no_list_or_table_names_is_counted(tmp_path: Path) -> None:
    make_fss1000(tmp_path / "fss", trn=2, val=2, test=2)
    write(tmp_path / "fss/another/1.jpg", np.zeros((9, 9), np.uint8))
    result = run("fss1000", "--from", tmp_path / "fss", "--out", tmp_path / "out0")
    assert "left out 1 class folders that no list names, such as another" in result.err
    make_isic(tmp_path / "isic", folders=False)
    table = tmp_path / "isic/class_id.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-2]))
    next((tmp_path / "isic/ISIC2018_Task1_Training_GroundTruth").glob("*0_seg*")).unlink()
    result = run("isic", "--from", tmp_path / "isic", "--out", tmp_path / "out1")
    assert "left out 2 images that class_id.csv does not name" in result.err
    assert "left out 1 images without a mask, such as ISIC_0000000" in result.err
    assert len(list((tmp_path / "out1/masks").iterdir())) == 6
