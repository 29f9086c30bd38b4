"""Every tool that writes leaves alone what it did not make, and says what to do."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.downloads import make_coco, make_voc, refused, run, snapshot, write_jpeg
from helpers.entries import call
from helpers.pictures import changed
from helpers.runs import make_data
from PIL import Image

import train
import train_base
from util.checkpoint import convert
from util.checkpoint.file import write_checkpoint
from util.config import Config
from util.data.lists import write_lists
from util.data.source import Source
from util.report import __main__ as report
from util.runtime.errors import UserError

SQUARE = [1, 1, 8, 1, 8, 8, 1, 8]


def labels(path: Path, names: tuple[str, ...] = ("cup",), images: int = 2) -> Path:
    """An instances file of photographs 12 pixels wide, with a square on each."""
    each = range(images)
    content = {
        "images": [{"id": i, "file_name": f"p{i}.jpg", "width": 12, "height": 10} for i in each],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "segmentation": [SQUARE]} for i in each
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)],
    }
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def custom(tmp_path: Path) -> list[object]:
    """The words of `prepare custom` for two photographs, up to `--out`."""
    for number in range(2):
        write_jpeg(tmp_path / f"photos/p{number}.jpg")
    words = ["custom", "--images", tmp_path / "photos", "--labels", labels(tmp_path / "a.json")]
    return [*words, "--out"]


def mask(path: Path, value: int = 9) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((10, 12), value, np.uint8)).save(path)


@pytest.mark.parametrize("name", ["masks/p0.png", "classes.txt"])
def test_hand_made_data_set_is_not_prepared_over(
    name: str, custom: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    mask(out / "masks/p0.png") if name.endswith("png") else out.mkdir()
    if name == "classes.txt":
        (out / name).write_text("mug\nplate\n")
    before = snapshot(out)
    refused(run(*custom, out), f"{name} exists", "or add --overwrite")
    assert snapshot(out) == before
    assert run(*custom, out, "--overwrite").status == 0 and snapshot(out)[name] != before[name]


def test_prepared_mask_that_was_corrected_by_hand_is_not_drawn_again(
    custom: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run(*custom, out).status == 0
    mask(out / "masks/p1.png")
    before = snapshot(out)
    refused(run(*custom, out), "masks/p1.png exists", "or it was changed")
    assert snapshot(out) == before


def test_changed_labels_are_drawn_again_and_a_torn_mask_with_overwrite(
    custom: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run(*custom, out).status == 0
    whole = snapshot(out)
    labels(tmp_path / "a.json", ("mug",))
    assert run(*custom, out).status == 0 and snapshot(out)["classes.txt"] == b"mug\n"
    torn = out / "masks/p0.png"
    torn.write_bytes(torn.read_bytes()[:20])
    refused(run(*custom, out), "p0.png exists", "--overwrite")
    assert run(*custom, out, "--overwrite").status == 0
    assert snapshot(out)["masks/p0.png"] == whole["masks/p0.png"]


def test_masks_and_lists_of_another_origin_are_not_replaced_by_vocs(tmp_path: Path) -> None:
    voc, sbd = make_voc(tmp_path)
    words = ["voc", "--voc", voc, "--sbd", sbd, "--out", tmp_path / "data"]
    root = tmp_path / "data/VOCdevkit2012/VOC2012"
    mask(root / "SegmentationClassAug/2008_000001.png")  # whole, of another size than VOC's
    before = snapshot(tmp_path / "data")
    refused(run(*words), "2008_000001.png exists", "--overwrite")
    assert snapshot(tmp_path / "data") == before
    (root / "SegmentationClassAug/2008_000001.png").unlink()
    own = root / "ImageSets/Segmentation/val.txt"
    own.parent.mkdir(parents=True)
    own.write_text("my own list\n")
    refused(run(*words), "val.txt exists")
    assert own.read_text() == "my own list\n"
    assert run(*words, "--overwrite").status == 0 and own.read_text() != "my own list\n"


def test_folder_of_cocos_masks_keeps_those_that_are_there(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco")
    own = tmp_path / "data/MSCOCO2014/masks/train2014/COCO_train2014_000000000040.png"
    mask(own)
    before = own.read_bytes()
    result = run("coco", "--coco", coco, "--out", tmp_path / "data")
    refused(result, f"{own} exists, and this command did not make it", "add --overwrite")
    assert own.read_bytes() == before and len(list(own.parent.iterdir())) == 1


def refusal(entry: Callable[[], object], capsys, *words: object, config: bool = False) -> str:
    assert call(entry, *map(str, words), config=config) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ") and not any("Traceback" in line for line in lines)
    return lines[-1]


def a_run(folder: Path) -> Path:
    folder.mkdir()
    summary = {"miou": {"mean": 1.0, "std": 0.0}}
    scores = {"miou": 1.0, "fb_iou": 2.0, "classes": {}}
    content = {"checkpoint": "x", "summary": summary, "seeds": {"1": scores}, "config": {}}
    (folder / "result.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_report_does_not_replace_what_it_reads(
    more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    folder = a_run(tmp_path / "run")
    monkeypatch.setattr("util.report.page.render_page", lambda *_: "page")
    before = snapshot(tmp_path)
    words = [folder, "--out", folder / "result.json", *more]
    assert "is an input of this run" in refusal(report.report, capsys, *words)
    assert snapshot(tmp_path) == before


def test_report_keeps_pages_and_tables_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    folder = a_run(tmp_path / "run")
    monkeypatch.setattr("util.report.page.render_page", lambda *_: "page")
    monkeypatch.setattr("util.report.table.gather", lambda _: [])
    paper = tmp_path / "paper"
    paper.mkdir()
    (paper / "table.tex").write_text("by hand")
    (paper / "index.html").write_text("by hand")
    told = refusal(report.report, capsys, folder, "--out", paper / "index.html")
    assert "index.html exists" in told and "--overwrite" in told
    assert "table.tex exists" in refusal(report.report, capsys, "--table", tmp_path, "--out", paper)
    assert {path.name for path in paper.iterdir()} == {"table.tex", "index.html"}
    for _ in range(2):
        assert call(report.report, str(folder), config=False) == 0
    words = ["--table", str(tmp_path), "--out", str(paper), "--overwrite"]
    assert call(report.report, *words, config=False) == 0
    assert (paper / "table.tex").read_text() != "by hand"


def test_converter_keeps_a_trained_checkpoint(tmp_path: Path, monkeypatch, capsys) -> None:
    for name in ("amnet.pth", "best.pth"):
        (tmp_path / name).write_bytes(name.encode())
    words = [tmp_path / "amnet.pth", tmp_path / "best.pth"]
    assert "best.pth exists" in refusal(convert.convert_file, capsys, *words)
    told = refusal(convert.convert_file, capsys, words[0], words[0], "--overwrite")
    assert "is an input of this run" in told
    assert (tmp_path / "best.pth").read_bytes() == b"best.pth"


def test_lists_of_another_origin_are_kept(pictures: Config, tmp_path: Path) -> None:
    data = changed(pictures, list_dir=str(tmp_path), missing="skip").Data
    for _ in range(2):
        write_lists(data)
    (tmp_path / "train_1.json").write_text("my own list")
    with pytest.raises(UserError, match="train_1.json exists, .*; name another place, or move it"):
        write_lists(data)
    assert (tmp_path / "train_1.json").read_text() == "my own list"


@pytest.mark.parametrize("name", ["features/a.npy", "data/images"])
def test_cache_wants_a_folder_of_its_own(name: str, pictures: Config, tmp_path: Path) -> None:
    place = tmp_path / name
    place.parent.mkdir()
    place.touch()
    with pytest.raises(UserError, match="Data.cache .*: holds .*; name another place"):
        Source(pictures.Data.data_root, "pascal", "val", cache=str(place.parent))
    for _ in range(2):  # train and validation share it
        Source(pictures.Data.data_root, "pascal", "val", cache=str(tmp_path / "cache"))


def test_training_keeps_weights_and_data_of_others(tmp_path: Path, capsys) -> None:
    words = make_data(tmp_path)
    own = tmp_path / "downloads"
    own.mkdir()
    write_checkpoint(own / "best.pth", state_dict={})
    before = snapshot(own)
    told = refusal(train.train, capsys, *words, f"Train.save_path={own}", config=True)
    assert f"Train.save_path {own}: holds a run (best.pth)" in told
    data = tmp_path / "data"
    told = refusal(train.train, capsys, *words, f"Train.save_path={data}", config=True)
    assert "holds a data set (VOCdevkit2012)" in told
    write_checkpoint(own / "bam.pth", state_dict={})
    words.append(f"Method.pre_weight={own}/bam.pth")
    told = refusal(train_base.train_base, capsys, *words, config=True)
    assert "bam.pth: holds weights that stage one did not write" in told
    assert snapshot(own).keys() == {*before, "bam.pth"}
