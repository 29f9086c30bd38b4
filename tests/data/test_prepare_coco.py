"""COCO and base_annotation: the drawing rule of the published masks; all forms of a download."""

import json
import shutil
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.downloads import SQUARE, make_coco, pack, refused, run, snapshot, times
from pycocotools import mask as coco_mask

from util.data.image_io import read_label
from util.data.prepare.coco_json import load_instances
from util.data.prepare.shapes import decode_run_lengths, rasterize
from util.data.source import SUBSETS, Source
from util.folds import published_fold


def prepare(coco: Path, out: Path, *more: object):
    result = run("coco", "--coco", coco, "--out", out, "--workers", "1", *more)
    assert result.status == 0, result
    return result


def test_zips_and_folders_of_real_images_give_the_same_bytes(tree: Path, tmp_path: Path) -> None:
    coco = tree / "MSCOCO2014"
    prepare(coco, tmp_path / "folder", "--copy")
    zips = tmp_path / "zips"
    zips.mkdir()
    pack(zips / "train2014.zip", coco / "train2014", "train2014")
    pack(zips / "annotations_trainval2014.zip", coco / "annotations", "annotations")
    (zips / "val2014").symlink_to(coco / "val2014")  # a mix
    prepare(zips, tmp_path / "zip", "--workers", "2")
    made, wanted = snapshot(tmp_path / "zip"), snapshot(tmp_path / "folder")
    assert made.pop("MSCOCO2014/val2014") == str(zips / "val2014")
    # Only the pictures of val are linked in one case and copied in the other.
    assert made == {name: wanted[name] for name in wanted if "/val2014/" not in name} | {
        name: wanted[name] for name in wanted if "masks/" in name
    }
    assert len(made) == sum("masks/" in n or "/train2014/" in n for n in wanted) > 300


def test_pictures_of_2017_get_the_names_of_2014(tree: Path, tmp_path: Path) -> None:
    coco, here = tree / "MSCOCO2014", tmp_path / "2017"
    (here / "annotations").mkdir(parents=True)
    for path in (coco / "annotations").iterdir():
        (here / "annotations" / path.name).symlink_to(path)
    pictures = sorted([*(coco / "train2014").iterdir(), *(coco / "val2014").iterdir()])
    for number, path in enumerate(pictures):  # in a split that differs from 2014's
        folder = here / f"{SUBSETS[number % 5 == 0]}2017"
        folder.mkdir(exist_ok=True)
        (folder / path.name.rpartition("_")[2]).symlink_to(path)
    prepare(here, tmp_path / "linked")
    prepare(coco, tmp_path / "wanted", "--copy")
    made, wanted = (tmp_path / f"{name}/MSCOCO2014" for name in ("linked", "wanted"))
    assert snapshot(made / "masks") == snapshot(wanted / "masks")
    pack(here / "train2017.zip", here / "train2017", "train2017")
    pack(here / "val2017.zip", here / "val2017", "val2017")
    for subset in SUBSETS:
        shutil.rmtree(here / f"{subset}2017")
    prepare(here, tmp_path / "unpacked")
    assert snapshot(tmp_path / "unpacked") == snapshot(tmp_path / "wanted")
    for path in (made / "val2014").iterdir():
        assert path.is_symlink() and path.name.startswith("COCO_val2014_")


def test_split_of_2017_is_prepared_with_a_warning_about_the_published_lists(tmp_path: Path) -> None:
    result = prepare(make_coco(tmp_path / "coco", "2017"), tmp_path)
    assert result.err.count("\n") == 1 and "annotations_trainval2014.zip" in result.err
    source = Source(tmp_path / "MSCOCO2014", "coco", "val")
    assert source.image_ids() == ["000000000070", "000000000071"]
    assert source.load("000000000070")[1].max() == 80


