"""Mistakes of label files and their photographs: one message, with the true reason."""

import json
import os
from pathlib import Path

import pytest
from helpers.downloads import refused, run
from helpers.label_files import HEIGHT, WIDTH, four_photos, labels, masks, photo, prepare


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return four_photos(tmp_path)


def test_all_mistakes_come_in_one_message_of_at_most_ten(here: Path) -> None:
    content = labels()
    content["annotations"][0]["category_id"] = 9
    content["images"][1]["width"] = "wide"
    content["categories"][2]["name"] = " "
    (here / "photos/p3.jpg").unlink()
    content["annotations"][3]["segmentation"] = [["1", 2, 3, 4, 5, 6]]
    result = prepare(here, content)
    refused(
        result, "5 mistakes: ", "category 3 has no name", "image 2 has width 'wide'",
        "photos/p3.jpg: no such image", "annotation 1 has category_id 9",
        "annotation 4 has a polygon that is not a list", "export the labels again, or correct",
    )  # fmt: skip
    assert "download" not in result.err
    photo(here / "photos/p3.jpg")
    content = labels()
    for entry in content["annotations"]:
        entry["segmentation"] = "triangle"
    content["annotations"] *= 4
    result = prepare(here, content)
    refused(result, "24 mistakes: ", "and 14 more; export")
    assert result.err.count("neither polygons nor a code") == 10


def test_mistake_in_an_image_or_category_is_told_once_not_for_each_annotation(here: Path) -> None:
    content = labels()
    content["images"][1]["file_name"] = "../p2.jpg"
    content["categories"][0]["name"] = ""
    result = prepare(here, content)
    refused(result, "2 mistakes: category 1 has no name; file_name '../p2.jpg'")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("p1.gif", ["'p1.gif' is no picture that can be used", ".jpg"]),
        (".p1.jpg", ["'.p1.jpg' is no picture that can be used"]),
        ("more/p1.jpg", ["photos/more/p1.jpg: no such image, but p1.jpg is there"]),
        ("C:\\photos\\p1.jpg", ["points outside"]),
        ("..\\p1.jpg", ["points outside"]),
        ("\\\\server\\p1.jpg", ["points outside"]),
        ("p9.jpg", ["p9.jpg: no such image (--images must be"]),
        ("P1.JPG", ["P1.JPG: no such image, but p1.jpg is there"]),
        ("p1.png", ["p1.png: no such image, but p1.jpg is there"]),
        ("p1", ["'p1' is no picture that can be used", "but p1.jpg is there"]),
        ("my%20photo.jpg", ["but more/My photo.webp is there"]),
        ("https://storage.org/b/p1.jpg?token=3", ["but p1.jpg is there"]),
        ("/data/local-files/?d=photos/p1.jpg", ["points outside", "but p1.jpg is there"]),
        ("gone.jpg", ["gone.jpg: is a link to nowhere.jpg, which is not there"]),
        ("loop.jpg", ["loop.jpg: ", "symbolic links"]),
    ],
)
def test_picture_that_training_would_not_find_is_refused(
    name: str, words: list[str], here: Path
) -> None:
    photo(here / "photos/more/My photo.webp")
    (here / "photos/gone.jpg").symlink_to("nowhere.jpg")
    (here / "photos/loop.jpg").symlink_to("loop.jpg")
    content = labels()
    content["images"][0]["file_name"] = name
    refused(prepare(here, content), *words)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("}]}", '}], "annotations": []}', "an object has the key 'annotations' twice"),
        ("{", '{"categories": [], ', "an object has the key 'categories' twice"),
        ('"iscrowd": 0', '"iscrowd": 0, "segmentation": []', "of id 1 has the key 'segmentation'"),
        ('"width"', '"id": 3, "width"', "of id 3 has the key 'id' twice"),
    ],
)
def test_key_that_stands_twice_is_refused(old: str, new: str, words: str, here: Path) -> None:
    """The second would replace the first, and what it holds."""
    refused(prepare(here, json.dumps(labels()).replace(old, new, 1).encode()), words)


