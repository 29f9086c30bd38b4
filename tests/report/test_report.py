"""Pages need no other file, tables hold the numbers computed by hand, mistakes are one line."""

import csv
import io
import json
import os
import re
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import yaml
from helpers import ROOT
from tensorboardX import SummaryWriter

from util.config import load_config, save_config, to_dict
from util.evaluate.visualize import GALLERIES, encode_strips
from util.report import __main__ as entry
from util.report.charts import bar_chart, line_chart, thin
from util.report.runs import read_curves
from util.report.table import PUBLISHED, gather
from util.runtime.cli import main
from util.train.curves import Curves

PASCAL = "config/pascal/pascal_split{}_resnet50.yaml"
MEGABYTES = 10


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["report", *map(str, words)])
    main(entry.report)


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    def refused(*words: object) -> str:
        with pytest.raises(SystemExit) as stop:
            run(monkeypatch, *words)
        printed = capsys.readouterr()
        assert (stop.value.code, printed.out) == (2, "")
        assert printed.err.count("\n") == 1 and printed.err.startswith("error: ")
        return printed.err

    return refused


LEAKS = {
    "backbone": "backbone: may have seen them",
    "not_tested": ["<i>sofa</i>"],
    "stage one": {
        **{"images": 5953, "test_images": 0, "objects": "background"},
        "classes": {"cat": {"images": 1240, "pixels": 98765, "left_out": 0}, "dog": None},
    },
    "stage two": {"unknown": "lists/x/train.json: no table of the masks"},
}


def result(cfg, mious: dict[int, float], **more: object) -> dict:
    """Return what test.py writes for two classes; `mious`: test seed -> mIoU."""

    def score(miou: float) -> dict:
        return {"miou": miou, "fb_iou": miou + 20, "classes": {"cat": miou - 5, "dog": miou + 5}}

    def cell(values: list[float]) -> dict:
        return {"mean": statistics.fmean(values), "std": statistics.pstdev(values)}

    values, summary = list(mious.values()), {}
    for kind in ("final", "meta", "prior"):
        summary[f"{kind} mIoU"] = cell(values)
        summary[f"{kind} FB-IoU"] = cell([v + 20 for v in values])
        summary[f"  {kind} cat"] = cell([v - 5 for v in values])
        summary[f"  {kind} dog"] = cell([v + 5 for v in values])
    summary["base mIoU"] = cell(values)
    seeds = {
        str(seed): {"final": score(v), "meta": score(v), "prior": score(v), "episodes": 7}
        for seed, v in mious.items()
    }
    config = to_dict(cfg)
    basic = {"checkpoint": "exp/x/best.pth", "iteration": 40, "summary": summary}
    return {**basic, "seeds": seeds, "config": config, **more}


def write_result(folder: Path, words: list[str], mious: dict[int, float], fold: int = 0) -> Path:
    folder.mkdir(parents=True)
    content = result(load_config(ROOT / PASCAL.format(fold), words), mious)
    (folder / "result.json").write_text(json.dumps(content))
    return folder / "result.json"


