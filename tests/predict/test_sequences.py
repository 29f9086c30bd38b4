"""Sequences: scores of every label of the first frame, against a literal computation."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from helpers.pictures import refused

from util.predict import Box, Example, Predictor, sequences
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


@pytest.mark.parametrize(
    ("label", "count"), [("mask", 4), ("box", 2), *[("other object", n) for n in (2, 3, 4)]]
)
def test_scores_are_those_of_a_literal_computation(
    label: str, count: int, davis: Path, predictor: Predictor
) -> None:
    every = sequences.find_sequences(davis)
    chosen = {name: every[name] for name in NAMES[:count]}
    found = sequences.score_sequences(predictor, chosen, label)
    rows = []
    for number, name in enumerate(NAMES[:count]):
        shown = number if label != "other object" else (number + count // 2) % count
        assert label != "other object" or shown != number
        first = davis / "JPEGImages" / NAMES[shown] / "00000.jpg"
        mask = read_mask(davis / "Annotations" / first.parent.name / "00000.png")
        ys, xs = np.nonzero(mask)
        box = Box(xs.min(), ys.min(), xs.max() + 2, ys.max() + 2)  # one pixel more, as published
        how = {"box": box} if label == "box" else {"mask": mask.astype(np.uint8)}
        predictor.clear()
        predictor.add_class("it", Example(first, **how))
        ious = []
        for frame in ("00010", "00020"):
            stages = predictor.explain(davis / "JPEGImages" / name / f"{frame}.jpg")
            target = read_mask(davis / "Annotations" / name / f"{frame}.png")
            priors = [stages.prior >= t for t in sequences.THRESHOLDS]
            masks = np.stack([stages.final == 1, stages.refinements[-1] == 1, *priors])
            ious.append((masks & target).sum((1, 2)) / (masks | target).sum((1, 2)))
        rows.append(100 * np.mean(ious, axis=0))
        assert found["sequences"][name] == pytest.approx(rows[-1][0], abs=0.051)
    final, meta, *priors = np.mean(rows, axis=0)
    for name, wanted in (("final", final), ("meta", meta), ("prior", max(priors))):
        assert found[name] == pytest.approx(wanted, abs=0.006)
    assert found["prior"] > 0


def test_command_writes_the_scores(
    davis: Path, small_run: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "davis.json"
    words = [str(davis), "--checkpoint", str(small_run.checkpoint), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["sequences", *words])
    main(sequences.evaluate)
    scores = json.loads(out.read_text())
    assert [scores[key] for key in ("size", "sequences", "frames")] == ["65x65", 4, 8]
    assert list(scores)[3:] == ["mask", "box", "point", "other object"]
    for word in ("Annotations/ball/00000.png", "JPEGImages/cart/00020.jpg"):  # inputs
        before = (davis / word).read_bytes()
        monkeypatch.setattr(
            sys, "argv", ["sequences", *words[:-1], str(davis / word), "--overwrite"]
        )
        with pytest.raises(SystemExit):
            main(sequences.evaluate)
        assert (davis / word).read_bytes() == before


def test_sequence_in_two_resolutions_is_refused(davis: Path, tmp_path: Path) -> None:
    for kind in ("JPEGImages", "Annotations"):
        for size in ("480p", "1080p"):
            shutil.copytree(davis / kind, tmp_path / kind / size)
    refused(["1080p", "480p", "are one sequence"], sequences.find_sequences, tmp_path)
    for kind in ("JPEGImages", "Annotations"):
        shutil.rmtree(tmp_path / kind / "1080p")
    assert list(sequences.find_sequences(tmp_path)) == list(NAMES)


def test_folder_without_sequences_or_masks_is_refused(davis: Path, tmp_path: Path) -> None:
    refused(["holds 0 sequences"], sequences.find_sequences, tmp_path)
    picture = tmp_path / "JPEGImages/one/00000.jpg"
    picture.parent.mkdir(parents=True)
    picture.write_bytes((davis / "JPEGImages/ball/00000.jpg").read_bytes())
    refused(["no such mask", "00000.jpg"], sequences.find_sequences, tmp_path)