def test_folder_of_images_that_is_none_is_said_to_be_that(here: Path) -> None:
    (here / "link").symlink_to("gone")
    path = here / "labels.json"
    path.write_text(json.dumps(labels()))
    for images, words in (
        ("photos/p1.jpg", "is a file, not a folder"), ("nowhere", "no such folder"),
        ("link", "is a link to gone, which is not there"),
    ):  # fmt: skip
        result = run("custom", "--images", here / images, "--labels", path, "--out", here / "out")
        refused(result, f"--images {here / images}: {words}; name the folder")


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"null", "labels.json: has no list 'images', 'annotations', 'categories', so it is not in"),
     (b"[]", "has no list 'images', 'annotations', 'categories'"),
     (b"5", "has no list 'images', 'annotations', 'categories'"),
     (b'{"images": [], "categories": 5}', "has no list 'annotations', 'categories', so"),
     (b'{"images": [5], "annotations": [], "categories": {}}',
      "2 mistakes: has no list 'categories', so it is not in COCO's format; its list 'images'")],
)  # fmt: skip
def test_file_without_the_lists_of_coco_is_told_of_once(
    content: bytes, words: str, here: Path
) -> None:
    result = prepare(here, content)
    refused(result, words)
    assert result.err.count("COCO's format") == 1


@pytest.mark.parametrize("name", ["p1.jpg ", "p1.jpg.", "p1.jpg\t", "p1.jpg/ "])
def test_name_with_a_blank_or_dot_behind_it_is_shown_in_quotes(name: str, here: Path) -> None:
    content = labels()
    content["images"][0]["file_name"] = name
    refused(prepare(here, content), f"{name!r} is no picture that can be used")


def test_photographs_of_one_name_in_several_folders_are_all_told_of(here: Path) -> None:
    (here / "photos/p1.jpg").rename(here / "p1.jpg")
    for folder in ("a", "b"):
        photo(here / f"photos/{folder}/p1.jpg")
    words = "but there are a/p1.jpg, b/p1.jpg: write one of them in the labels"
    refused(prepare(here, labels()), words)
    photo(here / "photos/c/P1.png")
    refused(prepare(here, labels()), "there are a/p1.jpg, b/p1.jpg and 1 more: write one of them")


@pytest.mark.parametrize(
    ("part", "keys"),
    [
        ({"x": 1, "y": 2}, "x, y"),
        ({"points": [1, 2, 3, 4]}, "points"),
        ({"size": [20, 30]}, "size"),
    ],
)
def test_shapes_of_other_objects_are_said_to_be_no_polygons(
    part: dict, keys: str, here: Path
) -> None:
    content = labels()
    content["annotations"][0]["segmentation"] = [part] * 3
    words = f"annotation 1 has a segmentation of objects ({keys}), not of polygons (each [x, y, x"
    refused(prepare(here, content), words)


@pytest.mark.parametrize("place", ["out/masks", "out/masks/more"])
def test_folder_of_the_masks_is_refused_as_that_of_the_photographs(place: str, here: Path) -> None:
    (here / place).parent.mkdir(parents=True)
    (here / "photos").rename(here / place)
    (here / "photos").symlink_to(here / place)
    before = sorted((here / "out").rglob("*"))
    refused(prepare(here, labels()), "photos: is the folder for the masks of --out; name the fol")
    assert sorted((here / "out").rglob("*")) == before
    assert prepare(here, labels(), "another").status == 0


def test_pipe_as_label_file_or_photo_is_told_of_at_once(here: Path) -> None:
    words = ["--images", here / "photos", "--labels", here / "pipe.json", "--out", here / "out"]
    os.mkfifo(here / "pipe.json")
    refused(run("custom", *words), "pipe.json: is a pipe or a device")
    words[3] = here
    refused(run("custom", *words), f"{here}: cannot be read (Is a directory)")
    (here / "photos/p1.jpg").unlink()
    os.mkfifo(here / "photos/p1.jpg")
    refused(prepare(here, labels()), "p1.jpg: is a pipe or a device")


@pytest.mark.parametrize("orientation", [6, 8])
def test_size_before_a_camera_turned_the_picture_is_refused(orientation: int, here: Path) -> None:
    photo(here / "photos/p1.jpg", orientation)
    content = labels()
    result = prepare(here, content)
    refused(result, "p1.jpg has 30x20 pixels in the labels, but its file 20x30 (turned upright)")
    content["images"][0] |= {"width": HEIGHT, "height": WIDTH}
    assert prepare(here, content).status == 0
    assert masks(here / "out")["p1"].shape == (WIDTH, HEIGHT)