def write_run(folder: Path, seed: int, *, tested: bool = True) -> Path:
    """Write the folder of a run as train.py and test.py leave it."""
    cfg = load_config(ROOT / PASCAL.format(0), [f"Train.seed={seed}", f"Train.save_path={folder}"])
    folder.mkdir(parents=True)
    save_config(cfg, folder / "config.yaml")
    rng = np.random.default_rng(seed)
    with SummaryWriter(str(folder)) as writer:
        for step in range(1, 41):
            for name in ("loss_g", "main", "distillation", "loss_d", "lr_x1", "lr_x10"):
                writer.add_scalar(f"train/{name}", rng.random(), step)
        for step in (20, 40):
            for name in ("miou_final", "miou_meta", "miou_base", "fb_iou"):
                writer.add_scalar(f"val/{name}", 50 + 10 * rng.random(), step)
            costs = {"iterations_per_s": 2.5, "train_s": 8, "peak_memory_gb": 1.25}
            for name, value in {**costs, "validation_s": 60}.items():
                writer.add_scalar(f"cost/{name}", value, step)
    if tested:
        counts = {"hit": 60, "background": 30, "<b>car</b>": 10}
        confusion = {name: {"predicted": counts, "object": counts} for name in ("cat", "dog")}
        extra = {"cost": {"seconds": 75.0, "episodes_per_s": 4.0, "peak_memory_gb": 0.5}}
        extra |= {"environment": {"packages": {"torch": "9.9.9"}, "code": {"commit": "abc123"}}}
        content = result(cfg, {1: 50.0, 2: 52.0}, confusion=confusion, leaks=LEAKS, **extra)
        (folder / "result.json").write_text(json.dumps(content))
        for name in GALLERIES:
            strip = rng.integers(0, 255, (60, 300, 3), dtype=np.uint8)
            (folder / f"{name}.png").write_bytes(encode_strips([strip]))
    return folder


# --- the page -----------------------------------------------------------------------------------


def assert_self_contained(text: str) -> None:
    """Check that the page fetches nothing and runs no script."""
    assert len(text.encode()) < MEGABYTES * 1e6
    bare = re.sub(r'src="data:image/jpeg;base64,[A-Za-z0-9+/=]+"', "", text)
    assert not re.search(r"https?:|//|<script|<link|<iframe|@import|url\(|src=|<metadata", bare)
    for word in re.findall(r'href="([^"]*)"', bare):
        assert word.startswith("#") and f'id="{word[1:]}"' in bare


def test_page_shows_controls_of_each_class_and_absent_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_run(tmp_path / "a", 1)
    content = json.loads((folder / "result.json").read_text())
    run(monkeypatch, folder)
    assert "has no control: Eval.control of test.sh" in (folder / "report.html").read_text()
    part = {"right": 44.125, "false": 41.0, "difference": -3.125, "kept": 92.9, "episodes": 1250}
    other = {"right": 0.0, "false": 0.0, "difference": 0.0, "kept": None, "episodes": 3}
    content["controls"] = {"other_class": {**part, "left_out": 2, "classes": {"cat": other}}}
    area = {"final": 12.346, "meta": 3.0}
    content["absent"] = {"episodes": 300, "left_out": 0, "auroc": 76.65, "threshold": 0.71234}
    content["absent"] |= {"false_positive_area": area, "threshold_of": "checkpoint"}
    content["absent"] |= {"absent_found_absent": 61.0, "present_found_present": 82.04}
    (folder / "result.json").write_text(json.dumps(content))
    run(monkeypatch, folder)
    page = (folder / "report.html").read_text()
    for cells in (
        ["mIoU", "44.12", "41.00", "-3.12", "93 %", "1,250"],
        ["cat", "0.00", "0.00", "+0.00", "-", "3"],
        ["AUROC of presence", "76.65"],
        ["false positive area, final", "12.35 %"],
        ["threshold (of checkpoint)", "0.712"],
        ["present found present", "82.0 %"],
    ):
        assert "".join(f"<td>{cell}</td>" for cell in cells) in page, cells
    assert "<h4>other_class</h4>" in page and "has no control" not in page


def test_page_shows_what_training_has_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tested, untested = write_run(tmp_path / "a", 1), write_run(tmp_path / "b", 2, tested=False)
    older = write_run(tmp_path / "c", 3)
    content = json.loads((older / "result.json").read_text())
    (older / "result.json").write_text(json.dumps({**content, "leaks": None}))
    run(monkeypatch, tested, untested, older, "--out", tmp_path / "all.html")
    text = (tmp_path / "all.html").read_text()
    assert_self_contained(text)
    [section] = re.findall(r'<section id="leaks">.*?</section>', text, re.S)
    first, second, third = section.split("<h3>")[1:]
    for words in (
        *("<th>stage one</th>", "<td>cat</td>", "1,240 (98,765 px)"),
        *("stage one: 5,953 images, 0 of the test; novel objects are background", "may have seen"),
        *("stage two: unknown: lists/x/train.json: no table", "training: dog"),
        "&lt;i&gt;sofa",
    ):
        assert words in first, words
    assert "<i>sofa" not in text and "<td>dog" not in section
    assert "Not tested yet" in second and "test the run again" in third


