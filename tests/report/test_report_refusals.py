"""What no run of ours wrote is refused in one line."""

import json
import os
from pathlib import Path

import pytest
from helpers.reports import run, write_run


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
    "seed of words": {"seeds": {"one\0": {"final": {"miou": 51.0, "fb_iou": 71.0}}}},
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


@pytest.mark.parametrize("score", ["final mIoU", "meta FB-IoU", "  prior dog"])
def test_summary_that_is_not_the_mean_of_its_seeds_is_refused(
    score: str, tmp_path: Path, refused
) -> None:
    folder = write_run(tmp_path / "run", 1)
    path = folder / "result.json"
    content = json.loads(path.read_text())
    right = content["summary"][score]["mean"]
    content["summary"][score]["mean"] = 99.9
    path.write_text(json.dumps(content))
    told = f"{path}: was edited: its summary says {score.strip()} 99.90"
    for words in ((folder,), ("--table", tmp_path)):
        assert f"{told}, and its seeds give {right:.2f}; run" in refused(*words)


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
