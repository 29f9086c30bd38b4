"""Each cause has its own sentence: nothing drawn, images absent, no links, a full disk."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import ROOT
from helpers.downloads import a_label, make_voc, refused, run, snapshot, write_jpeg, write_mask
from helpers.entries import call
from helpers.trials import lay

import train_base
from util.data.lists import FoldList, restrict_to_images
from util.runtime.errors import UserError
from util.runtime.files import unwritable


def data_set(folder: Path, label: Callable[[int], np.ndarray], pictures: bool = True) -> Path:
    """A custom data set of six images and classes a, b, c; returns a config, whose novel is c."""
    (folder / "images").mkdir(parents=True)
    for number in range(6):
        if pictures:
            write_jpeg(folder / f"images/p{number}.jpg", 80, 80)
        write_mask(folder / f"masks/p{number}.png", label(number))
    (folder / "classes.txt").write_text("a\nb\nc\n")
    config = {
        "_base_": str(ROOT / "config/_base_/demo.yaml"),
        "Data": {"data_set": "custom", "data_root": str(folder), "list_dir": f"{folder}/../lists",
                 "novel": ["c"], "missing": "skip"},
        "Method": {"pre_weight": f"{folder}/../base.pth"},
        "Train": {"save_path": f"{folder}/../exp"},
    }  # fmt: skip
    path = folder.parent / "fold.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def square(value: int, side: int = 60) -> np.ndarray:
    label = np.zeros((80, 80), np.uint8)
    label[:side, :side] = value
    return label


def stage_one(config: Path, capsys: pytest.CaptureFixture) -> str:
    words = ["--config", str(config), "--gpus", "0", "Base.max_iterations=1", "Base.batch_size=2"]
    assert call(train_base.train_base, *words, config=False) == 2
    [line] = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    return line


@pytest.mark.parametrize(
    "label", [lambda _: square(0), lambda _: square(255), lambda _: square(3)],
    ids=["empty", "ignored", "only a novel class"],
)  # fmt: skip
def test_masks_without_a_pixel_of_a_base_class_are_said_to_be_that(
    label: Callable[[int], np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    told = stage_one(data_set(tmp_path / "data", label), capsys)
    assert "none of the 6 masks has a pixel of a base class (a, b)" in told
    assert "data_root" not in told and "label such objects" in told


def test_absent_images_are_said_to_be_absent(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = data_set(tmp_path / "data", lambda n: square(1 + n % 3), pictures=False)
    told = stage_one(config, capsys)
    assert "has none of the 6 listed images, p0 first; unpack them" in told


def test_trial_13_boxes_without_pixels_are_not_said_to_be_absent_images(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = lay("13_nothing_drawn", tmp_path / "trial")
    words = ["--images", folder / "photos", "--labels", folder / "labels.json"]
    made = run("custom", *words, "--out", folder / "out")
    if made.status == 0:
        told = stage_one(folder / "fold.yaml", capsys)
        assert "has a pixel of a base class" in told
    else:  # `prepare` may see it first
        told = made.err
    assert "none of the listed images" not in told and "data_root" not in told


def a_list(count: int) -> FoldList:
    ids = [f"p{number}" for number in range(count)]
    return FoldList(ids, {1: ids}, dict.fromkeys(ids, (1,)), ("a", "b"), 2048)


@pytest.mark.parametrize(
    ("listed", "on_disk", "shot", "words"),
    [
        (0, 0, 1, "no mask has 2048 pixels of a class that is wanted here (a); label"),
        (4, 0, 1, "none of the 4 images of the fold's list is on disk, p0 first; unpack"),
        (4, 4, 5, "no class has enough images (left out class 1 (a): 4 images, 5-shot needs 6)"),
        (4, 1, 1, "no class has enough images (left out class 1 (a): 1 images, 1-shot needs 2)"),
    ],
)
def test_list_without_an_image_says_which_of_three_reasons_it_has(
    listed: int, on_disk: int, shot: int, words: str
) -> None:
    fold = a_list(listed)
    with pytest.raises(UserError) as error:
        restrict_to_images(fold, fold.images[:on_disk], shot)
    assert words in str(error.value) and ";" in str(error.value)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES])
def test_disk_without_links_is_told_from_a_full_one_and_copying_helps(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def symlink(source: object, target: object, *_: object) -> None:
        raise OSError(number, os.strerror(number), str(source), None, str(target))

    monkeypatch.setattr(os, "symlink", symlink)
    voc, sbd = make_voc(tmp_path)
    words = ["voc", "--voc", voc, "--sbd", sbd, "--out", tmp_path / "data"]
    answer = run(*words)
    refused(answer, "cannot be a link", os.strerror(number), "add --copy")
    assert "make room" not in answer.err
    assert run(*words, "--copy").status == 0 and len(snapshot(tmp_path / "data")) > 10
    assert a_label(0).any()


def test_trial_17_folder_without_links_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = lay("17_no_symlinks", tmp_path / "trial")

    def symlink(source: object, target: object, *_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported", source, None, target)

    monkeypatch.setattr(os, "symlink", symlink)
    words = ["--images", folder / "photos", "--labels", folder / "labels.json"]
    answer = run("custom", *words, "--out", folder / "out")
    refused(answer, "cannot be a link", "add --copy")
    assert run("custom", *words, "--out", folder / "out", "--copy").status == 0


@pytest.mark.parametrize(
    ("number", "room"),
    [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EACCES, False), (errno.EROFS, False),
     (errno.ENOTDIR, False)],
)  # fmt: skip
def test_room_is_asked_for_only_where_the_disk_is_full(number: int, room: bool) -> None:
    text = str(unwritable("x.png", OSError(number, os.strerror(number)), "choose another --out"))
    assert ("make room" in text) == room and text.endswith("choose another --out")
    assert text.startswith(f"x.png: cannot be written ({os.strerror(number)}); ")
