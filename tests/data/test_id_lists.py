"""Lists of images that people wrote: each line that names no mask is told of, and the near one."""

import os
from pathlib import Path

import numpy as np
import pytest
from helpers.entries import call
from PIL import Image

from util.data.check import _main as check_entry
from util.data.source import Source
from util.runtime.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data set of the images p0 to p3, `my photo` and `trail `."""
    for name in ("p0", "p1", "p2", "p3", "my photo", "trail "):
        for part, suffix in (("images", "jpg"), ("masks", "png")):
            path = tmp_path / part / f"{name}.{suffix}"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.ones((8, 8), np.uint8)).save(path)
    (tmp_path / "classes.txt").write_text("cup\nplate\n")
    return tmp_path


def ids(root: Path, text: str) -> list[str]:
    (root / "train.txt").write_text(text)
    return Source(root, "custom", "train", 2).image_ids()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("p0.jpg", "lists 'p0.jpg', which has no mask, but 'p0' has one"),
        ("p0.png", "but 'p0' has one"),
        ("P0", "lists 'P0', which has no mask, but 'p0' has one"),
        ("My Photo.JPEG", "but 'my photo' has one"),
        ("p0\tp0.png", "but 'p0' has one"),
        ("trail ", "but 'trail ' has one (a list cannot name it: rename the files)"),
        ("# my list", "lists '# my list', which has no mask; write names without"),
        ("p9", "lists 'p9', which has no mask; write names without folder and suffix"),
    ],
)
def test_line_that_names_no_mask_is_told_with_the_near_name(
    line: str, words: str, root: Path
) -> None:
    with pytest.raises(UserError, match="train.txt: ") as caught:
        ids(root, f"p1\n{line}\np2\n")
    assert words in str(caught.value) and "2 mistakes" not in str(caught.value)


def test_all_near_names_are_told_of_where_there_are_several(root: Path) -> None:
    for name in ("A1", "a1"):
        Image.fromarray(np.ones((8, 8), np.uint8)).save(root / f"masks/{name}.png")
    with pytest.raises(UserError, match="lists 'a1.jpg', which has no mask, but 'A1' and 'a1' ha"):
        ids(root, "p1\na1.jpg\n")


@pytest.mark.parametrize("name", ["Train.txt", "TRAIN.TXT", "train.TXT"])
def test_list_in_another_case_is_not_passed_over(name: str, root: Path) -> None:
    (root / name).write_text("p0\n")
    with pytest.raises(UserError, match=f"{name}: is not read under this name; call it train.txt"):
        Source(root, "custom", "train", 2).image_ids()
    assert len(Source(root, "custom", "val", 2).image_ids()) == 6


@pytest.mark.parametrize("line", ["/data/images/p0.jpg", "images/p0", "./p0.jpg"])
def test_line_with_a_folder_is_told_to_hold_only_the_name(line: str, root: Path) -> None:
    with pytest.raises(UserError, match="is no image name; write names without folder"):
        ids(root, f"p1\n{line}\n")


def test_all_wrong_lines_come_in_one_message_of_ten(root: Path) -> None:
    with pytest.raises(UserError, match=r"12 mistakes: .* and 2 more; write names"):
        ids(root, "".join(f"q{n}.jpg\n" for n in range(12)))
    with pytest.raises(UserError, match="2 mistakes: 'a/b' is no image name; 'c/d' is"):
        ids(root, "a/b\np0\nc/d\n")


@pytest.mark.parametrize("text", ["", "\n \n", "\ufeff"])
def test_list_without_a_name_is_said_to_be_that(text: str, root: Path) -> None:
    with pytest.raises(UserError, match="train.txt: names no image; write .* or delete it"):
        ids(root, text)


def test_names_with_spaces_inside_and_around_are_taken(root: Path) -> None:
    assert ids(root, "my photo\n p0 \np1\r\np0\n") == ["my photo", "p0", "p1"]


@pytest.mark.parametrize("name", ["train.txt", "classes.txt"])
def test_list_that_is_a_pipe_or_a_dead_link_is_told_of_at_once(
    name: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = tmp_path / "fold.yaml"
    config.write_text(
        f"Data: {{data_set: custom, data_root: {root}, novel: [cup], list_dir: {root}/lists}}\n"
        f"Method: {{pre_weight: {root}/base.pth}}\nTrain: {{save_path: {root}/exp}}\n"
    )
    (root / name).unlink(missing_ok=True)
    os.mkfifo(root / name)
    assert call(check_entry, str(config), config=False) == 2
    assert f"{root / name}: is a pipe or a device; name a file" in capsys.readouterr().err
    (root / name).unlink()
    (root / name).symlink_to("gone.txt")
    assert call(check_entry, str(config), config=False) == 2
    assert f"{root / name}: is a link to gone.txt, which is not there" in capsys.readouterr().err
