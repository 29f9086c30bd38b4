"""Photographs of an installed package: found, and labeled as they are."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from util.data.image_io import read_label
from util.predict import Example, Predictor, examples
from util.runtime.errors import UserError


@pytest.mark.parametrize("name", examples.BOXES)
def test_box_of_a_photograph_lies_inside_it(name: str) -> None:
    with Image.open(examples.photograph(name)) as picture:
        width, height = picture.size
    box = examples.BOXES[name]
    assert 0 <= box.x0 < box.x1 <= width and 0 <= box.y0 < box.y1 <= height


def test_mask_fits_its_photograph_and_fills_most_of_its_box() -> None:
    mask = read_label(examples.MASK)
    with Image.open(examples.photograph("cheetah1")) as picture:
        assert mask.shape == (picture.height, picture.width)
    box = examples.BOXES["cheetah1"]
    inside = mask[int(box.y0) : int(box.y1), int(box.x0) : int(box.x1)]
    assert set(np.unique(mask)) == {0, 1}
    assert inside.sum() == mask.sum() and 0.6 < inside.mean() < 0.9


def test_photographs_serve_as_supports_and_queries(small_run: SimpleNamespace) -> None:
    predictor = Predictor.from_checkpoint(small_run.checkpoint)
    by_mask = Example(examples.photograph("cheetah1"), mask=examples.MASK)
    by_box = Example(examples.photograph("cheetah2"), box=examples.BOXES["cheetah2"])
    predictor.add_class("cheetah", [by_mask, by_box])
    assert predictor.predict(examples.photograph("tower")).mask.shape == (600, 377)


def test_unknown_photograph_is_refused_with_the_names_that_there_are() -> None:
    with pytest.raises(UserError, match="photograph zebra: unknown; the names are cheetah, "):
        examples.photograph("zebra")


def test_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(examples, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install -r requirements-app.txt"):
        examples.photograph("lion")
