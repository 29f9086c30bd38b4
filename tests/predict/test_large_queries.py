"""A large photograph is reduced while it is read; all that is written has the photograph's size."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.downloads import run
from helpers.pictures import write_clip
from PIL import Image
from pycocotools.coco import COCO

from util.data.image_io import read_image, read_label, read_reduced
from util.evaluate.visualize import overlay
from util.predict import Example, Predictor
from util.predict.page import Page
from util.predict.pictures import BOX, MarkedImage

pytestmark = pytest.mark.filterwarnings("ignore:__array__")  # pycocotools, about NumPy
LABEL = "300,400,1900,1500"


def draw(height: int, width: int) -> np.ndarray:
    """A disc on a soft background (RGB, uint8 [H,W,3])."""
    noise = np.random.default_rng(0).integers(60, 160, (6, 8, 3), np.uint8)
    picture = cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR)
    return cv2.circle(picture, (width // 2, height // 2), height // 4, (230, 60, 20), -1)


def file_of(folder: Path, width: int, height: int, orientation: int) -> Path:
    """A JPEG of these stored sides, which a viewer turns as its EXIF orientation says."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    folder.mkdir()
    Image.fromarray(draw(height, width)).save(folder / "a.jpg", exif=exif)
    return folder / "a.jpg"


@pytest.mark.parametrize(
    ("stored", "orientation", "shape"),
    [
        ((3000, 2000), 1, (2000, 3000)),
        ((3000, 2000), 6, (3000, 2000)),
        ((2999, 2001), 1, (2001, 2999)),
    ],
)
def test_mask_line_coco_file_and_review_agree_on_the_size_of_the_photograph(
    stored: tuple[int, int],
    orientation: int,
    shape: tuple[int, int],
    predict: Callable,
    predictor: Predictor,
    tmp_path: Path,
) -> None:
    photo, out = file_of(tmp_path / "photos", *stored, orientation), tmp_path / "out"
    words = ["--support", f"cup={photo}:box={LABEL}", "--query", photo, "--out", out]
    assert predict(*words, "--format", "coco")[0] == 0
    [line] = map(json.loads, (out / "predictions.jsonl").read_text().splitlines())
    mask, cup = read_label(out / "masks/a.png"), line["classes"]["cup"]
    assert mask.shape == (line["height"], line["width"]) == shape == read_image(photo).shape[:2]
    ys, xs = np.nonzero(mask)
    assert cup["pixels"] == len(xs) > 0
    assert cup["box"] == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]

    reduced = read_reduced(photo)[0]
    predictor.add_class("cup", Example(photo, box=[int(side) for side in LABEL.split(",")]))
    small = predictor.predict(reduced)
    assert np.array_equal(read_image(out / "overlays/a.png"), overlay(reduced, small.mask))
    assert cup["score"] == pytest.approx(small.scores[0][small.mask == 1].mean(), rel=1e-5)

    coco = COCO(out / "coco.json")
    [image], [annotation] = coco.dataset["images"], coco.dataset["annotations"]
    assert (image["height"], image["width"]) == shape
    assert np.array_equal(coco.annToMask(annotation), mask)
    words = ["custom", "--images", photo.parent, "--labels", out / "coco.json"]
    assert run(*words, "--out", tmp_path / "set").status == 0
    assert np.array_equal(read_label(tmp_path / "set/masks/a.png"), mask)

    told = re.search(r"([\d.]+) % of the picture", (out / "review.html").read_text())
    assert float(told[1]) == pytest.approx(100 * (mask > 0).mean(), abs=0.06)
    height, width = read_image(out / "review/a.jpg").shape[:2]
    assert max(height, width) == 480 and width / height == pytest.approx(shape[1] / shape[0], 0.01)


def test_frames_of_a_large_clip_keep_their_size(predict: Callable, tmp_path: Path) -> None:
    """Frames of 2,560 x 1,760 are more than 2^22 pixels."""
    film = write_clip(tmp_path / "film.mp4", 2 * [draw(1760, 2560)])
    out, words = tmp_path / "out", ["--support", f"{film}@0:box={LABEL}", "--query", film]
    assert predict(*words, "--out", out, "--format", "coco")[0] == 0
    coco = COCO(out / "coco.json")
    for image, annotation in zip(coco.dataset["images"], coco.dataset["annotations"], strict=True):
        frame = out / "frames/film" / image["file_name"]
        mask = read_label(out / f"masks/film/{frame.stem}.png")
        assert mask.shape == read_image(frame).shape[:2] == (1760, 2560)
        assert np.array_equal(coco.annToMask(annotation), mask)


def test_page_hands_out_masks_of_the_size_of_a_large_upload(
    loaded: Predictor, tmp_path: Path
) -> None:
    photo = file_of(tmp_path / "photos", 3000, 2000, 6)
    support = MarkedImage(cv2.resize(draw(200, 300), (300, 200)), np.zeros((200, 300), bool))
    layer = np.zeros((200, 300, 4), np.uint8)
    layer[50:150, 100:200] = 255
    editor = {"background": layer, "layers": [layer]}
    answers = Page(loaded, [], "").segment(support, editor, BOX, [], [(str(photo), None)])
    for _, _, saved in answers:
        if saved["interactive"]:  # the file is gone when the visit is over
            content = json.loads(Path(saved["value"]).read_text())
    [image], [annotation] = content["images"], content["annotations"]
    assert (image["height"], image["width"]) == (3000, 2000)
    assert annotation["segmentation"]["size"] == [3000, 2000]