def test_page_of_one_run_is_self_contained_and_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder = write_run(tmp_path / "run", 1)
    run(monkeypatch, folder)
    assert f"written: {folder}/report.html" in capsys.readouterr().out
    text = (folder / "report.html").read_text()
    assert_self_contained(text)
    assert text.count("<img ") == 3
    for words in (
        *("51.00 ± 1.00", "2 x 7", "best.pth, iteration 40"),  # scores
        *("Generator: distillation", "Learning rates", "Validation", "final mIoU, iteration 40: "),
        *("cat, final: 46.00 ± 1.0", "cat, hit: 60.00 %"),  # classes, confusion
        *("00:16", "02:00", "2.50", "1.25 GB", "01:15", "0.50 GB"),  # cost
        *("Method.pre_weight", "initmodel/pascal/split0_resnet50.pth"),  # config
        *("packages.torch", "9.9.9", "code.commit", "abc123"),  # environment
    ):
        assert words in text, words
    assert "<b>car" not in text and "&lt;b&gt;car" in text


def test_page_of_several_runs_compares_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folders = [write_run(tmp_path / "a", 1), write_run(tmp_path / "b/c", 2, tested=False)]
    run(monkeypatch, *folders)
    assert f"{folders[1]}: no result.json" in capsys.readouterr().out
    text = (tmp_path / "report.html").read_text()
    assert_self_contained(text)
    assert "b/c: not tested yet" in text and "AMFormer: 2 runs" in text
    assert '<td class="differs">1</td><td class="differs">2</td>' in text  # Train.seed
    assert "<tr><td>Train.batch_size</td><td>" in text  # equal, not shaded
    assert "a, iteration 40: " in text and "b/c, iteration 40: " in text


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Path]]:
    """Return a function that writes a point per step, a second apart, and returns all files."""
    now = [100.0]
    monkeypatch.setattr("util.train.curves.time.time", lambda: now[0])

    def write(start: int, tag: str, plus: int, *parts: Iterable[int]) -> list[Path]:
        curves = Curves(tmp_path, start, pytest.fail)
        curves.scalars({tag: float("nan")}, start + 1)
        for index, steps in enumerate(parts):
            if index:
                curves.reopen()
            for step in steps:
                now[0] += 1
                curves.scalars({tag: plus + step}, step)
        curves.close()
        return sorted(tmp_path.glob("events*"))

    return write


def test_resume_discards_later_points_and_reading_stops_at_a_torn_record(written) -> None:
    written(0, "x", 10, (1, 2, 3, 4))
    files = written(2, "x", 20, (3, 4, 5))
    curves, seconds = read_curves(files)
    assert curves == {"x": [(1, 11), (2, 12), (3, 23), (4, 24), (5, 25)]}
    assert read_curves(files[::-1])[0] == curves  # a clock that was set back names the last first
    assert seconds == 3 + 2
    whole = files[1].read_bytes()
    for torn in (whole[:-9], whole[:-1], whole[:-60] + bytes(60), whole[:-6] + bytes(6)):
        files[1].write_bytes(torn)
        points = read_curves(files)[0]["x"]
        assert points[:3] == [(1, 11), (2, 12), (3, 23)] and (5, 25) not in points


def test_file_started_after_a_full_disk_discards_no_points(written) -> None:
    files = written(2, "x", 0, (3, 4, 5), (6, 7))
    assert len(files) == 2
    assert read_curves(files)[0] == {"x": [(step, step) for step in (3, 4, 5, 6, 7)]}


