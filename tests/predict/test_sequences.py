"""Sequences: scores of every label of the first frame, against a literal computation."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from helpers.pictures import refused

from util.predict import Example, Predictor, sequences
from util.runtime.cli import main

FRAMES = 3
NAMES = ("arrow", "ball", "cart", "door")


@pytest.fixture(scope="module")
def davis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four sequences in the layout of DAVIS: a square moves over a plain ground."""
    folder = tmp_path_factory.mktemp("davis")
    for number, name in enumerate(NAMES):
        for frame in range(FRAMES):
            picture = np.full((48, 64, 3), 40 * number + 20, np.uint8)
            mask = np.zeros((48, 64), np.uint8)
            place = slice(8, 36), slice(6 + 8 * frame, 34 + 8 * frame)
            picture[place], mask[place] = (200, 60 * number, 30), 255
            for kind, suffix, content in (
                ("JPEGImages", "jpg", picture),
                ("Annotations", "png", mask),
            ):
                path = folder / kind / name / f"{10 * frame:05}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), content)
    return folder


def read_mask(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 127


def test_scores_are_those_of_a_literal_computation(davis: Path, predictor: Predictor) -> None:
    found = sequences.score_sequences(predictor, sequences.find_sequences(davis))
    assert found["sequences"] == 4 and found["frames"] == 4 * (FRAMES - 1)
    assert list(found["labels"]) == ["mask", "box", "point", "other object"]
    for shift, label in ((0, "mask"), (3, "other object")):
        finals, metas = [], []
        for number, name in enumerate(NAMES):
            first = davis / "JPEGImages" / NAMES[(number + shift) % 4] / "00000.jpg"
            mask = read_mask(davis / "Annotations" / first.parent.name / "00000.png")
            predictor.clear()
            predictor.add_class("it", Example(first, mask=mask.astype(np.uint8)))
            ious = []
            for frame in ("00010", "00020"):
                stages = predictor.explain(davis / "JPEGImages" / name / f"{frame}.jpg")
                target = read_mask(davis / "Annotations" / name / f"{frame}.png")
                masks = np.stack([stages.final, stages.refinements[-1]]) == 1
                ious.append((masks & target).sum((1, 2)) / (masks | target).sum((1, 2)))
            final, meta = np.mean(ious, axis=0)
            finals.append(final)
            metas.append(meta)
            assert found["labels"][label]["sequences"][name] == round(100 * final, 1)
        assert found["labels"][label]["final"] == pytest.approx(100 * np.mean(finals), abs=0.01)
        assert found["labels"][label]["meta"] == pytest.approx(100 * np.mean(metas), abs=0.01)
    assert all(0 <= row["prior"] <= 100 for row in found["labels"].values())


def test_command_writes_the_scores(
    davis: Path, small_run: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "davis.json"
    words = [str(davis), "--checkpoint", str(small_run.checkpoint), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["sequences", *words])
    main(sequences.evaluate)
    assert json.loads(out.read_text())["size"] == "65x65"


def test_folder_without_sequences_or_masks_is_refused(davis: Path, tmp_path: Path) -> None:
    refused(["holds 0 sequences"], sequences.find_sequences, tmp_path)
    picture = tmp_path / "JPEGImages/one/00000.jpg"
    picture.parent.mkdir(parents=True)
    picture.write_bytes((davis / "JPEGImages/ball/00000.jpg").read_bytes())
    refused(["no such mask", "00000.jpg"], sequences.find_sequences, tmp_path)
