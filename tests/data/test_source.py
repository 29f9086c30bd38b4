"""Reading a data set: files, cache, refusals, missing images."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.pictures import a_fold, changed, refused, same
from PIL import Image

from util.config import Config
from util.data.base_images import open_base_images
from util.data.dataset import EpisodeDataset, collate, open_episodes
from util.data.image_io import read_image, read_label, voc_palette
from util.data.lists import check_shots
from util.data.mixed import open_source
from util.data.source import Source
from util.data.tables import load_table
from util.data.transform import EvalTransform
from util.folds import published_fold


def test_palette_and_grayscale_masks_give_class_ids(tmp_path: Path) -> None:
    label = np.random.default_rng(0).integers(0, 256, (30, 40), dtype=np.uint8)
    gray = Image.fromarray(label)
    gray.save(tmp_path / "gray.png")
    gray.putpalette(voc_palette())
    gray.save(tmp_path / "palette.png")
    assert np.array_equal(read_label(tmp_path / "gray.png"), label)
    assert np.array_equal(read_label(tmp_path / "palette.png"), label)
    assert not np.array_equal(cv2.imread(str(tmp_path / "palette.png"), 0), label)


def test_images_are_read_as_rgb(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (250, 3, 5)).save(tmp_path / "red.png")
    assert read_image(tmp_path / "red.png")[0, 0].tolist() == [250, 3, 5]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16", "LA", "1"])
def test_masks_without_class_ids_are_refused(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.new(mode, (5, 5)).save(path)
    refused([str(path), mode, "8-bit palette or grayscale PNG"], read_label, path)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    for read in (read_image, read_label):
        refused([str(broken), "cannot be read"], read, broken)
        refused(["gone.png", "no such"], read, tmp_path / "gone.png")


def test_cache_returns_the_content_of_the_files_and_replaces_a_damaged_entry(
    pictures: Config, tmp_path: Path
) -> None:
    cached, _ = open_episodes(changed(pictures, cache=str(tmp_path / "cache")), "train", 3)
    plain, _ = open_episodes(pictures, "train", 3)
    for _ in range(2):
        assert same(collate([cached[i] for i in range(5)]), collate([plain[i] for i in range(5)]))
    name = cached.sampler.plan(0).query
    kept = tmp_path / f"cache/{name}.npy"
    entries = {path.name for path in kept.parent.iterdir()} - {".made_by_cache"}
    assert len(entries) == len(set(kept.parent.glob("*.npy"))) > 5
    whole = kept.read_bytes()
    kept.write_bytes(whole[:2000])
    for got, want in zip(cached.source.load(name), plain.source.load(name), strict=True):
        assert np.array_equal(got, want)
    assert kept.read_bytes() == whole
    (tmp_path / "file").touch()
    broken, _ = open_episodes(changed(pictures, cache=str(tmp_path / "file/cache")), "train", 3)
    refused(["cannot be written", "Data.cache"], broken.source.load, name)


@pytest.mark.parametrize("year", [1980, 2100])
def test_cache_follows_a_changed_mask_whatever_the_clock_says(tmp_path: Path, year: int) -> None:
    for folder in ("JPEGImages", "SegmentationClassAug"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (9, 5)).save(tmp_path / "JPEGImages/a.jpg")
    mask = tmp_path / "SegmentationClassAug/a.png"
    source = Source(tmp_path, "pascal", "val", cache=str(tmp_path / "cache"))
    for value in (3, 4):
        Image.new("L", (9, 5), value).save(mask)
        for path in (mask, tmp_path / "JPEGImages/a.jpg") if value == 4 else ():
            os.utime(path, (seconds := (year - 1970) * 365 * 86400, seconds))
        assert (source.load("a")[1] == value).all()
    before = (tmp_path / "cache/a.npy").stat().st_ino
    source.load("a")
    assert (tmp_path / "cache/a.npy").stat().st_ino == before  # read, not written again


@pytest.mark.parametrize("which", ["image", "mask"])
@pytest.mark.parametrize("kept", ["size and time", "size", "time"])
def test_cache_follows_a_replaced_file_of_the_same_size_or_time(
    tmp_path: Path, which: str, kept: str
) -> None:
    """Of the two files, the other one is newer all the time."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    image, mask = tmp_path / "images/a.bmp", tmp_path / "masks/a.png"
    (tmp_path / "classes.txt").write_text("one\ntwo\n")
    Image.new("RGB", (9, 5), (1, 1, 1)).save(image)
    Image.new("L", (9, 5), 1).save(mask)
    path = image if which == "image" else mask
    os.utime(path, ns=(10**18, 10**18))
    source = Source(tmp_path, "custom", "val", 2, str(tmp_path / "cache"))
    before = source.load("a")
    size = path.stat().st_size
    (tmp_path / "new").mkdir()
    other = tmp_path / "new" / path.name
    Image.new(
        "RGB" if which == "image" else "L", (9, 5), (2, 2, 2) if which == "image" else 2
    ).save(other)
    assert other.stat().st_size == size
    if kept == "time":
        other.write_bytes(other.read_bytes() + b"more")
    stamp = 10**18 if "time" in kept else 10**17  # older than what it replaces
    os.utime(other, ns=(stamp, stamp))
    os.replace(other, path)
    after = source.load("a")
    changed_one, other_one = (0, 1) if which == "image" else (1, 0)
    assert (after[changed_one] == 2).all() and (before[changed_one] == 1).all()
    assert np.array_equal(after[other_one], before[other_one])
    stored = (tmp_path / "cache/a.npy").stat().st_ino
    source.load("a")
    assert (tmp_path / "cache/a.npy").stat().st_ino == stored  # read, not written again