def test_new_run_in_an_old_folder_discards_all_old_points(written) -> None:
    written(0, "loss_d", 0, range(1, 90))
    files = written(0, "x", 0, (1, 2, 3))
    assert read_curves(files) == ({"x": [(1, 1), (2, 2), (3, 3)]}, 2)


def test_long_lines_show_means_of_equally_many_neighbors() -> None:
    points = [(float(x), 2.0 * x) for x in range(1000)]
    few = thin(points)
    assert len(few) == 250 and few[0] == (1.5, 3.0) and sum(y for _, y in few) == 999 * 250
    assert line_chart("t", {"a": points}).svg.count("<title>") == 250
    assert thin(points[:300]) == points[:300]


HOSTILE = '$x_{$ --></svg><script>"&'


def test_chart_shows_hostile_names_as_plain_text() -> None:
    lines = line_chart("t", {HOSTILE: [(5, 1.0)], "_b": [(7, 2.0)]}, HOSTILE)
    bars = bar_chart(HOSTILE, {HOSTILE: {"final": (50.0, 0.0)}, "_b": {"final": (1.0, 2.0)}})
    for chart in (lines, bars):
        root = ElementTree.fromstring(f'<x xmlns:xlink="x">{chart.svg}</x>')
        assert HOSTILE in [text.strip() for text in root.itertext()]
        assert not list(root.iter("script")) and "nan" not in chart.svg
    assert list(lines.legend) == [HOSTILE, "_b"]
    assert "iteration 5: 1<" in lines.svg and "_b, final: 1.00 ± 2.0<" in bars.svg


def test_chart_depends_on_its_data_only(tmp_path: Path) -> None:
    lines = {"a": [(1, 0.5), (20, 0.25)]}
    once = line_chart("t", lines)
    with matplotlib.rc_context({"svg.hashsalt": None, "font.size": 30, "axes.grid": True}):
        assert line_chart("t", lines) == once
        assert matplotlib.rcParams["font.size"] == 30
    assert "font-family: 'DejaVu Sans'" in once.svg  # text, not outlines


@pytest.mark.parametrize("content", [b"", b'{"summary": ', b"[]", b"{}", b"\xff\xfe\x00"])
def test_torn_result_is_refused_in_one_line(tmp_path: Path, refused, content: bytes) -> None:
    folder = write_run(tmp_path / "run", 1)
    (folder / "result.json").write_bytes(content)
    for words in ((folder,), ("--table", tmp_path)):
        error = refused(*words)
        assert f"error: {folder}/result.json: " in error and "run test.sh again" in error
    assert not list(tmp_path.rglob("report.html")) and not list(tmp_path.rglob("table.*"))


FOREIGN_RESULTS = {
    "another program's": {"summary": [1], "seeds": 5, "config": "x", "checkpoint": None},
    "no seed": {"seeds": {}},
    "seed of words": {"seeds": {"one\0": {"final": {"miou": 1, "fb_iou": 1}}}},
    "score of words": {"seeds": {"1": {"final": {"miou": "high", "fb_iou": 1}}}},
    "huge number": {"seeds": {"1": {"final": {"miou": 10**400, "fb_iou": 1}}}},
    "config of lists": {"config": {"Data": [], "Method": {}, "Train": {}}},
    "no fold": {"config": {"Data": {"list_dir": "x", "shot": 1}, "Method": {"backbone": "x"}}},
}
FOREIGN_PARTS = {
    "summary": {"final mIoU": {"mean": "2001-01-01", "std": 0}},
    "leaks": {"stage one": {"classes": {"cat": 7}}},
    "confusion": {"cat": {"predicted": 3}},
    "cost": {"seconds": "long"},
    "controls": [1, 2],
    "environment": 9,
}


@pytest.mark.parametrize("name", FOREIGN_RESULTS)
def test_foreign_result_is_named_in_one_line(name: str, tmp_path: Path, refused) -> None:
    write_run(tmp_path / "good", 2)
    folder = write_run(tmp_path / "run", 1)
    path = folder / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **FOREIGN_RESULTS[name]}))
    assert f"error: {path}: holds what no run writes (" in refused("--table", tmp_path)
    if name not in ("no fold", "config of lists", "seed of words"):  # a page shows these
        assert f"{folder}: holds what no run writes (" in refused(tmp_path / "good", folder)
    assert not list(tmp_path.rglob("report.html")) and not list(tmp_path.rglob("table.*"))


