"""COCO files of results: exact to the pixel in pycocotools and in our own reader."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pytest
from helpers.downloads import run
from PIL import Image
from pycocotools.coco import COCO

from util.data.image_io import read_label
from util.predict.coco import coco_file, segment_mask

pytestmark = pytest.mark.filterwarnings("ignore:__array__")  # pycocotools, about NumPy
SHAPE = (90, 120)


@pytest.fixture
def photos(small_run: SimpleNamespace, tmp_path: Path) -> Path:
    """A folder of three photographs and, in a folder of its own, a fourth."""
    source, names = small_run.episodes.source, small_run.episodes.sampler.fold.images[:4]
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(names):
        place = folder / "more" if number == 3 else folder
        Image.open(source.image_path(name)).save(place / f"photo {number}.png")
    return folder


def found(predict: Callable, photos: Path, out: Path, *more: str) -> dict:
    """The COCO file of two classes in the photographs."""
    supports = [f"{name}={photos}/photo {i}.png:box=30,30,150,150" for i, name in enumerate("ab")]
    words = ["--support", *supports, "--query", photos, photos / "more", "--out", out, *more]
    assert predict(*words)[0] == 0
    return json.loads((out / "coco.json").read_text())


def masks_of(out: Path) -> dict[str, np.ndarray]:
    return {path.stem: read_label(path) for path in sorted((out / "masks").iterdir())}


def test_run_length_codes_come_back_to_the_pixel_from_pycocotools_and_from_prepare_custom(
    predict: Callable, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    content = found(predict, photos, out, "--format", "coco")
    assert content["info"]["images"] == str(photos)
    assert [c["name"] for c in content["categories"]] == ["a", "b"]
    names = [image["file_name"] for image in content["images"]]
    assert names == [*(f"photo {i}.png" for i in range(3)), "more/photo 3.png"]
    masks = masks_of(out)
    assert set(np.unique(np.concatenate([m.ravel() for m in masks.values()]))) == {0, 1, 2}
    coco = COCO(out / "coco.json")
    for image in coco.loadImgs(coco.getImgIds()):
        mask = masks[Path(image["file_name"]).stem]
        read, own = np.zeros_like(mask), coco.loadAnns(coco.getAnnIds(image["id"]))
        for annotation in own:
            drawn = coco.annToMask(annotation) == 1
            read[drawn] = annotation["category_id"]
            ys, xs = np.nonzero(drawn)
            x, y = xs.min(), ys.min()
            assert annotation["bbox"] == [x, y, xs.max() + 1 - x, ys.max() + 1 - y]
            assert annotation["area"] == len(xs) and annotation["iscrowd"] == 0
            assert 0 < annotation["score"] < 10
        assert np.array_equal(read, mask)
    words = ["custom", "--images", photos, "--labels", out / "coco.json", "--out", tmp_path / "set"]
    assert run(*words).status == 0
    assert (tmp_path / "set/classes.txt").read_text().split() == ["a", "b"]
    read = {path.stem: read_label(path) for path in (tmp_path / "set/masks").iterdir()}
    assert read.keys() == {name for name, mask in masks.items() if mask.any()}
    assert all(np.array_equal(mask, masks[name]) for name, mask in read.items())


def test_pycocotools_draws_the_file_over_the_photograph(
    predict: Callable, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    found(predict, photos, out, "--format", "coco")
    coco, masks = COCO(out / "coco.json"), masks_of(out)
    mask = masks["photo 0"]
    figure = plt.figure(figsize=(mask.shape[1] / 100, mask.shape[0] / 100), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(np.full((*mask.shape, 3), 255, np.uint8), aspect="auto")
    [image] = [i["id"] for i in coco.dataset["images"] if i["file_name"] == "photo 0.png"]
    coco.showAnns(coco.loadAnns(coco.getAnnIds(image)))
    figure.canvas.draw()
    drawn = (np.asarray(figure.canvas.buffer_rgba())[..., :3] < 250).any(axis=2)
    plt.close(figure)
    assert drawn.shape == mask.shape and (drawn == (mask > 0)).mean() > 0.99 and drawn.any()


def test_further_run_adds_its_images_and_replaces_those_that_are_segmented_again(
    predict: Callable, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    support = f"a={photos}/photo 0.png:box=30,30,150,150"
    for name, numbers in (("a", (0, 1)), ("b", (1, 2))):
        queries = [photos / f"photo {number}.png" for number in numbers]
        words = ["--support", support.replace("a=", f"{name}=", 1), "--query", *queries]
        assert predict(*words, "--out", out, "--format", "coco")[0] == 0
    content = json.loads((out / "coco.json").read_text())
    assert [i["file_name"] for i in content["images"]] == [f"photo {i}.png" for i in range(3)]
    assert [c["name"] for c in content["categories"]] == ["a", "b"]
    assert {(a["image_id"], a["category_id"]) for a in content["annotations"]} <= {
        (1, 1), (2, 2), (3, 2)
    }  # fmt: skip
    queries = [photos / f"photo {number}.png" for number in range(3)]
    assert predict("--support", support, "--query", *queries, "--out", out)[0] == 0
    assert json.loads((out / "coco.json").read_text())["images"] == []  # none asks for it now


def test_png_is_the_default_and_gives_no_coco_file(
    predict: Callable, photos: Path, tmp_path: Path
) -> None:
    support = f"{photos}/photo 0.png:box=30,30,150,150"
    words = ["--support", support, "--query", photos / "photo 1.png", "--out", tmp_path / "out"]
    assert predict(*words)[0] == 0
    assert not (tmp_path / "out/coco.json").exists()
    assert "segments" not in (tmp_path / "out/predictions.jsonl").read_text()
    status, error = predict(*words, "--format", "voc")
    assert status == 2 and "invalid choice: 'voc'" in error


# --- polygons -------------------------------------------------------------------------------------


def shapes() -> dict[str, np.ndarray]:
    """Masks without holes, and one of a single pixel."""
    disc, two, bar, speck = (np.zeros(SHAPE, np.uint8) for _ in range(4))
    cv2.circle(disc, (60, 45), 30, 1, -1)
    two[5:20, 5:40] = two[60:85, 80:119] = 1
    cv2.line(bar, (3, 80), (110, 10), 1, 3)
    speck[40, 40] = 1
    return {"disc": disc == 1, "two": two == 1, "bar": bar == 1, "speck": speck == 1}


def read_back(lines: list[dict], folder: Path) -> np.ndarray:
    """The mask that `prepare custom` draws of the only line."""
    (folder / "labels.json").write_bytes(coco_file(lines))
    Image.new("RGB", SHAPE[::-1]).save(folder / "a.png")
    words = ["custom", "--images", folder, "--labels", folder / "labels.json"]
    assert run(*words, "--out", folder / "set").status == 0
    return read_label(folder / "set/masks/a.png")


def line(masks: dict[str, np.ndarray]) -> dict:
    classes = {
        name: {"score": 0.5, "segments": segment_mask(mask, polygons=True)}
        for name, mask in masks.items()
    }
    size = {"width": SHAPE[1], "height": SHAPE[0]}
    return {"image": "a.png", "picture": "/b/a.png", **size, "classes": classes}


@pytest.mark.parametrize("name", ["disc", "two", "bar"])
def test_polygons_of_masks_without_holes_come_back_to_the_pixel(name: str, tmp_path: Path) -> None:
    mask = shapes()[name]
    parts = segment_mask(mask, polygons=True)
    assert len(parts) == (2 if name == "two" else 1)
    assert sum(part["area"] for part in parts) == mask.sum()
    assert all(len(part["segmentation"]) == 1 for part in parts)  # Label Studio reads only one
    assert np.array_equal(read_back([line({"a": mask})], tmp_path), mask)


def test_polygons_fill_holes_but_keep_another_class_in_them(tmp_path: Path) -> None:
    ring = shapes()["disc"].copy()
    ring[35:55, 50:70] = False
    inside = np.zeros(SHAPE, bool)
    inside[40:50, 55:65] = True
    drawn = read_back([line({"inside": inside, "ring": ring})], tmp_path)
    assert np.array_equal(drawn == 1, inside)
    assert np.array_equal(drawn > 0, shapes()["disc"])


def test_an_outline_of_one_pixel_and_an_empty_mask_give_no_polygon() -> None:
    assert segment_mask(shapes()["speck"], polygons=True) == []
    for polygons in (True, False):
        assert segment_mask(np.zeros(SHAPE, bool), polygons) == []
    [part] = segment_mask(shapes()["speck"], polygons=False)
    assert part["area"] == 1 and part["bbox"] == [40, 40, 1, 1]


def test_command_writes_polygons_that_pycocotools_reads(
    predict: Callable, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    content = found(predict, photos, out, "--format", "coco-polygons")
    assert content["annotations"]
    coco, masks = COCO(out / "coco.json"), masks_of(out)
    for image in coco.loadImgs(coco.getImgIds()):
        mask = masks[Path(image["file_name"]).stem]
        read = np.zeros_like(mask)
        for annotation in coco.loadAnns(coco.getAnnIds(image["id"])):
            assert isinstance(annotation["segmentation"], list)
            read[coco.annToMask(annotation) == 1] = annotation["category_id"]
        assert (read == mask).mean() > 0.9  # pycocotools draws through the pixels' centers
