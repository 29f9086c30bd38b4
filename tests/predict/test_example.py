"""Examples: images and labels in every form, and those that are refused."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from helpers.pictures import OBJECT, PICTURE
from PIL import Image

from util.data import weak
from util.data.image_io import read_image, read_label
from util.predict import Box, Example, Points, Predictor
from util.predict.example import Picture, as_rgb
from util.runtime.errors import UserError


def test_arrays_pil_images_and_files_give_the_same_pixels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    color = rng.integers(0, 256, (40, 30, 3), np.uint8)
    gray, deep = color[..., 0], rng.integers(0, 65536, (40, 30), np.uint16)
    rgba = np.dstack([color, np.full((40, 30), 7, np.uint8)])
    for name, array, wanted in (
        ("color", color, color),
        ("gray", gray, np.dstack([gray] * 3)),
        ("rgba", rgba, color),
        ("deep", deep, np.dstack([(deep >> 8).astype(np.uint8)] * 3)),
    ):
        picture = Image.fromarray(array)
        picture.save(tmp_path / f"{name}.png")
        for form in (array, picture, tmp_path / f"{name}.png", str(tmp_path / f"{name}.png")):
            assert np.array_equal(as_rgb(form), wanted), (name, type(form))
    palette = Image.fromarray(color).quantize(16)
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(as_rgb(palette), as_rgb(tmp_path / "palette.png"))


LARGE = np.full((600, 800, 3), 90, np.uint8)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_exif_orientation_rotates_images_and_masks(tmp_path: Path, suffix: str) -> None:
    raw = np.zeros((32, 48, 3), np.uint8)
    raw[:16, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees, clockwise
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(raw).save(path, exif=exif)
    upright = np.rot90(raw, -1)
    for form in (path, Image.open(path)):
        assert np.abs(as_rgb(form).astype(int) - upright).max() < 20
    Image.fromarray(raw[..., 0] // 255).save(tmp_path / "mask.png", exif=exif)
    assert np.array_equal(read_label(tmp_path / "mask.png"), upright[..., 0] // 255)


def test_the_same_label_in_every_form_gives_the_same_scores(
    predictor: Predictor, small_run: SimpleNamespace, tmp_path: Path
) -> None:
    source = small_run.episodes.source
    image = read_image(source.image_path(source.image_ids()[0]))
    mask = np.zeros(image.shape[:2], np.uint8)
    mask[30:150, 50:170], mask[:10] = 1, 255
    ignored = mask == 255
    Image.fromarray(np.where(ignored, 255, 9 * mask).astype(np.uint8)).save(tmp_path / "mask.png")

    def scores(**label: object) -> np.ndarray:
        predictor.add_class("object", Example(image, **label))
        return predictor.predict(image).scores

    first = scores(mask=mask)
    forms = [np.where(ignored, 255, 3 * mask).astype(np.int64), Image.fromarray(mask)]
    for form in (*forms, tmp_path / "mask.png", str(tmp_path / "mask.png")):
        assert np.array_equal(scores(mask=form), first)
    nothing_ignored = scores(mask=mask == 1)
    assert np.array_equal(scores(box=Box(50, 30, 170, 150)), nothing_ignored)
    halves = [Box(50, 30, 100, 150), Box(80, 30, 170, 150)]
    assert np.array_equal(scores(boxes=halves), nothing_ignored)


def test_points_are_the_discs_of_weak_labels() -> None:
    """`Data.ann_type: point` draws the same disc, cut to the object."""
    label = np.zeros((200, 300), np.uint8)
    cv2.circle(label, (140, 90), 60, 4, -1)
    drawn = weak.annotate(label, 4, "point", "a") == 4
    ys, xs = np.nonzero(drawn)
    center = (round(xs.mean()), round(ys.mean()))
    image = np.zeros((200, 300, 3), np.uint8)
    disc = Example(image, points=Points([center])).load("disc")[1] == 1
    assert np.array_equal(drawn, disc & (label == 4)) and disc.sum() > 100


@pytest.mark.parametrize(
    ("image", "label", "words"),
    [
        (PICTURE, {"mask": OBJECT * 0}, "example 1: no pixel is labeled as the object; mark the"),
        (PICTURE, {"mask": OBJECT * 0 + 255}, "write 1, as 255 means ignored"),
        (PICTURE, {"mask": OBJECT[:-1]}, "the mask is 80x49 pixels and its image 80x50; give both"),
        (PICTURE, {"mask": OBJECT.T}, "image 80x50, rotated as its EXIF orientation says; give"),
        (PICTURE, {"mask": OBJECT / 2}, "whole numbers or booleans [H,W], given float64 [50, 80]"),
        (PICTURE, {"mask": PICTURE}, "given uint8 [50, 80, 3]"),
        (
            PICTURE,
            {"box": Box(0, 0, 81, 20)},
            "box 0,0,81,20 is empty or leaves the image of 80x50",
        ),
        (PICTURE, {"box": Box(20, 10, 20, 40)}, "the box 20,10,20,40 is empty"),
        (PICTURE, {"box": Box(float("nan"), 0, 5, 5)}, "the box nan,0,5,5 is empty"),
        (
            PICTURE,
            {"boxes": [Box(0, 0, 9, 9), Box(-1, 0, 9, 9)]},
            "box -1,0,9,9 is empty or leaves",
        ),
        (PICTURE, {"boxes": []}, "no pixel is labeled as the object"),
        (
            PICTURE,
            {"points": Points([(3, 4), (80, 4)])},
            "point 80,4 is outside the image of 80x50",
        ),
        (PICTURE, {"points": Points([])}, "no pixel is labeled as the object"),
        (PICTURE, {"mask": "no_mask.png"}, "no_mask.png: no such mask"),
        (LARGE, {"box": Box(1, 1, 2, 2)}, "the object is too small, no pixel of it is left"),
        ("no_image.jpg", {"mask": OBJECT}, "no_image.jpg: no such image"),
        (
            PICTURE / 2,
            {"mask": OBJECT},
            "uint8 or uint16, [H,W], [H,W,3] or [H,W,4], given float64",
        ),
        (PICTURE[:, :0], {"mask": OBJECT}, "given uint8 [50, 0, 3]"),
        (Image.new("F", (80, 50)), {"mask": OBJECT}, "given float32 [50, 80]"),
    ],
)
def test_unusable_example_is_refused_and_leaves_the_classes_unchanged(
    predictor: Predictor, image: Picture, label: dict, words: str
) -> None:
    good = Example(PICTURE, mask=OBJECT)
    predictor.add_class("kept", good)
    before = predictor.predict(PICTURE).scores
    for name in ("new", "kept"):
        with pytest.raises(UserError) as refusal:
            predictor.add_class(name, [Example(image, **label), good])
        message = str(refusal.value)
        assert words in message and "\n" not in message
    assert predictor.names == ("kept",)
    assert np.array_equal(predictor.predict(PICTURE).scores, before)


@pytest.mark.parametrize(
    ("label", "given"),
    [
        ({}, "none"),
        ({"mask": OBJECT, "box": Box(0, 0, 9, 9)}, "mask and box"),
        ({"boxes": [], "points": Points([])}, "boxes and points"),
    ],
)
def test_example_takes_exactly_one_label(label: dict, given: str) -> None:
    with pytest.raises(UserError) as refusal:
        Example(PICTURE, **label)
    words = f"Example: give exactly one of mask, box, boxes, points; given {given}"
    assert str(refusal.value) == words


def test_example_takes_plain_numbers_for_boxes_and_points() -> None:
    image, box, points = np.zeros((40, 50, 3), np.uint8), (3, 4, 20, 30), [(10, 12), (30, 20)]
    for plain, named in (
        (Example(image, box=box), Example(image, box=Box(*box))),
        (
            Example(image, boxes=[box, Box(1, 1, 2, 2)]),
            Example(image, boxes=[Box(*box), Box(1, 1, 2, 2)]),
        ),
        (Example(image, points=points), Example(image, points=Points(points))),
    ):
        assert np.array_equal(plain.load("x")[1], named.load("x")[1])


@pytest.mark.parametrize(
    "label", [{"box": (1, 2, 3)}, {"boxes": [3]}, {"points": [(1, 2, 3)]}, {"points": ["ab"]}]
)
def test_example_with_a_label_of_another_form_is_refused(label: dict) -> None:
    with pytest.raises(UserError, match="Example: a box is"):
        Example(np.zeros((9, 9, 3), np.uint8), **label)


@pytest.mark.parametrize(
    "label",
    [
        {"box": Box(1, 1, 2, 2)},
        {"points": Points([(6, 5)])},
        {"mask": np.pad(np.ones((2, 1), np.uint8), ((20, 28), (44, 35)))},
    ],
)
def test_object_between_the_positions_of_the_grid_counts_at_the_nearest(
    predictor: Predictor, label: dict
) -> None:
    predictor.add_class("small", Example(PICTURE, **label))
    [[support]] = predictor._supports.values()
    assert len(support.weight) > 0 and (support.weight > 0).all()
    assert np.isfinite(predictor.predict(PICTURE).scores).all()