@pytest.mark.parametrize("part", FOREIGN_PARTS)
def test_foreign_part_of_a_result_is_named_by_the_page(part: str, tmp_path: Path, refused) -> None:
    folder = write_run(tmp_path / "run", 1)
    path = folder / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), part: FOREIGN_PARTS[part]}))
    assert f"{folder}: holds what no run writes (" in refused(folder)


def test_foreign_config_and_curves_of_a_run_are_named(tmp_path: Path, refused) -> None:
    folder = write_run(tmp_path / "run", 1)
    config, curves = folder / "config.yaml", folder / "events.out.tfevents.9.x"
    whole = config.read_bytes()
    lines = ["a0: &a0 [1, 1]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 27))]
    for text, reason in (
        (b"x: 2001-13-45", "not valid YAML"),
        ("\n".join(lines).encode(), "holds more than 100,000 values"),
        (b"[" * 3000, "not valid YAML"),
        (b"\0", "not valid YAML"),
    ):
        config.write_bytes(text)
        assert f"{config}: {reason}" in refused(folder)
    config.write_bytes(whole)
    os.mkfifo(curves)
    assert f"{curves}: is a pipe or a device" in refused(folder)


def test_garbled_curves_are_read_as_far_as_they_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_run(tmp_path / "run", 1)
    for number, content in enumerate((b"", b"text", os.urandom(2000), b"\xff" * 2000)):
        (folder / f"events.out.tfevents.9{number}.x").write_bytes(content)
    run(monkeypatch, folder)
    assert "Generator: total loss" in (folder / "report.html").read_text()


def test_folder_without_a_run_is_refused_in_one_line(tmp_path: Path, refused) -> None:
    assert f"{tmp_path}: not a run" in refused(tmp_path)
    assert f"{tmp_path}: no result.json" in refused("--table", tmp_path)
    folder = write_run(tmp_path / "run", 1)
    assert f"{folder}: this run is named twice" in refused(tmp_path, folder, tmp_path / "run")
    assert f"--out: {tmp_path} is a folder" in refused(folder, "--out", tmp_path)
    assert not list(tmp_path.parent.glob(f".{tmp_path.name}*"))
    (folder / "best.png").write_bytes(b"torn")
    assert f"{folder}/best.png: torn" in refused(folder)
    (folder / "config.yaml").write_bytes(b"Data: [")
    assert f"{folder}/config.yaml: not valid YAML" in refused(folder)
    refused()
    refused(folder, "--table", tmp_path)


# --- the table ----------------------------------------------------------------------------------

FOLDS = {0: {1: 60.0, 2: 64.0}, 1: {1: 70.0, 2: 71.0}, 2: {1: 50.0, 2: 53.0}, 3: {1: 40.0, 2: 40.0}}


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_table_holds_means_and_deviations_computed_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for fold, mious in FOLDS.items():
        write_result(tmp_path / f"split{fold}", [], mious, fold)
    run(monkeypatch, "--table", tmp_path, "--out", tmp_path / "out")
    printed = capsys.readouterr().out
    ours, published = table(tmp_path / "out/table.csv")
    assert (ours["data"], ours["shots"], ours["backbone"]) == ("pascal", "1", "resnet50")
    expected = {"fold 0": (62.0, 2.0), "fold 1": (70.5, 0.5), "fold 2": (51.5, 1.5)}
    # Seed 1: (60 + 70 + 50 + 40) / 4 = 55, seed 2: (64 + 71 + 53 + 40) / 4 = 57.
    expected |= {"fold 3": (40.0, 0.0), "mean": (56.0, 1.0), "FB-IoU": (76.0, 1.0)}
    for name, (mean, std) in expected.items():
        assert float(ours[name]) == pytest.approx(mean, abs=1e-9), name
        assert float(ours[f"{name} std"]) == pytest.approx(std, abs=1e-9), name
    cells = [published[f"fold {fold}"] for fold in range(4)] + [published["mean"]]
    assert cells == ["71.1", "75.9", "69.7", "63.7", "70.1"] and published["mean std"] == ""
    row = "| pascal | 1 | resnet50 | - | ours, 4 runs | 62.0 ± 2.0 | 70.5 ± 0.5 | 51.5 ± 1.5 |"
    markdown = (tmp_path / "out/table.md").read_text()
    assert row in markdown and markdown in printed
    assert "| published | 71.1 | 75.9 | 69.7 | 63.7 | 70.1 | - |" in markdown
    latex = (tmp_path / "out/table.tex").read_text()
    assert r"62.0 $\pm$ 2.0 & 70.5 $\pm$ 0.5 &" in latex and latex.count("&") == 10 * 3


def test_training_seeds_share_a_row_and_settings_do_not(tmp_path: Path) -> None:
    write_result(tmp_path / "a", [], {1: 60.0, 2: 62.0})
    write_result(tmp_path / "b", ["Train.seed=7", "Train.save_path=exp/b"], {1: 66.0, 2: 64.0})
    write_result(tmp_path / "c", ["Train.lr=0.1"], {1: 10.0})
    pooled, other = [row for row in gather(tmp_path) if row.runs]
    assert pooled.folds[0] == pytest.approx((63.0, statistics.pstdev([60, 62, 66, 64])))
    assert (pooled.runs, pooled.setting) == (2, "Train.lr=0.0002")
    assert other.folds == {0: (10.0, None)} and other.setting == "Train.lr=0.1"
    assert pooled.mean is None and pooled.fb_iou is None  # folds are missing


def test_mean_has_no_deviation_if_folds_have_different_seeds(tmp_path: Path) -> None:
    for fold, mious in {**FOLDS, 3: {1: 40.0}}.items():
        write_result(tmp_path / str(fold), [], mious, fold)
    ours = gather(tmp_path)[0]
    assert ours.mean == (56.0, None) and ours.folds[3] == (40.0, None)


def test_two_results_of_one_fold_and_seed_are_refused(tmp_path: Path, refused) -> None:
    for name in "ab":
        write_result(tmp_path / name, [], {1: 60.0})
    error = refused("--table", tmp_path)
    assert f"{tmp_path}/b/result.json: fold 0" in error
    assert f"is also in {tmp_path}/a/result.json" in error


def test_published_rows_appear_only_beside_results_on_the_same_lists(tmp_path: Path) -> None:
    write_result(tmp_path / "demo", ["Data.list_dir=lists/demo"], {1: 60.0})
    assert [row.source for row in gather(tmp_path)] == ["ours, 1 run"]
    words = ["Data.trained_on=coco", "Data.list_dir=lists/pascal"]
    write_result(tmp_path / "across", words, {1: 60.0})
    assert [(row.data, row.source) for row in gather(tmp_path)] == [
        ("coco2pascal", "ours, 1 run"),
        ("demo", "ours, 1 run"),
    ]


def test_configs_and_readme_state_the_published_scores() -> None:
    readme = (ROOT / "README.md").read_text()
    for row in yaml.safe_load(PUBLISHED.read_text()):
        assert statistics.fmean(row["folds"]) == pytest.approx(row["mean"], abs=0.06)
        assert f"{row['mean']} | {' / '.join(map(str, row['folds']))}" in readme
        shots = "" if row["shot"] == 1 else f"_{row['shot']}shot"
        for fold, score in enumerate(row["folds"]):
            name = f"{row['data']}_split{fold}{shots}_{row['backbone']}.yaml"
            header = (ROOT / "config" / row["data"] / name).read_text()
            assert f"mIoU {score} (mean of the folds {row['mean']})" in header, name
