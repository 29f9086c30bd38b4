"""Weights that are finite and whose scores are not: no NaN is counted, drawn or written."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.entries import call
from PIL import Image

import test as test_entry
from util.checkpoint.file import read_checkpoint, write_checkpoint
from util.evaluate.finite import NotFinite
from util.predict import Example, Predictor, pictures
from util.predict import page as page_file
from util.predict.coco import coco_file

TOLD = "the scores of these weights are not finite (NaN or infinity)"
PICTURE = np.random.default_rng(0).integers(0, 256, (60, 70, 3), np.uint8)
MASK = np.zeros((60, 70), np.uint8)
MASK[15:45, 20:50] = 1


@pytest.fixture(scope="module")
def bad(small_run: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with finite weights so large that sums of them are not."""
    state = read_checkpoint(small_run.checkpoint)
    for name, value in state["model"].items():
        if value.ndim == 4 and not name.startswith("encoder."):
            state["model"][name] = torch.full_like(value, 3e38)
    path = tmp_path_factory.mktemp("bad") / "best.pth"
    write_checkpoint(path, **state)
    return path


def test_predictor_and_page_say_it_and_draw_nothing(bad: Path, tmp_path: Path) -> None:
    predictor = Predictor.from_checkpoint(bad)
    predictor.add_class("object", Example(PICTURE, mask=MASK))
    for ask in (predictor.predict, predictor.explain):
        with pytest.raises(NotFinite) as error:
            ask(PICTURE)
        assert str(error.value).startswith(TOLD)
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    layer = np.zeros((60, 70, 4), np.uint8)
    layer[15:45, 20:50] = 255
    support = pictures.MarkedImage(PICTURE, np.zeros((60, 70), bool))
    marked = support, {"background": layer, "layers": [layer]}, pictures.OBJECT, []
    page = page_file.Page(Predictor(predictor.model, predictor.cfg), [], "")
    *_, (rows, packed, _) = page.segment(*marked, [(str(tmp_path / "a.png"), None)])
    assert TOLD in rows and not packed["interactive"]


def test_predict_names_each_image_and_writes_lines_that_every_json_reader_takes(
    bad: Path, predict: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    for number in range(2):
        Image.fromarray(PICTURE).save(tmp_path / f"{number}.png")
    Image.fromarray(MASK).save(tmp_path / "mask.png")
    query = [tmp_path / "0.png", tmp_path / "1.png"]
    words = ["--support", f"{tmp_path}/0.png:{tmp_path}/mask.png", "--out", tmp_path / "out"]
    status, told = predict("--checkpoint", bad, *words, "--query", *query, "--format", "coco")
    assert status == 2 and told.count("error: ") == 1 and f"{query[0]}: {TOLD}" in told
    assert "; 2 of 2 queries failed" in told
    text = (tmp_path / "out/predictions.jsonl").read_text()
    lines = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert [TOLD in line["error"] for line in lines] == [True, True]
    assert not (tmp_path / "out/coco.json").exists()


@pytest.mark.parametrize("more", [[], ["Eval.way=2"]])
def test_test_names_image_and_remedy_and_writes_no_result(
    more: list[str],
    bad: Path,
    small_run: SimpleNamespace,
    tmp_path: Path,
    capfd: pytest.CaptureFixture,
) -> None:
    words = [f"Train.save_path={tmp_path}", f"Eval.weight={bad}", "Eval.episodes=2"]
    assert call(test_entry.test, *small_run.words, *words, "Eval.seeds=[5]", *more) == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: image ") and TOLD in last and "name other weights" in last
    assert not list(tmp_path.glob("result*.json")) and not list(tmp_path.glob("episodes*"))


def test_coco_file_is_never_written_with_nan() -> None:
    segment = {"segmentation": [], "area": 1, "bbox": [0, 0, 1, 1]}
    classes = {"a": {"score": float("nan"), "segments": [segment]}}
    line = {"picture": "/a/b.png", "width": 1, "height": 1, "classes": classes}
    with pytest.raises(ValueError, match="not JSON compliant"):
        coco_file([line])
