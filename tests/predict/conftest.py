"""Fixtures of the tests of prediction."""

import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest

import predict as entry
from util.predict import Predictor
from util.runtime.cli import main


@pytest.fixture(scope="module")
def loaded(small_run: SimpleNamespace) -> Predictor:
    return Predictor.from_checkpoint(small_run.checkpoint)


@pytest.fixture
def predictor(loaded: Predictor) -> Predictor:
    """A predictor without classes."""
    loaded.clear()
    return loaded


@pytest.fixture
def predict(
    small_run: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[..., tuple[int, str]]:
    """predict.py with the small checkpoint: words -> exit status and stderr."""

    def predict(*words: object) -> tuple[int, str]:
        checkpoint = ["--checkpoint", str(small_run.checkpoint)]
        monkeypatch.setattr(sys, "argv", ["predict.py", *checkpoint, *map(str, words)])
        try:
            main(entry.predict)
        except SystemExit as stop:
            return int(stop.code), capsys.readouterr().err
        return 0, capsys.readouterr().err

    return predict
