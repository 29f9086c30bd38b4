"""Downloads of other data sets: what is not used is counted, and mistakes come together."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.downloads import refused, run
from helpers.label_files import four_photos, labels, prepare
from helpers.other_sets import (
    make_chestx,
    make_deepglobe,
    make_fss1000,
    make_isic,
    make_lvis,
    write,
)

from util.data.image_io import read_label

BLACK = np.zeros((40, 48, 3), np.uint8)


def fss(root: Path, out: str = "out") -> SimpleNamespace:
    return run("fss1000", "--from", root / "in", "--out", root / out, "--workers", "1")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    make_fss1000(tmp_path / "in", images=2, trn=3, val=2, test=2)
    return tmp_path


def test_other_files_hidden_files_and_empty_masks_of_fss1000_are_counted(here: Path) -> None:
    for name in ("thing 0000/notes.txt", "thing 0001/3.gif", "thing 0002/._1.jpg"):
        (here / "in" / name).write_bytes(b"x")
    write(here / "in/thing 0003/more/9.jpg", BLACK)
    write(here / "in/thing 0004/2.png", BLACK)
    write(here / "in/thing 0005/1.png", BLACK)
    result = fss(here)
    assert result.status == 0
    for words in (
        "left out 3 files or folders whose names do not end in .jpg, .jpeg, .png, such as thing",
        "left out 1 hidden files, such as thing 0002/._1.jpg",
        "2 masks hold no pixel of a class, such as masks/thing 0004_2.png",
    ):
        assert words in result.err
    assert not read_label(here / "out/masks/thing 0004_2.png").any()


def test_mistakes_in_the_names_of_fss1000_come_together(here: Path) -> None:
    lists = here / "in/splits"
    (lists / "trn.txt").write_text("thing 0000\nThing 0001\nunknown\n../in/thing 0002\n")
    (lists / "val.txt").write_text("thing 0003\nthing 0004\nthing 0003\n")
    (here / "in/thing 0003/1.png").unlink()
    (here / "in/thing 0004/2.jpg").unlink()
    refused(
        fss(here), "6 mistakes: its lists name 'thing 0003' twice",
        "name 'Thing 0001', which has no folder, but thing 0001 is there",
        "name 'unknown', which has no folder;", "name '../in/thing 0002', which has no folder",
        "thing 0003 has only one of 1.jpg and 1.png", "thing 0004 has only one of 2.jpg and 2.png",
        "unpack the download again, or correct the names",
    )  # fmt: skip
    assert not (here / "out").exists()


def test_folders_of_fss1000_in_another_case_are_named_and_found_below(here: Path) -> None:
    os.rename(here / "in", here / "inside")
    os.mkdir(here / "in")
    os.rename(here / "inside", here / "in/fewshot_data")
    os.rename(here / "in/fewshot_data/splits", here / "in/splits")
    assert fss(here).status == 0
    for number in range(7):
        folder = here / "in/fewshot_data" / f"thing {number:04d}"
        folder.rename(folder.with_name(f"THING {number:04d}"))
    refused(fss(here, "second"), "7 mistakes", "but THING 0000 is there")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("nowhere", path)])
def test_list_of_fss1000_that_is_no_file_is_said_to_be_there(
    make: Callable[[Path], None], here: Path
) -> None:
    path = here / "in/splits/trn.txt"
    path.unlink()
    make(path)
    refused(fss(here), f"{path}: is a ")


def isic(root: Path, table: str, out: str = "out") -> SimpleNamespace:
    (root / "in/class_id.csv").write_text(table)
    return run("isic", "--from", root / "in", "--out", root / out, "--workers", "1")


NAMES = [f"ISIC_{number:07d}" for number in range(6)]
KINDS = ("melanoma", "nevus", "seborrheic_keratosis")


@pytest.mark.parametrize("header", ["ID,Class\n", "", "\n\nimage, kind\n"])
@pytest.mark.parametrize("suffix", ["", ".jpg"])
def test_table_of_isic_with_and_without_its_head_names_every_image(
    header: str, suffix: str, tmp_path: Path
) -> None:
    make_isic(tmp_path / "in", images=2, folders=False)
    rows = [f"{name}{suffix}, {KINDS[i % 3]} " for i, name in enumerate(NAMES)]
    result = isic(tmp_path, header + "\n".join([*rows, rows[2]]))
    assert (result.status, result.err) == (0, "")
    for i, name in enumerate(NAMES):
        assert read_label(tmp_path / f"out/masks/{name}.png").max() == i % 3 + 1


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("ID,Class\n" + "x" * 200_000 + ",nevus\n", ["no table of commas (field larger than"]),
        (f'ID,Class\n"{NAMES[0]},nevus\n', ["class_id.csv: no table of commas ("]),
        (f"id;c\n{NAMES[0]};nevus\n", [f"the line '{NAMES[0]};nevus' is not an image, a comma"]),
        ("", ["class_id.csv: names no image; copy it again"]),
        ("ID,Class\n\n", ["class_id.csv: names no image"]),
        (
            f"ID,Class\n{NAMES[0]},wart\n{NAMES[1]},nevus\n{NAMES[1]},melanoma\n{NAMES[2]},Nevus",
            [f"3 mistakes: gives {NAMES[0]} the class 'wart'",
             f"lists {NAMES[1]} as nevus and as melanoma",
             f"gives {NAMES[2]} the class 'Nevus', not one of melanoma, nevus, seborrheic_kerat"],
        ),
    ],
)  # fmt: skip
def test_mistakes_in_the_table_of_isic_are_one_line(
    table: str, words: list[str], tmp_path: Path
) -> None:
    make_isic(tmp_path / "in", images=2, folders=False)
    refused(isic(tmp_path, table), "class_id.csv", *words)


def test_what_isic_does_not_use_is_counted(tmp_path: Path) -> None:
    make_isic(tmp_path / "in", images=2, folders=False)
    (tmp_path / "in/ISIC2018_Task1-2_Training_Input/ATTRIBUTION.txt").write_text("x")
    (tmp_path / "in/ISIC2018_Task1_Training_GroundTruth/.DS_Store").write_text("x")
    rows = "".join(f"{name},nevus\n" for name in (*NAMES[:5], "ISIC_9", "ISIC_8"))
    result = isic(tmp_path, "ID,Class\n" + rows)
    assert result.status == 0
    for words in (
        "left out 2 lines of class_id.csv without an image, such as ISIC_9",
        "left out 1 images that class_id.csv does not name, such as ISIC_0000005",
        "left out 1 files or folders whose names do not end in .jpg, such as ISIC2018",
        "left out 1 hidden files, such as ISIC2018_Task1_Training_GroundTruth/.DS_Store",
    ):
        assert words in result.err


def test_missing_files_of_deepglobe_chestx_and_lvis_come_together(tmp_path: Path) -> None:
    def prepare_set(name: str) -> SimpleNamespace:
        return run(name, "--from", tmp_path / name, "--out", tmp_path / "out")

    make_deepglobe(tmp_path / "deepglobe")
    gone = sorted((tmp_path / "deepglobe").glob("*/test/groundtruth/*.png"))[::5]
    make_chestx(tmp_path / "chestx")
    gone += sorted((tmp_path / "chestx/CXR_png").iterdir())[:2]
    make_lvis(tmp_path / "lvis")
    gone += sorted((tmp_path / "lvis/coco/val2017").iterdir())[:12]
    for path in gone:
        path.unlink()
    count = len(gone) - 14
    result = prepare_set("deepglobe")
    refused(result, f"{count} mistakes: ", *(f"{p.stem}.jpg has no mask" for p in gone[:count]))
    names = [path.name for path in gone[count : count + 2]]
    refused(prepare_set("chestx"), "2 mistakes: ", *(f"{n}, which CXR_png lacks" for n in names))
    refused(prepare_set("lvis"), "12 mistakes: ", "and 2 more; unpack train2017.zip")


def test_masks_that_a_second_export_replaces_are_counted(tmp_path: Path) -> None:
    """Two exports into one folder that hold the same images: the later one stays."""
    here = four_photos(tmp_path)
    assert "replace" not in prepare(here, labels()).out
    assert "replace" not in prepare(here, labels()).out
    second = labels(2)
    second["annotations"] = second["annotations"][:2]
    for annotation in second["annotations"]:
        annotation["category_id"] = 3
    told = prepare(here, second).out
    assert "out: 2 files replace those of an earlier run, such as masks/p1.png" in told
    assert "2 files replace" in prepare(here, labels()).out