def test_image_and_mask_of_different_size_are_refused(tmp_path: Path) -> None:
    for folder in ("JPEGImages", "SegmentationClassAug"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (9, 5)).save(tmp_path / "JPEGImages/a.jpg")
    Image.new("L", (5, 9)).save(tmp_path / "SegmentationClassAug/a.png")
    source = Source(tmp_path, "pascal", "val")
    refused(["a.png", "5x9", "9x5"], source.load, "a")


def test_wrong_folder_data_set_or_fold_is_refused_in_one_line(
    pictures: Config, tmp_path: Path
) -> None:
    root, subset = pictures.Data.data_root, "train"
    refused(["nowhere", "Data.data_root"], Source, tmp_path / "nowhere", "pascal", subset)
    refused(["JPEGImages", "Data.data_root"], Source, tmp_path, "pascal", subset)
    refused(["'voc'", "pascal"], Source, root, "voc", subset)
    refused(["Data.split", "4"], published_fold, "pascal", 4)
    (tmp_path / "val2014").mkdir()
    refused(["masks", "util.data.prepare coco"], Source, tmp_path, "coco", "val")
    (tmp_path / "masks/val2014").mkdir(parents=True)
    refused(["no PNG", "util.data.prepare coco"], Source(tmp_path, "coco", "val").image_ids)


def test_stored_table_of_other_images_is_refused(pictures: Config, tmp_path: Path) -> None:
    source = Source(pictures.Data.data_root, "pascal", "val")
    load_table(source, tmp_path)
    path = tmp_path / "val.json"
    whole = path.read_text()
    words = whole.replace(": {", ': {"1": "many", ')
    for text in (whole[:-40], "[]", "{}", words, "[" * 100_000):
        path.write_text(text)
        refused([str(path), "move it away"], load_table, source, tmp_path)
    path.write_text(whole.replace("_val_00003", "_val_99999"))
    refused([str(path), "delete it"], load_table, source, tmp_path)


def test_unwritable_list_folder_is_named(pictures: Config, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    source = Source(pictures.Data.data_root, "pascal", "val")
    refused(["cannot be written", "Data.list_dir"], load_table, source, tmp_path / "file/lists")


def test_mask_with_a_class_that_the_data_set_does_not_have_is_refused(tmp_path: Path) -> None:
    (tmp_path / "val2014").mkdir()
    (tmp_path / "masks/val2014").mkdir(parents=True)
    Image.new("L", (5, 5), 90).save(tmp_path / "masks/val2014/a.png")
    source = Source(tmp_path, "coco", "val")
    refused(["a.png", "class 90", "80"], load_table, source, tmp_path / "lists")
    assert not (tmp_path / "lists/val.json").exists()


def test_missing_images_are_refused_or_skipped_as_configured(
    pictures: Config, tmp_path: Path
) -> None:
    root = tmp_path / "VOCdevkit2012" / "VOC2012"
    (root / "JPEGImages").mkdir(parents=True)
    whole = Path(pictures.Data.data_root)
    for part in ("SegmentationClassAug", "ImageSets"):
        (root / part).symlink_to(whole / part)
    sbd = "sbd_train_noval.txt"
    (root.parent / sbd).symlink_to(whole.parent / sbd)
    for path in sorted((whole / "JPEGImages").iterdir())[::2]:
        (root / "JPEGImages" / path.name).symlink_to(path)
    error = changed(pictures, data_root=str(root))
    skip = changed(error, missing="skip")
    for open_them in (
        open_episodes,
        lambda *a: open_base_images(*a[:2], EvalTransform((65, 65)), a[2]),
    ):
        refused([".jpg", "listed are absent", "Data.missing=skip"], open_them, error, "train", 0)
        kept, report = open_them(skip, "train", 0)
        assert "not on disk" in report[0]
    listed = len(open_source(pictures.Data, "train").image_ids())
    assert isinstance(kept[0], tuple) and len(kept) == listed / 2
    episodes, _ = open_episodes(skip, "train", 0)
    assert isinstance(episodes, EpisodeDataset) and len(collate([episodes[0]]).plans) == 1


def test_too_few_images_for_the_shots_are_refused(pictures: Config) -> None:
    refused(["class 1", "has 2 images", "3-shot needs 4"], check_shots, a_fold(c1=2), 3)
    refused(["Data.shot"], open_episodes, changed(pictures, shot=500), "train", 0)
    refused(["Data.shot"], open_episodes, changed(pictures, shot=500, missing="skip"), "train", 0)
