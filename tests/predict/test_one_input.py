"""One support read alike from the command line, in Python and by the page; large photographs."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from helpers import ROOT
from helpers.trials import lay
from PIL import Image

from util.data.image_io import read_image, voc_palette
from util.predict import Example, Predictor, pictures
from util.predict.command import find_queries, parse_support
from util.predict.example import as_rgb, reduced_rgb
from util.runtime.errors import UserError

GB = 1e9


def a_photo(height: int = 60, width: int = 80) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR)


def an_object() -> np.ndarray:
    mask = np.zeros((60, 80), np.uint8)
    mask[10:40, 20:60] = 1
    return mask


def with_palette(indices: np.ndarray, *colors: tuple[int, int, int]) -> Image.Image:
    mask = Image.fromarray(indices)
    mask.putpalette([value for color in colors for value in color])
    return mask


WHITE, BLACK, GRAY, RED = (255, 255, 255), (0, 0, 0), (90, 90, 90), (200, 0, 0)


def everywhere(photo: Path, mask: Path) -> list[np.ndarray | str]:
    """The label, or the refusal, of a mask's file on the command line, as file and as PIL image."""

    def outcome(load: Callable[[], tuple]) -> np.ndarray | str:
        try:
            return load()[1]
        except UserError as error:
            return str(error).replace(str(mask), "MASK").replace("example 1", "MASK")

    return [
        outcome(lambda: parse_support(f"{photo}:{mask}")[1].load("--support")),
        outcome(lambda: Example(photo, mask=mask).load("example 1")),
        outcome(lambda: Example(str(photo), mask=Image.open(mask)).load("example 1")),
    ]


MASKS = {
    "ids": lambda: Image.fromarray(an_object()),
    "0 and 255": lambda: Image.fromarray(255 * an_object()),
    "1 bit": lambda: Image.fromarray(255 * an_object()).convert("1"),
    "other value": lambda: Image.fromarray(7 * an_object()),
    "16 bits": lambda: Image.fromarray(300 * an_object().astype(np.uint16)),
    "white of 16 bits": lambda: Image.fromarray(65535 * an_object().astype(np.uint16)),
    "VOC's palette": lambda: with_palette(an_object(), *np.reshape(voc_palette(), (-1, 3))),
    "dark background": lambda: with_palette(an_object(), GRAY, WHITE),
    "gray above black by index": lambda: with_palette(an_object(), BLACK, RED),
}


@pytest.mark.parametrize("kind", MASKS)
def test_mask_of_an_object_means_the_same_in_every_form_and_at_every_entrance(
    kind: str, tmp_path: Path
) -> None:
    Image.fromarray(a_photo()).save(tmp_path / "photo.jpg")
    MASKS[kind]().save(tmp_path / "mask.png")
    for label in everywhere(tmp_path / "photo.jpg", tmp_path / "mask.png"):
        assert isinstance(label, np.ndarray), label
        assert np.array_equal(label, an_object()) and label.dtype == np.uint8


