"""What a data set was made from has changed since: only what depends on it is made again."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.downloads import (
    a_label,
    make_coco,
    make_voc,
    pack,
    run,
    snapshot,
    write_mask,
    write_mat,
)
from helpers.other_sets import (
    blob,
    bright,
    make_chestx,
    make_deepglobe,
    make_fss1000,
    make_isic,
    make_lvis,
    make_pascal_part,
    run_lengths,
    write,
)
from PIL import Image

MASK = blob(np.random.default_rng(99))
ISIC_MASKS = "ISIC2018_Task1_Training_GroundTruth"


def backdate(path: Path) -> None:
    """Give a file an old time stamp, as a copy or an unpacked archive has."""
    os.utime(path, ns=(10**18, 10**18))


def isic_class(root: Path) -> None:
    path = root / "class_id.csv"
    path.write_text(path.read_text().replace("ISIC_0000004,nevus", "ISIC_0000004,melanoma"))


def part(root: Path) -> None:
    path = sorted(root.rglob("Annotations_Part*/*.json"))[0]
    content = json.loads(path.read_text())
    content["object"][0]["parts"][0]["mask"] = [run_lengths(MASK)]
    path.write_text(json.dumps(content))
    backdate(path)


def older(name: str, array: np.ndarray) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        write(root / name, array)
        backdate(root / name)

    return change


CHANGES = {
    "fss1000": (make_fss1000, older("thing 0001/2.png", bright(MASK)), 1),
    "isic": (make_isic, older(f"{ISIC_MASKS}/ISIC_0000004_segmentation.png", bright(MASK)), 1),
    "isic ": (lambda root, **_: make_isic(root, folders=False), isic_class, 1),
    "deepglobe": (
        make_deepglobe, lambda root: older(
            str(sorted(root.rglob("groundtruth/*.png"))[0].relative_to(root)),
            bright(np.eye(42, dtype=bool)))(root), 1),
    "chestx": (make_chestx, older("masks/CHNCXR_0002_0_mask.png", bright(MASK)), 1),
    "pascal_part": (make_pascal_part, part, 2 * 2),  # both objects of the image, cut out again
}  # fmt: skip
"""Command -> what makes its download, what changes it, and how many files are created for that."""


@pytest.mark.parametrize("name", CHANGES)
def test_mask_is_drawn_anew_if_only_its_own_source_changed(name: str, tmp_path: Path) -> None:
    make, change, count = CHANGES[name]
    make(tmp_path / "in", **({"trn": 3, "val": 2, "test": 2} if name == "fss1000" else {}))

    def prepare(out: str) -> SimpleNamespace:
        result = run(name.strip(), "--from", tmp_path / "in", "--out", tmp_path / out)
        assert result.status == 0, result.err
        return result

    prepare("out")
    before = snapshot(tmp_path / "out")
    assert "nothing to do" in prepare("out").out
    change(tmp_path / "in")
    assert f"; {count} files created" in prepare("out").out
    prepare("fresh")
    assert before != snapshot(tmp_path / "out") == snapshot(tmp_path / "fresh")
    assert "nothing to do" in prepare("out").out


def test_masks_of_lvis_are_drawn_anew_if_its_table_changed(tmp_path: Path) -> None:
    make_lvis(tmp_path / "in")
    words = ["lvis", "--from", tmp_path / "in", "--out"]
    assert run(*words, tmp_path / "out").status == 0
    before, path = snapshot(tmp_path / "out"), tmp_path / "in/lvis_train.pkl"
    table = pickle.loads(path.read_bytes())
    entry = next(entry for pictures in table.values() for entry in pictures.values())
    entry["annotations"][0]["segmentation"] = run_lengths(MASK)
    path.write_bytes(pickle.dumps(table))
    assert run(*words, tmp_path / "out").status == run(*words, tmp_path / "fresh").status == 0
    assert before != snapshot(tmp_path / "out") == snapshot(tmp_path / "fresh")


@pytest.mark.parametrize("packed", [False, True])
def test_masks_of_voc_and_sbd_follow_their_downloads(packed: bool, tmp_path: Path) -> None:
    voc, sbd = make_voc(tmp_path / "in")

    def prepare(out: str) -> str:
        given = [voc, sbd]
        if packed:
            given = [tmp_path / "voc.tar", tmp_path / "sbd.tgz"]
            pack(given[0], voc, "VOCdevkit/VOC2012")
            pack(given[1], sbd, "benchmark_RELEASE")
        words = ["--voc", given[0], "--sbd", given[1], "--out", tmp_path / out]
        result = run("voc", *words)
        assert result.status == 0, result.err
        return result.out

    prepare("out")
    before = snapshot(tmp_path / "out")
    for path in (voc / "SegmentationClass/2008_000002.png", sbd / "dataset/cls/2008_000005.mat"):
        write = write_mask if path.suffix == ".png" else write_mat
        write(path, a_label(777))
        backdate(path)
    told = prepare("out")
    assert packed or "; 2 files created" in told
    prepare("fresh")
    after = snapshot(tmp_path / "out")
    assert after == snapshot(tmp_path / "fresh")
    changed = {Path(name).stem for name, content in after.items() if before[name] != content}
    assert changed == {"2008_000002", "2008_000005"}


def test_masks_of_coco_follow_its_labels_and_those_that_are_left_are_named(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco")
    words = ["coco", "--coco", coco, "--out"]
    assert run(*words, tmp_path / "out").status == 0
    path = coco / "annotations/instances_val2014.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segmentation"] = [[0, 0, 5, 0, 5, 5, 0, 5]]
    gone = content["annotations"].pop()["image_id"]
    path.write_text(json.dumps(content))
    backdate(path)
    result = run(*words, tmp_path / "out")
    mask = f"masks/val2014/COCO_val2014_{gone:012d}.png"
    assert result.status == 0 and f"keeps 1 files that this run does not make, such as {mask}" in (
        result.err
    )
    assert run(*words, tmp_path / "fresh").status == 0
    after = snapshot(tmp_path / "out")
    assert after.pop(f"MSCOCO2014/{mask}")
    assert after == snapshot(tmp_path / "fresh")


def test_pictures_of_an_archive_follow_it(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco")
    for name in ("train2014", "val2014"):
        pack(coco / f"{name}.zip", coco / name, name)
    for picture in (coco / "val2014").iterdir():
        Image.fromarray(np.full((10, 12, 3), 9, np.uint8)).save(picture)
    shutil.move(coco / "val2014", tmp_path / "later")
    shutil.rmtree(coco / "train2014")
    words = ["coco", "--coco", coco, "--out"]
    assert run(*words, tmp_path / "out").status == 0
    pack(coco / "val2014.zip", tmp_path / "later", "val2014")
    assert run(*words, tmp_path / "out").status == run(*words, tmp_path / "fresh").status == 0
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "fresh")


def test_run_that_was_killed_between_its_list_and_the_mask_draws_it_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list then has the later stamp, and the mask is the earlier one."""
    make_chestx(tmp_path / "in")
    words = ["chestx", "--from", tmp_path / "in", "--workers", "1", "--out"]
    assert run(*words, tmp_path / "out").status == 0
    write(tmp_path / "in/masks/CHNCXR_0002_0_mask.png", bright(MASK))

    def kill(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("util.runtime.files.atomic_write", kill)
        assert run(*words, tmp_path / "out").status != 0
    assert "; 1 files created" in run(*words, tmp_path / "out").out
    assert run(*words, tmp_path / "fresh").status == 0
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "fresh")
