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
    assert "left out 1 images that have no annotation" in result.err
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
    content["images"][1]["file_name"] = f"more/{photo.name}"
    write_jpeg(labels.parent / "photos/more" / photo.name)
    write_jpeg(photo)
    refused(prepare(save(labels, content)), photo.stem, "two images of the same name")
    refused(prepare(labels.with_name("gone.json")), "gone.json", "cannot be read")


def test_labels_of_more_than_254_categories_get_masks_of_16_bits(labels: Path) -> None:
    content = json.loads(labels.read_text())
    content["categories"] = [{"id": i, "name": f"kind {i}"} for i in range(300)]
    content["annotations"][0]["category_id"] = 299
    content["annotations"][1]["category_id"] = 254
    result, out = prepare(save(labels, content)), labels.parent / "out"
    assert result.status == 0 and "2 images of 300 classes" in result.out
    names = read_classes(out)
    assert len(names) == 301 and names[254] == "ignored"
    source = Source(out, "custom", "train", 301)
    found = [int(source.load(i)[1].max()) for i in source.image_ids()]
    # The 300th and the 255th category: their names stand in line 301 and 256.
    assert found == [301, 256] and [names[i - 1] for i in found] == ["kind 299", "kind 254"]


def test_overlapping_labels_are_kept_whole_if_asked_for(labels: Path) -> None:
    content = json.loads(labels.read_text())
    first = content["annotations"][0]
    content["annotations"].append(
        {**first, "id": 99, "category_id": 2, "segmentation": [[0, 0, 11, 0, 11, 9, 0, 9]]}
    )
    save(labels, content)
    out, name = labels.parent / "out", "COCO_val2014_000000000070"
    for more, size in (((), 0), (("--overlap",), 36)):
        assert prepare(labels, *more).status == 0
        source = Source(out, "custom", "train", 80)
        assert (source.load(name, 80)[1] == 80).sum() == size  # the square: 6 x 6 pixels
        assert (source.load(name, 1)[1] == 1).sum() == 120
