"""A data set from one's own images and labels: layout, changed labels, mistakes."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.downloads import coco_json, refused, run, snapshot, times, write_jpeg

from util.data.source import Source
from util.folds import CLASSES, read_classes


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Three images, two of them labeled, and the file of labels beside their folder."""
    content = coco_json(70, "val")
    for image in content["images"]:
        write_jpeg(tmp_path / "photos" / image["file_name"])
    return save(tmp_path / "labels.json", content)


def save(path: Path, content: dict) -> Path:
    path.write_text(json.dumps(content))
    return path


def prepare(labels: Path, *more: object) -> SimpleNamespace:
    photos, out = labels.parent / "photos", labels.parent / "out"
    return run("custom", "--images", photos, "--labels", labels, "--out", out, *more)


def test_labeled_images_become_a_data_set_that_source_reads(labels: Path) -> None:
    result, out = prepare(labels), labels.parent / "out"
    assert result.status == 0 and "2 images of 80 classes; 5 files created" in result.out
    assert "1 images have no annotation" in result.err
    assert sorted(read_classes(out)) == sorted(CLASSES["coco"])
    source = Source(out, "custom", "train", 80)
    image, label = source.load("COCO_val2014_000000000070")
    assert image.shape == (10, 12, 3) and label.max() == 80
    assert all(path.is_symlink() for path in (out / "images").iterdir())


def test_changed_labels_are_drawn_again_and_the_rest_is_kept(labels: Path) -> None:
    out = labels.parent / "out"
    prepare(labels, "--copy")
    before = times(out / "images"), snapshot(out / "masks")
    assert "nothing to do" in prepare(labels, "--copy").out
    content = json.loads(labels.read_text())
    content["annotations"][0]["category_id"] = 3
    save(labels, content)
    assert "1 files created" in prepare(labels, "--copy").out
    assert times(out / "images") == before[0] and snapshot(out / "masks") != before[1]


def test_mistakes_are_one_line_with_status_2(labels: Path) -> None:
    content = json.loads(labels.read_text())
    refused(prepare(save(labels, content | {"annotations": []})), "no image has an annotation")
    save(labels, content)
    photo = labels.parent / "photos" / content["images"][0]["file_name"]
    photo.unlink()
    refused(prepare(labels), photo.name, "no such image")
    content["images"][0]["file_name"] = photo.with_suffix(".png").name
    content["images"][1]["file_name"] = f"more/{photo.name}"
    refused(prepare(save(labels, content)), photo.name, "same name")
    refused(prepare(labels.with_name("gone.json")), "gone.json", "cannot be read")
