"""Data.list_dir: what is there of other people and of other data sets stays."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.drawn import random_label, write_pair
from helpers.pictures import data_config, refused
from PIL import Image

from util.config import DataSection, with_class_names
from util.data.lists import write_lists
from util.data.mixed import open_source
from util.data.tables import build_table, load_table


def own(root: Path, list_dir: Path, seed: int = 0) -> DataSection:
    if not root.exists():
        rng = np.random.default_rng(seed)
        for i in range(6):
            write_pair(root / "images", root / "masks", f"a{i}", random_label(3, rng))
        (root / "classes.txt").write_text("cup\nplate\nspoon\n")
    return with_class_names(data_config(
        data_set="custom", data_root=str(root), list_dir=str(list_dir), novel=["spoon"],
        min_pixels=10, missing="skip",
    )).Data  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> DataSection:
    return own(tmp_path / "mine", tmp_path / "lists")


@pytest.mark.parametrize(
    "content",
    ["{}", "null", "[]", "5", '{"my": "labels"}', '{"images": [1]}', "\0", "{" * 5000, ""],
)
@pytest.mark.parametrize("name", ["train.json", "val.json"])
def test_table_that_a_stranger_made_is_to_be_moved_not_deleted(
    content: str, name: str, data: DataSection
) -> None:
    path = Path(data.list_dir, name)
    path.parent.mkdir()
    path.write_text(content)
    refused([f"{path}: not a table of mask contents, so another made it", "move it away, or set"],
            write_lists, data)  # fmt: skip
    assert path.read_text() == content


def changed(data: DataSection) -> None:
    mask = next(Path(data.data_root, "masks").iterdir())
    Image.fromarray(np.full_like(np.array(Image.open(mask)), 2)).save(mask)


def test_table_that_somebody_edited_is_kept_when_the_masks_change(data: DataSection) -> None:
    source = open_source(data, "train")
    load_table(source, data.list_dir)
    path = Path(data.list_dir, "train.json")
    edited = path.read_text() + "\n"
    path.write_text(edited)
    assert load_table(source, data.list_dir)  # it still says the same
    changed(data)
    refused([str(path), "or it was changed", "move it away"],
            load_table, open_source(data, "train"), data.list_dir)  # fmt: skip
    assert path.read_text() == edited


def test_table_that_this_command_made_follows_the_masks(data: DataSection) -> None:
    load_table(open_source(data, "train"), data.list_dir)
    changed(data)
    source = open_source(data, "train")
    assert load_table(source, data.list_dir) == build_table(source, source.image_ids())


def mine(data: DataSection) -> str:
    return data.data_root


@pytest.mark.parametrize(
    ("place", "word"),
    [
        (mine, "holds a data set"),
        (lambda data: f"{data.data_root}/images", "is in the data set"),
        (lambda data: f"{data.data_root}/masks/lists", "is in the data set"),
        (lambda data: f"{data.data_root}/../run", "holds a run (best.pth)"),
        (lambda data: f"{data.data_root}/../link", "holds a data set"),
    ],
)
def test_data_set_or_run_gets_no_lists(
    place: Callable[[DataSection], str], word: str, data: DataSection, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/best.pth").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    data = own(tmp_path / "mine", Path(place(data)))
    refused([f"Data.list_dir {data.list_dir}", word, "name another place"], write_lists, data)
    assert before == {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}


@pytest.mark.parametrize("same_names", [True, False])
def test_second_data_set_does_not_replace_the_table_of_the_first(
    same_names: bool, data: DataSection, tmp_path: Path
) -> None:
    write_lists(data)
    before = {path.name: path.read_bytes() for path in Path(data.list_dir).iterdir()}
    other = own(tmp_path / "other", tmp_path / "lists", seed=1)
    if not same_names:
        for folder in ("images", "masks"):
            for path in Path(other.data_root, folder).iterdir():
                path.rename(path.with_name(f"other_{path.name}"))
    refused([f"{data.list_dir}/train.json: made from {data.data_root}, not from {other.data_root}",
             "a folder of its own"], write_lists, other)  # fmt: skip
    assert before == {path.name: path.read_bytes() for path in Path(data.list_dir).iterdir()}


def test_data_set_that_was_moved_keeps_its_table_or_replaces_it(
    data: DataSection, tmp_path: Path
) -> None:
    load_table(open_source(data, "train"), data.list_dir)
    stored = Path(data.list_dir, "train.json").read_bytes()
    shutil.move(data.data_root, tmp_path / "moved")
    moved = own(tmp_path / "moved", tmp_path / "lists")
    assert load_table(open_source(moved, "train"), moved.list_dir, build=False)
    assert Path(data.list_dir, "train.json").read_bytes() == stored
    changed(moved)
    load_table(open_source(moved, "train"), moved.list_dir)
    assert json.loads(Path(data.list_dir, "train.json").read_text())["root"] == moved.data_root
