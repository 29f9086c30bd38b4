"""`python -m util.report --compare`: numbers of the results, files, and what is refused."""

import csv
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from helpers.simulated import Pair, draw
from helpers.tested_runs import CLASSES, write_tested_run

from util.evaluate import records
from util.report import __main__ as entry
from util.report.bootstrap import Episodes
from util.runtime.cli import main

Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Run:
    def run(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["report", "--compare", *map(str, words)])
        main(entry.report)
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(run: Run, capsys: pytest.CaptureFixture) -> Run:
    def refused(*words: object) -> str:
        with pytest.raises(SystemExit) as stop:
            run(*words)
        printed = capsys.readouterr()
        assert (stop.value.code, printed.out) == (2, "")
        assert printed.err.count("\n") == 1 and printed.err.startswith("error: ")
        return printed.err

    return refused


@pytest.fixture(scope="module")
def pair() -> Pair:
    return draw(np.random.default_rng(3), 60, runs=(2, 2), seed_effect=0.1)


@pytest.fixture
def exp(tmp_path: Path, pair: Pair) -> Path:
    """Two settings with two training seeds each."""
    for seed in range(2):
        words = [f"Train.seed={seed}", f"Train.save_path=exp/{seed}"]
        write_tested_run(tmp_path / f"game/{seed}", pair.episodes, pair.first[seed], *words)
        words.append("Train.adversarial_weight=0")
        write_tested_run(tmp_path / f"none/{seed}", pair.episodes, pair.second[seed], *words)
    return tmp_path


def table(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    with path.open() as file:
        return {(row["kind"], row["score"]): row for row in csv.DictReader(file)}


def of_results(folder: Path, score: str) -> float:
    """Return the mean over runs and test seeds of what result.json says."""
    names = {"mIoU": "miou", "FB-IoU": "fb_iou"}
    found = []
    for path in folder.rglob("result.json"):
        for scores in json.loads(path.read_text())["seeds"].values():
            final = scores["final"]
            found.append(final[names[score]] if score in names else final["classes"][score])
    return float(np.mean(found))


@pytest.mark.parametrize("runs", ["/0", ""], ids=["one run", "two training seeds"])
def test_differences_are_those_of_the_results(exp: Path, run: Run, runs: str) -> None:
    first, second = (exp / f"{name}{runs}" for name in ("game", "none"))
    printed = run(first, second)
    folder, rows = exp, table(exp / "compare.csv")
    assert f"written: {folder}/compare.md" in printed
    assert list(rows) == [(k, s) for k in ("final", "meta") for s in ("mIoU", "FB-IoU", *CLASSES)]
    for score in ("mIoU", "FB-IoU", *CLASSES):
        row = rows["final", score]
        left, right = of_results(first, score), of_results(second, score)
        assert float(row["reference_score"]) == pytest.approx(left, abs=1e-9)
        assert float(row["setting_score"]) == pytest.approx(right, abs=1e-9)
        assert float(row["difference"]) == pytest.approx(right - left, abs=1e-9)
    miou = rows["final", "mIoU"]
    assert float(miou["low"]) < float(miou["difference"]) < float(miou["high"])
    assert bool(miou["low_with_seeds"]) == (not runs)
    assert int(miou["query_images"]) == 60


def test_files_hold_the_same_numbers(exp: Path, run: Run) -> None:
    printed = run(exp / "game", exp / "none", "--out", exp / "out")
    markdown, row = (exp / "out/compare.md").read_text(), table(exp / "out/compare.csv")
    assert markdown in printed and "## none against game" in markdown
    assert "Changed: Train.adversarial_weight 0.1 -> 0.0." in markdown
    miou = {name: float(value) for name, value in list(row["final", "mIoU"].items())[5:]}
    low, high = f"{miou['low']:+.1f}", f"{miou['high']:+.1f}"
    cells = f"{miou['reference_score']:.1f} | {miou['setting_score']:.1f} | "
    cells += f"{miou['difference']:+.1f} | {low} to {high} |"
    assert f"| final mIoU | 60 | {cells}" in markdown
    assert "rests on 2 and 2 runs" in markdown and "| game | 2 | " in markdown
    half = miou["high"] - miou["difference"]
    latex = (exp / "out/compare.tex").read_text()
    assert rf"${miou['difference']:+.1f} \pm {half:.1f}$" in latex
    assert latex.count("&") == 15 * 4
    picture = cv2.imread(str(exp / "out/compare.png"))
    assert picture.shape[1] == 1280 and len(np.unique(picture)) > 10


def test_several_settings_stand_against_the_first(exp: Path, run: Run) -> None:
    printed = run(exp / "none/1", exp / "none/0", exp / "game/0")
    assert "## none/0 against none/1" in printed and "## game/0 against none/1" in printed
    assert "Changed: no key that may change a number." in printed
    assert "unknown: each setting has one run" in printed


def test_csv_records_and_parquet_records_give_the_same(exp: Path, pair: Pair, run: Run) -> None:
    run(exp / "game/0", exp / "none/0", "--out", exp / "a")
    folder = exp / "none/csv"
    words = ["Train.adversarial_weight=0"]
    write_tested_run(folder, pair.episodes, pair.second[0], *words, name="episodes.csv")
    run(exp / "game/0", folder, "--out", exp / "b")
    then, now = (table(exp / name / "compare.csv") for name in "ab")
    assert [r["low"] for r in then.values()] == [r["low"] for r in now.values()]


def test_equal_runs_show_no_difference(exp: Path, pair: Pair, run: Run) -> None:
    write_tested_run(exp / "copy", pair.episodes, pair.first[0])
    run(exp / "game/0", exp / "copy")
    for row in table(exp / "compare.csv").values():
        assert [float(row[name]) for name in ("difference", "low", "high")] == [0, 0, 0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"query": "2008_other"}, "query is 2008_other and 2008_000005"),
        ({"class_id": 15}, "class_id is 15 and "),
        ({"supports": ["x", "y"]}, "supports is ['x', 'y'] and ['2009_000005']"),
        ({"height": 99}, "height is 99 and 375"),
        ({"width": 99}, "width is 99 and 500"),
        ({"object_pixels": 1}, "object_pixels is 1 and 5005"),
    ],
)
def test_other_episodes_are_refused_with_the_first_that_differs(
    exp: Path, pair: Pair, refused: Run, change: dict, says: str
) -> None:
    write_tested_run(exp / "other", pair.episodes, pair.second[0], change=change)
    error = refused(exp / "game/0", exp / "other")
    assert f"in episode 5 of seed 321, {says}" in error
    assert "were tested on different episodes" in error and not list(exp.rglob("compare.*"))


