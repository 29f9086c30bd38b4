"""Parts of the page that need no browser: uploads, labels, rows of results."""

import base64
import json
import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from util.evaluate.visualize import heatmap
from util.predict import Box, Points, Predictor, Result, Stages, guard, pictures
from util.predict import page as page_file
from util.runtime.errors import UserError


def test_large_uploads_are_reduced(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "wide.png"), np.full((50, 4096, 3), 7, np.uint8))
    image = page_file.Page(None, [], "").load_support(str(tmp_path / "wide.png"))[0].image
    assert image.shape == (12, 1024, 3) and (image == 7).all()


def test_formats_that_may_run_programs_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "x.eps")
    (tmp_path / "x.eps").rename(tmp_path / "x.png")
    with pytest.raises(UserError, match="x.png: cannot be read as an image: it has a"):
        pictures.open_upload(tmp_path / "x.png")


def test_examples_use_images_that_are_on_disk(
    small_run: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor.from_checkpoint(small_run.checkpoint)
    root = Path(predictor.cfg.Data.data_root)
    whole = pictures.find_examples(predictor, root)
    part = shutil.copytree(root, tmp_path / "part")
    for image in sorted((part / "JPEGImages").iterdir())[::2]:
        image.unlink()
    monkeypatch.setattr(pictures, "SIDE", 48)
    examples = pictures.find_examples(predictor, part)
    assert whole and examples and len(examples) <= len(whole)
    for example in examples:
        assert max(example.support.image.shape) == 48 and example.support.mask.any()
        assert example.support.mask.shape == example.support.image.shape[:2]
        assert all(max(query.shape) == 48 for query in example.queries)


@pytest.mark.parametrize("keys", ["Data.data_root", "Data.list_dir", "Data.cache"])
def test_no_path_of_a_checkpoint_is_read_or_written(
    keys: str, small_run: SimpleNamespace, tmp_path: Path
) -> None:
    """Its author may have named a folder of the user's private pictures, or one to write to."""
    predictor = Predictor.from_checkpoint(small_run.checkpoint)
    root, trap = Path(predictor.cfg.Data.data_root), tmp_path / "private"
    shutil.copytree(root, trap)
    before = sorted(tmp_path.rglob("*"))
    data = replace(predictor.cfg.Data, **{keys.partition(".")[2]: str(trap)})
    predictor.cfg = replace(predictor.cfg, Data=data)
    assert len(pictures.find_examples(predictor, None)) == 1  # the photographs of gradio
    assert len(pictures.find_examples(predictor, root)) > 1
    assert sorted(tmp_path.rglob("*")) == before


def stages(initial: np.ndarray) -> Stages:
    """A result without an object, and with this initial mask."""
    nothing = np.zeros(initial.shape, np.uint8)
    zeros = nothing.astype(np.float32)
    return Stages(zeros, initial, (nothing,) * 3, Result(nothing, zeros[None], (0.0,), None))


def test_file_names_are_escaped_in_html() -> None:
    assert "<b>" not in guard.PageError("<b>.png: broken").message
    assert "<b>" not in page_file.error_row(1, "<b>.png: broken")
    picture = np.zeros((5, 6, 3), np.uint8)
    row = page_file.result_row(1, "<b>.png", picture, picture, stages(np.zeros((5, 6), np.float32)))
    assert "<b>" not in row


def test_initial_mask_is_drawn_as_heat() -> None:
    initial = np.repeat(np.linspace(0, 1, 64, dtype=np.float32)[None], 48, axis=0)
    picture = np.zeros((48, 64, 3), np.uint8)
    row = page_file.result_row(1, "a.png", picture, picture, stages(initial))
    source = re.search('src="([^"]*)" alt="initial mask of query 1"', row)[1]
    content = np.frombuffer(base64.b64decode(source.partition(",")[2]), np.uint8)
    drawn = cv2.imdecode(content, cv2.IMREAD_COLOR_RGB).astype(float)
    assert np.abs(drawn - heatmap(initial)).mean() < 5  # JPEG is lossy


def test_box_is_the_bounding_box_of_the_paint() -> None:
    support = pictures.MarkedImage(np.zeros((40, 50, 3), np.uint8), np.zeros((40, 50), bool))
    layer = np.zeros((40, 50, 4), np.uint8)
    layer[5, 7] = layer[20, 30] = 153  # two corners
    mask = pictures.painted_mask(support, [layer])
    assert pictures.bounding_box(mask) == Box(7, 5, 31, 21)
    with pytest.raises(UserError, match="does not fit"):
        pictures.painted_mask(support, [layer[:9]])


def painted(*dabs: tuple[int, int]) -> tuple[pictures.MarkedImage, np.ndarray]:
    """An unmarked support, and a layer with squares of 5 x 5 pixels around these places (x, y)."""
    support = pictures.MarkedImage(np.zeros((60, 70, 3), np.uint8), np.zeros((60, 70), bool))
    layer = np.zeros((60, 70, 4), np.uint8)
    for x, y in dabs:
        layer[y - 2 : y + 3, x - 2 : x + 3] = 153
    return support, layer


def test_each_dab_is_a_point_and_lies_on_the_paint() -> None:
    support, layer = painted((10, 20), (50, 40))
    example = pictures.marked_example(support, [layer], pictures.POINTS)
    assert example.points == Points([(10, 20), (50, 40)])
    ring = np.zeros((60, 70), np.uint8)
    cv2.circle(ring, (35, 30), 20, 1, 2)
    [(x, y)] = pictures.dab_centers(ring == 1)
    assert ring[int(y), int(x)] == 1  # its center is empty


def test_supports_of_a_visitor_are_the_kept_ones_and_the_painted_one() -> None:
    support, layer = painted((10, 20))
    editor, kind = {"background": layer, "layers": [layer]}, pictures.BOX
    one = page_file.gather_supports(support, editor, kind, [])
    two = page_file.gather_supports(support, editor, kind, one)
    assert [example.box for example in two] == 2 * [Box(8, 18, 13, 23)] and two[0] is one[0]
    assert page_file.gather_supports(None, None, kind, two) is two
    for given, words in (
        ((None, None, kind, []), "There is no support"),
        ((support, {"background": layer, "layers": []}, kind, two), "Nothing is painted"),
        ((support, editor, kind, 5 * one), "There are 5 supports already"),
    ):
        with pytest.raises(UserError, match=words):
            page_file.gather_supports(*given)


@pytest.mark.parametrize(("threshold", "told"), [(1e9, 1), (-1e9, 0), (None, 0)])
def test_object_below_the_threshold_is_called_not_here(
    threshold: float | None, told: int, loaded: Predictor, tmp_path: Path
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((60, 70, 3), 90, np.uint8))
    page = page_file.Page(Predictor(loaded.model, loaded.cfg, threshold), [], "")
    support, layer = painted((10, 20), (50, 40))
    editor = {"background": layer, "layers": [layer]}
    query = [(str(tmp_path / "a.png"), None)]
    *_, (rows, _, _) = page.segment(support, editor, pictures.BOX, [], query)
    assert rows.count("not here") == told and "final of query 1" in rows


def test_queries_of_one_name_have_files_of_their_own_and_broken_ones_give_none(
    loaded: Predictor, tmp_path: Path
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((60, 70, 3), 90, np.uint8))
    (tmp_path / "broken.png").write_text("no picture")
    page = page_file.Page(loaded, [], "")
    support, layer = painted((10, 20), (50, 40))
    marked = support, {"background": layer, "layers": [layer]}, pictures.BOX, []
    names = ["a.png", "a.png", "a_2.png", "a_3.png", "a.png"]
    for _, packed, _ in page.segment(*marked, [(str(tmp_path / "a.png"), n) for n in names]):
        if packed["interactive"]:  # the file is gone when the visit is over
            with zipfile.ZipFile(packed["value"]) as held:
                masks = [name for name in held.namelist() if name.startswith("masks/a")]
                named = [
                    image["file_name"] for image in json.loads(held.read("coco.json"))["images"]
                ]
    stems = ["a", "a_2", "a_2_2", "a_3", "a_4"]
    assert masks == [f"masks/{stem}.png" for stem in stems]
    assert named == [f"{stem}.png" for stem in stems]
    *_, (rows, packed, _) = page.segment(*marked, [(str(tmp_path / "broken.png"), None)])
    assert "cannot be read" in rows and not packed["interactive"]
