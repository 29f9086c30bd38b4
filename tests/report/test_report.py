"""The page of util.report needs no other file and shows all of a run."""

import json
import re
from pathlib import Path

import pytest
from helpers.reports import run, write_run

MEGABYTES = 10


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


def test_page_shows_the_scores_of_every_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_run(tmp_path / "a", 1)
    run(monkeypatch, folder)
    assert "None was tested: Eval.way and Eval.protocol" in (folder / "report.html").read_text()
    content = json.loads((folder / "result.json").read_text())
    seeds = {"1": {"episodes": 1449}, "2": {"episodes": 1449}}
    for name, score in (("2way", "final mIoU"), ("gfss_diam", "harmonic mean")):
        summary = {
            score: {"mean": 31.456, "std": 1.5, "best": 33.0},
            "  base <b>": {"mean": 2.0, "std": 0.0},
        }
        other = {**content, "summary": summary, "seeds": seeds}
        (folder / f"result_{name}.json").write_text(json.dumps(other))
    only = tmp_path / "only"
    only.mkdir()
    (only / "result_2way.json").write_bytes((folder / "result_2way.json").read_bytes())
    for runs in ([folder], [folder, only], [only]):
        run(monkeypatch, *runs, "--out", tmp_path / "page.html")
        page = (tmp_path / "page.html").read_text()
        assert_self_contained(page)
        tables = page[
            page.index('<section id="protocols">') : page.index('<section id="confusion">')
        ]
        assert tables.count("<h4>2way, 2 x 1,449 episodes</h4>") == len(runs)
        assert tables.count("<h4>gfss_diam, 2 x 1,449 episodes</h4>") == runs.count(folder)
        assert "<td>final mIoU</td><td>31.46 ± 1.50</td>" in tables
        assert "<td>  base &lt;b&gt;</td><td>2.00</td>" in tables