REFUSED = {
    "white background": (lambda: with_palette(an_object(), WHITE, BLACK), "brighter than index 1"),
    "object at index 0": (lambda: with_palette(1 - an_object(), RED, BLACK), "brighter than index"),
    "brighter by a little": (lambda: with_palette(3 * an_object(), GRAY, RED, RED, BLACK), "3"),
    "RGB": (lambda: Image.fromarray(np.dstack([255 * an_object()] * 3)), "of mode RGB"),
    "all ignored": (lambda: Image.fromarray(0 * an_object() + 255), "255 means ignored"),
    "ignored in a palette": (
        lambda: with_palette(255 * an_object(), *np.reshape(voc_palette(), (-1, 3))),
        "255 means ignored",
    ),
    "empty": (lambda: Image.fromarray(0 * an_object()), "mark the object"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_mask_whose_meaning_would_be_a_guess_is_refused_alike_with_a_remedy(
    kind: str, tmp_path: Path
) -> None:
    make, words = REFUSED[kind]
    Image.fromarray(a_photo()).save(tmp_path / "photo.jpg")
    make().save(tmp_path / "mask.png")
    for told in everywhere(tmp_path / "photo.jpg", tmp_path / "mask.png"):
        assert isinstance(told, str) and words in told and ";" in told


@pytest.mark.parametrize(("index", "inverted"), [(0, True), (1, False)])
def test_named_index_of_a_bright_palette_is_the_object(
    index: int, inverted: bool, tmp_path: Path
) -> None:
    Image.fromarray(a_photo()).save(tmp_path / "photo.jpg")
    with_palette(an_object(), WHITE, BLACK).save(tmp_path / "mask.png")
    word = f"{tmp_path}/photo.jpg:{tmp_path}/mask.png#{index}"
    label = parse_support(word)[1].load("--support")[1]
    assert np.array_equal(label, an_object() ^ inverted)


def test_several_colors_with_a_white_background_are_accepted(tmp_path: Path) -> None:
    """Only with two colors may either one be the background."""
    Image.fromarray(a_photo()).save(tmp_path / "photo.jpg")
    two = an_object().copy()
    two[:5] = 2
    with_palette(two, WHITE, RED, BLACK).save(tmp_path / "mask.png")
    for label in everywhere(tmp_path / "photo.jpg", tmp_path / "mask.png"):
        assert np.array_equal(label, two > 0)


def test_own_prediction_is_a_support_again(
    predictor: Predictor, small_run: SimpleNamespace, tmp_path: Path
) -> None:
    photo = small_run.episodes.source.image_path(small_run.episodes.sampler.fold.images[0])
    predictor.add_class("first", Example(photo, box=(20, 20, 90, 90)))
    mask = predictor.predict(photo).mask
    if not mask.any():
        mask[20:90, 20:90] = 1
    Image.fromarray(mask * 255).save(tmp_path / "saved.png")  # as `final` of the page
    for label in everywhere(photo, tmp_path / "saved.png"):
        assert np.array_equal(label, mask)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_picture_has_the_same_pixels_at_every_entrance(
    suffix: str, orientation: int, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 1 if suffix == "bmp" else orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(a_photo()).save(path, exif=exif)
    image = read_image(path)
    assert np.array_equal(pictures.open_upload(path), image)
    assert np.array_equal(as_rgb(Image.open(path)), image)
    assert np.array_equal(reduced_rgb(path)[0], image)


@pytest.mark.parametrize("name", ["grey_0_255", "one_bit"])
def test_trial_15_binary_masks_are_one_support(name: str, tmp_path: Path) -> None:
    folder = lay("15_binary_masks", tmp_path / "trial")
    expected = np.array(Image.open(folder / "one_bit.png"))
    for label in everywhere(folder / "support.jpg", folder / f"{name}.png"):
        assert np.array_equal(label, expected)
    for told in everywhere(folder / "support.jpg", folder / "rgb.png"):
        assert isinstance(told, str) and "is a PNG of mode RGB" in told


def test_trial_03_palette_in_another_order_is_refused_and_its_index_can_be_named(
    tmp_path: Path,
) -> None:
    folder = lay("03_palette_order", tmp_path / "trial")
    for told in everywhere(folder / "support.jpg", folder / "support_mask.png"):
        assert isinstance(told, str) and "index 0 of its palette" in told
    word = f"{folder}/support.jpg:{folder}/support_mask.png#0"
    label = parse_support(word)[1].load("--support")[1]
    assert np.array_equal(label, np.array(Image.open(folder / "same_mask_as_index.png")))


def test_hidden_and_other_files_of_a_query_folder_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.jpg", "._a.jpg", ".b.png", "notes.txt", "C.TIFF"):
        (tmp_path / name).write_bytes(b"x")
    with caplog.at_level("INFO", "amformer"):
        assert find_queries([str(tmp_path)]) == [tmp_path / "C.TIFF", tmp_path / "a.jpg"]
    told = caplog.text
    assert "not used: 2 hidden files, such as ._a.jpg" in told and "such as notes.txt" in told


def test_tilde_is_the_home_folder_in_words_and_in_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    Image.fromarray(a_photo()).save(tmp_path / "photo.jpg")
    Image.fromarray(an_object()).save(tmp_path / "mask.png")
    label = parse_support("cup=~/photo.jpg:~/mask.png")[1].load("--support")[1]
    assert np.array_equal(label, an_object())
    assert np.array_equal(Example("~/photo.jpg", mask="~/mask.png").load("x")[1], label)
    assert find_queries(["~/photo.jpg"]) == [tmp_path / "photo.jpg"]


def test_label_of_a_large_photograph_has_its_own_coordinates(tmp_path: Path) -> None:
    """2,100 x 4,200 pixels are reduced by 2; box, points and mask are those of the file."""
    Image.fromarray(a_photo(2100, 4200)).save(tmp_path / "a.jpg")
    mask = np.zeros((2100, 4200), np.uint8)
    mask[400:1200, 2000:3000] = 1
    Image.fromarray(mask).save(tmp_path / "a.png")
    for photo in (tmp_path / "a.jpg", Image.open(tmp_path / "a.jpg"), a_photo(2100, 4200)):
        for label in (mask, tmp_path / "a.png"):
            image, found = Example(photo, mask=label).load("x")
            assert image.shape == (1050, 2100, 3) and np.array_equal(found, mask[::2, ::2])
        assert np.array_equal(Example(photo, box=(2000, 400, 3000, 1200)).load("x")[1], found)
        with pytest.raises(UserError, match="leaves the image of 4200x2100 pixels"):
            Example(photo, box=(0, 0, 4201, 10)).load("x")


def test_mask_of_a_large_query_has_the_size_of_the_query(
    predictor: Predictor, tmp_path: Path
) -> None:
    Image.fromarray(a_photo(2100, 4200)).save(tmp_path / "a.jpg")
    predictor.add_class("a", Example(a_photo(), mask=an_object()))
    result = predictor.predict(tmp_path / "a.jpg")
    assert result.mask.shape == (2100, 4200) and result.scores.shape == (1, 1050, 2100)


def peak_of(*words: object) -> int:
    """Peak memory of a process in bytes."""
    code = (
        "import runpy, sys; from util.runtime.system import resident_peak\n"
        "sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: print('peak', resident_peak())"
    )
    command = [sys.executable, "-c", code, *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["jpg", "progressive.jpg", "png", "webp", "bmp", "tif"])
@pytest.mark.parametrize("role", ["query", "support"])
def test_photograph_of_108_megapixels_takes_at_most_eight_bytes_a_pixel_more_than_a_small_one(
    suffix: str, role: str, small_run: SimpleNamespace, tmp_path: Path
) -> None:
    large, small = tmp_path / f"large.{suffix}", tmp_path / "small.jpg"
    options = {"progressive": True} if "progressive" in suffix else {"compress_level": 1}
    Image.fromarray(a_photo(9000, 12000)).save(large, **options)
    Image.fromarray(a_photo()).save(small)
    words = [ROOT / "predict.py", "--checkpoint", small_run.checkpoint, "--out", tmp_path / "out"]
    needed = peak_of(*words, "--support", f"{small}:box=20,10,60,40", "--query", small)
    box = "20,10,60,40" if role == "query" else "2000,1000,9000,7000"
    support, query = (small, large) if role == "query" else (large, small)
    peak = peak_of(*words, "--support", f"{support}:box={box}", "--query", query)
    assert peak <= max(needed, GB) + 8 * 9000 * 12000, (needed, peak)
    lines = (tmp_path / "out/predictions.jsonl").read_text().splitlines()
    sizes = {(line["height"], line["width"]) for line in map(json.loads, lines)}
    assert ((9000, 12000) in sizes) == (role == "query")