@pytest.mark.parametrize("in_place", [True, False])
def test_second_run_writes_nothing_and_says_so(in_place: bool, tmp_path: Path) -> None:
    coco = make_coco(tmp_path / ("MSCOCO2014" if in_place else "download"))
    first = prepare(coco, tmp_path)
    before = times(tmp_path / "MSCOCO2014")
    assert "files created" in first.out and ("a link" in first.out) != in_place
    assert "nothing to do" in prepare(coco, tmp_path).out
    assert times(tmp_path / "MSCOCO2014") == before


def test_masks_of_another_hand_are_named_and_drawn_again_with_overwrite(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco")
    prepare(coco, tmp_path)
    first, second = sorted((tmp_path / "MSCOCO2014/masks/val2014").iterdir())
    before = snapshot(tmp_path)
    mine = cv2.imencode(".png", np.full((10, 12), 3, np.uint8))[1].tobytes()
    first.write_bytes(mine)
    second.write_bytes(second.read_bytes()[:-1])
    words = ["coco", "--coco", coco, "--out", tmp_path]
    refused(run(*words), first.name, "or it was changed (2 such files)")
    assert first.read_bytes() == mine
    assert "2 files created" in prepare(coco, tmp_path, "--overwrite").out
    assert snapshot(tmp_path) == before


def test_interrupted_unpacking_beside_the_zips_continues(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "data")
    for name in ("train2014", "val2014"):
        pack(coco / f"{name}.zip", coco / name, name)
        shutil.rmtree(coco / name)
    prepare(coco, coco)
    whole = snapshot(coco)
    (coco / "MSCOCO2014/val2014/COCO_val2014_000000000071.jpg").unlink()
    prepare(coco, coco)
    assert snapshot(coco) == whole


def test_zips_with_unusual_member_names_are_read(tmp_path: Path) -> None:
    coco, wanted = make_coco(tmp_path / "coco"), make_coco(tmp_path / "MSCOCO2014")
    pack(coco / "train2014.zip", coco / "train2014", "./a//b")
    with zipfile.ZipFile(coco / "val2014.zip", "w") as archive:
        for path in sorted((coco / "val2014").iterdir()):
            archive.write(path, f"./{path.name}")
            archive.writestr(f"__MACOSX/val2014/._{path.name}", b"metadata")
    for name in ("train2014", "val2014"):
        shutil.rmtree(coco / name)
    prepare(wanted, tmp_path)
    prepare(coco, tmp_path / "out")
    made = snapshot(tmp_path / "out/MSCOCO2014")
    assert len(made) == 8 and made.items() <= snapshot(wanted).items()


def test_folder_of_pictures_in_its_final_place_is_kept(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "MSCOCO2014")
    (coco / "round").symlink_to(coco)
    (coco / "val2014/COCO_val2014_000000000071.jpg").unlink()
    result = prepare(tmp_path, tmp_path)
    assert "1 of 2 pictures" in result.err
    assert len(list((coco / "masks/val2014").iterdir())) == 2


# --- drawing -------------------------------------------------------------------------------------


def test_rasterize_draws_later_annotations_over_earlier_and_skips_crowds() -> None:
    annotations = [
        {"iscrowd": 0, "category_id": 90, "segmentation": [SQUARE]},
        {"iscrowd": 0, "category_id": 7, "segmentation": [[4, 4, 9, 4, 9, 9, 4, 9]]},
        {"iscrowd": 1, "category_id": 7, "segmentation": {"counts": [0, 100], "size": [10, 10]}},
    ]
    mask = rasterize(annotations, {7: 1, 90: 2}, 10, 10)
    assert mask[1, 1] == 2  # points are cut to integers, and the outline belongs to the polygon
    assert (mask[4:10, 4:10] == 1).all() and (mask[0] == 0).all() and mask[6, 2] == 2


def lengths(inside: np.ndarray) -> list[int]:
    """Lengths of runs down the columns, the first outside: COCO's `counts`."""
    pixels = np.concatenate([[False], inside.T.ravel()])
    changes = np.flatnonzero(pixels[1:] != pixels[:-1])
    return np.diff([0, *changes, inside.size]).tolist()


def test_packed_run_lengths_agree_with_examples_worked_out_by_hand() -> None:
    # 2; 40 = 1 * 32 + 8, +32: more follows; 1; 3 - 40 = -37 = -2 * 32 + 27, the sign is on top.
    code = {"size": [2, 23], "counts": "2" + "X1" + "1" + "kN"}
    runs = [False] * 2 + [True] * 40 + [False] + [True] * 3
    assert decode_run_lengths(code, 2, 23).T.ravel().tolist() == runs


@pytest.mark.filterwarnings("ignore:__array__")  # pycocotools, about NumPy
@pytest.mark.parametrize("seed", range(12))
def test_run_lengths_as_list_and_as_pycocotools_packs_them_are_decoded(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(1, 90, 2))
    inside = cv2.blur(rng.random((height, width)), (9, 9)).reshape(height, width) > 0.5
    inside = [inside, ~inside, np.ones_like(inside), np.zeros_like(inside)][seed % 4]
    packed = coco_mask.encode(np.asfortranarray(inside, np.uint8))["counts"].decode()
    for counts in (lengths(inside), packed):
        code = {"size": [height, width], "counts": counts}
        assert np.array_equal(decode_run_lengths(code, height, width), inside)
        annotation = {"iscrowd": 0, "category_id": 5, "segmentation": code}
        assert np.array_equal(rasterize([annotation], {5: 9}, height, width), inside * np.uint8(9))


def test_polygons_that_leave_the_image_are_clipped(tmp_path: Path) -> None:
    content = json.loads(make_coco(tmp_path / "coco").joinpath(
        "annotations/instances_val2014.json").read_text())  # fmt: skip
    content["annotations"][0]["segmentation"] = [[-50, -50, 5.5, -50, 5.5, 500, -50, 500]]
    content["annotations"][1] |= {"segmentation": [], "id": 3}
    content["annotations"].append(
        {"image_id": 71, "category_id": 3, "segmentation": [[900, 900, 990, 900, 990, 990]]}
    )
    path = tmp_path / "own.json"
    path.write_text(json.dumps(content))
    instances = load_instances(path)
    image = instances.images[0]
    mask = rasterize(instances.annotations[image.id], instances.class_of, image.height, image.width)
    assert (mask[:, :6] == 80).all() and not mask[:, 6:].any()
    assert instances.class_of[3] == 2
    assert instances.names[0] == "person" and 72 not in instances.annotations
    assert not rasterize(instances.annotations[71], instances.class_of, 10, 12).any()


def test_annotations_without_a_segmentation_give_a_warning(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco")
    path = coco / "annotations/instances_val2014.json"
    content = json.loads(path.read_text())
    content["annotations"][1]["segmentation"] = []
    path.write_text(json.dumps(content))
    assert "left out 1 annotations without a segmentation" in prepare(coco, tmp_path).err
    mask = tmp_path / "MSCOCO2014/masks/val2014/COCO_val2014_000000000071.png"
    assert not read_label(mask).any()


# --- base_annotation -----------------------------------------------------------------------------


def test_base_annotation_has_the_published_layout_and_labels(tmp_path: Path) -> None:
    prepare(make_coco(tmp_path / "coco"), tmp_path)
    words = ("base", "--dataset", "coco", "--root", tmp_path)
    assert run(*words, "--split", "1", "3").status == 0
    out = tmp_path / "base_annotation/coco"
    assert sorted(p.name for p in (out / "val").iterdir()) == ["1", "3"]
    assert run(*words, "--workers", "1").status == 0
    assert "nothing to do" in run(*words).out
    for subset in SUBSETS:
        source = Source(tmp_path / "MSCOCO2014", "coco", subset)
        for split in range(4):
            made = {path.stem: read_label(path) for path in (out / subset / f"{split}").iterdir()}
            assert sorted(made) == source.image_ids()
            for image_id, label in made.items():
                table = published_fold("coco", split).base_table()
                assert np.array_equal(label, table[read_label(source.label_path(image_id))])