def test_other_numbers_of_episodes_are_refused(exp: Path, pair: Pair, refused: Run) -> None:
    left = pair.episodes.seed == 0
    some = Episodes(*(each[left] for each in vars(pair.episodes).values()))
    write_tested_run(exp / "other", some, pair.second[0][left])
    error = refused(exp / "game", exp / "other")
    assert "120 episodes of seed 321 and 120 episodes of seed 321, 322; test both" in error


def test_other_lists_are_refused(exp: Path, refused: Run) -> None:
    path = exp / "none/1/result.json"
    path.write_text(path.read_text().replace('{"val": 1234}', '{"val": 99}'))
    assert "checksum of the list val 1234 -> 99" in refused(exp / "game", exp / "none")


def test_folder_of_several_settings_is_refused(exp: Path, refused: Run) -> None:
    error = refused(exp, exp / "game")
    assert "differ in Train.adversarial_weight 0.1 -> 0.0; the runs of one setting" in error


def test_same_checkpoint_twice_in_a_setting_is_refused(exp: Path, refused: Run) -> None:
    one, two = (exp / f"game/{seed}/result.json" for seed in range(2))
    two.write_text(two.read_text().replace(f'"{two.parent}"', f'"{one.parent}"'))
    assert "are tests of the same checkpoint" in refused(exp / "game", exp / "none")


def test_missing_and_torn_files_are_refused(exp: Path, refused: Run) -> None:
    assert "names one setting; name two or more" in refused(exp / "game")
    assert "named twice" in refused(exp / "game", exp / "none", exp / "game")
    assert f"{exp}/nothing: no episodes.parquet" in refused(exp / "game", exp / "nothing")
    record = exp / "game/0/episodes.parquet"
    whole = record.read_bytes()
    record.write_bytes(whole[:-40])
    assert f"{record}: torn" in refused(exp / "game", exp / "none")
    record.write_bytes(whole)
    result = exp / "game/0/result.json"
    text = result.read_text()
    result.write_text(text.replace('"episodes": 120', '"episodes": 999'))
    assert "not those of result.json beside it; run test.sh" in refused(exp / "game", exp / "none")
    result.unlink()
    assert f"{result}: cannot read this result file" in refused(exp / "game", exp / "none")


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_episodes_of_another_run_or_with_edited_counts_are_refused(
    suffix: str, exp: Path, pair: Pair, refused: Run
) -> None:
    for folder in sorted(exp.glob("*/*")):
        table = records.read_records(folder / "episodes.parquet")
        (folder / "episodes.parquet").unlink()
        records.write_records(folder / f"episodes.{suffix}", table.to_pylist(), {})
    path, other = (exp / f"{name}/1/episodes.{suffix}" for name in ("none", "game"))
    whole, rows = path.read_bytes(), records.read_records(path).to_pylist()
    path.write_bytes(other.read_bytes())
    told = f"{path}: its seeds, episodes or scores are not those of result.json beside it"
    assert told in refused(exp / "game", exp / "none")
    rows[7]["final_i"] //= 2
    records.write_records(path, rows, {})
    assert told in refused(exp / "game", exp / "none")
    path.write_bytes(whole)


@pytest.mark.parametrize("part", ["seeds", "environment", "config"])
@pytest.mark.parametrize("value", [[], {"lists": 7}, "x"])
def test_foreign_result_beside_episodes_is_named(
    part: str, value: object, exp: Path, refused: Run
) -> None:
    path = exp / "none/1/result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), part: value}))
    assert f"{path}" in refused(exp / "game", exp / "none")


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_foreign_episodes_are_named(suffix: str, exp: Path, refused: Run) -> None:
    old = exp / "none/1/episodes.parquet"
    table = pq.read_table(old)
    old.unlink()
    path = old.with_suffix(f".{suffix}")
    blank = table.set_column(0, "seed", pa.array([None] * len(table), pa.int64()))
    for content in (blank, table.select(["seed", "query"])):
        if suffix == "csv":
            names = [name for name in content.column_names if name != "supports"]
            pa_csv.write_csv(content.select(names), path)
        else:
            pq.write_table(content, path)
        assert f"{path}: torn, or no record of episodes" in refused(exp / "game", exp / "none")
    path.write_bytes(b"a,b\n1,2\0\n")
    assert f"{path}: torn, or no record of episodes" in refused(exp / "game", exp / "none")
    path.unlink()
    os.mkfifo(path)
    assert f"{path}: is a pipe or a device" in refused(exp / "game", exp / "none")


def test_record_that_says_it_has_a_billion_rows_is_refused_unread(
    exp: Path, refused: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = exp / "none/1/episodes.parquet"
    for most in (239, 1):
        monkeypatch.setattr(records, "_MOST_ROWS", most)
        assert "a test has at most" in refused(exp / "game", exp / "none")
    assert path.is_file()
