"""predict.py replaces nothing that it did not make, and adds to what it made."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.downloads import snapshot
from helpers.pictures import write_clip
from helpers.trials import lay
from PIL import Image

from util.predict import Predictor


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A hand-made data set of three images."""
    folder = tmp_path / "data"
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (60, 80, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"images/photo_{number}.jpg")
        mask = np.zeros((60, 80), np.uint8)
        mask[10:40, 20:60] = 1
        Image.fromarray(mask).save(folder / f"masks/photo_{number}.png")
    return folder


def support(data: Path) -> tuple[str, ...]:
    return "--support", f"{data}/images/photo_0.jpg:{data}/masks/photo_0.png"


def refused(answer: tuple[int, str], *words: str) -> None:
    status, error = answer
    assert status == 2 and error.startswith("error: ") and error.count("\n") == 1, error
    for word in words:
        assert word in error, error


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
@pytest.mark.parametrize("mark", ["images", "classes.txt", "JPEGImages"])
def test_masks_of_a_data_set_are_never_replaced(
    more: list[str], mark: str, predict, data: Path, tmp_path: Path
) -> None:
    target = tmp_path / "other"
    shutil.copytree(data / "masks", target / "masks")
    (target / mark).mkdir()
    for out, held in ((data, "images"), (target, mark)):
        before = snapshot(tmp_path)
        answer = predict(*support(data), "--query", data / "images", "--out", out, *more)
        refused(answer, f"holds a data set ({held})", "name another place")
        assert snapshot(tmp_path) == before


def test_trial_23_hand_made_masks_stay(predict, tmp_path: Path) -> None:
    data = lay("23_out_is_the_data_set", tmp_path / "trial") / "data"
    before = snapshot(tmp_path)
    answer = predict(*support(data), "--query", data / "images", "--out", data)
    refused(answer, f"--out {data}: holds a data set")
    assert snapshot(tmp_path) == before


def test_folder_of_the_queries_needs_overwrite_and_keeps_them(
    predict, data: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(data / "images", photos)
    before = snapshot(photos)
    words = [*support(data), "--query", photos, "--out", photos]
    refused(predict(*words), "such as photo_0.jpg", "or add --overwrite")
    assert snapshot(photos) == before
    assert predict(*words, "--overwrite")[0] == 0
    assert before.items() < snapshot(photos).items()


def test_corrected_mask_of_an_earlier_run_is_not_replaced(
    predict, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "found"
    words = [*support(data), "--query", data / "images", "--out", out]
    assert predict(*words)[0] == 0 and predict(*words)[0] == 0
    Image.fromarray(np.full((60, 80), 1, np.uint8)).save(out / "masks/photo_1.png")
    before = snapshot(out)
    refused(predict(*words), "masks/photo_1.png exists", "it was changed")
    assert snapshot(out) == before
    assert predict(*words, "--overwrite")[0] == 0


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_result_that_is_a_support_or_query_of_this_run_is_not_replaced(
    more: list[str], predict, data: Path, tmp_path: Path
) -> None:
    out, image = tmp_path / "found", data / "images/photo_0.jpg"
    assert predict(*support(data), "--query", image, "--out", out)[0] == 0
    before = snapshot(out)
    for label in (f"{out}/masks/photo_0.png", f"{data}/masks/photo_1.png"):
        words = ["--support", f"{image}:{label}", "--query", image]
        words += [] if str(out) in label else [out / "overlays/photo_0.png"]
        if str(out) not in label:
            words.remove(image)
        refused(predict(*words, "--out", out, *more), "is an input of this run")
        assert snapshot(out) == before


def test_foreign_lines_among_those_of_an_earlier_run_are_left_out_with_a_warning(
    predict, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "found"
    words = [*support(data), "--out", out, "--query"]
    assert predict(*words, data / "images/photo_0.jpg")[0] == 0
    with (out / "predictions.jsonl").open("a") as file:
        file.write('{"image": "a note"}\n7\n{"image": "a", "classes": [1]}\n{"image": "a", "cl')
    status, told = predict(*words, data / "images/photo_1.jpg", "--overwrite")
    assert status == 0 and told.count("left out a line that this command did not write") == 4
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [Path(line["image"]).stem for line in lines] == ["photo_0", "photo_1"]


def test_further_run_adds_its_lines_to_those_of_the_earlier_one(
    predict, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "found"
    for numbers in ((0, 1), (1, 2)):
        queries = [data / f"images/photo_{number}.jpg" for number in numbers]
        assert predict(*support(data), "--query", *queries, "--out", out)[0] == 0
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [Path(line["image"]).stem for line in lines] == ["photo_0", "photo_1", "photo_2"]
    for line in lines:
        assert (out / line["mask"]).is_file()


@pytest.mark.parametrize("kind", ["image", "clip", "error"])
def test_result_of_another_image_of_the_same_name_is_not_replaced(
    kind: str, predict, data: Path, tmp_path: Path
) -> None:
    out, first, second = tmp_path / "found", tmp_path / "a/photo_0.jpg", data / "images/photo_0.jpg"
    first.parent.mkdir()
    if kind == "clip":
        first = first.with_suffix(".mp4")
        write_clip(first, 2 * [np.full((60, 80, 3), 90, np.uint8)])
    else:
        shutil.copy(data / "images/photo_1.jpg", first)
    if kind == "error":
        first.write_bytes(b"\xff\xd8 torn")
    words = [*support(data), "--out", out, "--query"]
    assert predict(*words, first)[0] == (2 if kind == "error" else 0)
    before = snapshot(out)
    told = f"the result of {second} would replace that of {first}"
    refused(predict(*words, second), f"--out {out}: {told}; name another folder")
    assert snapshot(out) == before
    link = tmp_path / "link"
    link.symlink_to(first.parent)
    assert predict(*words, link / first.name)[0] == (2 if kind == "error" else 0)  # one image
    assert predict(*words, second, "--overwrite")[0] == 0
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == [str(second)]


@pytest.mark.parametrize("name", ["masks", "overlays", "review"])
@pytest.mark.parametrize("is_link", [False, True])
def test_file_in_the_place_of_a_folder_is_refused_before_the_model_is_read(
    name: str, is_link: bool, predict, data: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(Predictor, "from_checkpoint", lambda *_: pytest.fail("read the model"))
    out = tmp_path / "found"
    out.mkdir()
    (out / name).symlink_to("nowhere") if is_link else (out / name).write_text("mine")
    words = [*support(data), "--query", data / "images", "--out", out, "--overwrite"]
    refused(predict(*words), f"{out / name} is no folder", "or move it away")


def test_all_failed_queries_are_named_at_the_end(predict, data: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(data / "images", photos)
    for number in range(12):
        (photos / f"torn_{number:02}.jpg").write_bytes(b"\xff\xd8 torn")
    status, told = predict(*support(data), "--query", photos, "--out", tmp_path / "found")
    last = told.splitlines()[-1]
    assert status == 2 and last.startswith("error: --query: 12 mistakes: ")
    named = [number for number in range(12) if f"torn_{number:02}.jpg: cannot be read" in last]
    assert named == list(range(10)) and "and 2 more" in last
