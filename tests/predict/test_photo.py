"""The weights for photographs: small, found by name, and the same on every machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import ROOT
from PIL import Image

from util.checkpoint.export import read_metadata
from util.predict import Example, Predictor, examples, show
from util.predict.command import PHOTO
from util.runtime.cli import main

MASKS = """
import sys
import numpy as np
import torch
from util.predict import Example, Predictor, examples

torch.set_num_threads(int(sys.argv[2]))
predictor = Predictor.from_pretrained("photo")
box = examples.BOXES["cheetah1"]
predictor.add_class("cheetah", Example(examples.photograph("cheetah1"), box=box))
names = [name for name in examples.BOXES if name != "cheetah1"]
np.savez(sys.argv[1], **{n: predictor.predict(examples.photograph(n)).mask for n in names})
"""


@pytest.fixture(scope="module")
def photo() -> Predictor:
    predictor = Predictor.from_pretrained("photo")
    box = examples.BOXES["cheetah1"]
    predictor.add_class("cheetah", Example(examples.photograph("cheetah1"), box=box))
    return predictor


def test_file_is_small_and_says_what_it_was_trained_on_and_how_well_it_does() -> None:
    content = PHOTO.read_bytes()
    assert len(content) <= 12e6
    metadata = read_metadata(content, PHOTO)
    data = json.loads(metadata["config"])["Data"]
    assert data["data_set"] == "mix" and len(data["classes"]) > 100
    assert json.loads(metadata["scores"])["mask"]["final"] > 0
    assert metadata["backbone"]  # that of the package is not in the file


@pytest.mark.parametrize("name", ["cheetah", "cheetah2"])
def test_cheetahs_are_found_by_one_box_around_another(photo: Predictor, name: str) -> None:
    """At least half of what is marked lies in the box around the cheetah, and half fills it."""
    box = examples.BOXES[name]
    mask = photo.predict(examples.photograph(name)).mask
    inside = mask[int(box.y0) : int(box.y1), int(box.x0) : int(box.x1)]
    assert inside.mean() > 0.25 and inside.sum() > 0.5 * mask.sum()


def test_masks_differ_at_borders_only_between_instruction_sets_and_numbers_of_threads(
    tmp_path: Path,
) -> None:
    found = []
    for kind, threads in (("AVX2", "1"), ("DEFAULT", "2")):
        file = tmp_path / f"{kind}.npz"
        limits = {"ONEDNN_MAX_CPU_ISA": kind, "ATEN_CPU_CAPABILITY": kind.lower()}
        words = [sys.executable, "-c", MASKS, str(file), threads]
        subprocess.run(words, cwd=ROOT, env={**os.environ, **limits}, check=True)
        found.append(np.load(file))
    for name in found[0]:
        one, other = (each[name] for each in found)
        # A border is where a disc of a hundredth of the image meets both sides.
        size = max(3, max(one.shape) // 100 * 2 + 1)
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
        border = cv2.dilate(one, disc) != cv2.erode(one, disc)
        assert not ((one != other) & ~border).any()
        assert (one != other).mean() < 0.002


def test_make_try_writes_one_picture_of_all_photographs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, console: None
) -> None:
    out = tmp_path / "try.png"
    monkeypatch.setattr(sys, "argv", ["show", "--out", str(out)])
    main(show.show)
    width, height = Image.open(out).size
    assert width > 4 * 190 and height > 4 * 190
    said = capsys.readouterr().out
    assert str(out) in said and "predict.py --support" in said
