"""Fixtures of the tests of prediction."""

from types import SimpleNamespace

import pytest

from util.predict import Predictor


@pytest.fixture(scope="module")
def loaded(small_run: SimpleNamespace) -> Predictor:
    return Predictor.from_checkpoint(small_run.checkpoint)


@pytest.fixture
def predictor(loaded: Predictor) -> Predictor:
    """A predictor without classes."""
    loaded.clear()
    return loaded
