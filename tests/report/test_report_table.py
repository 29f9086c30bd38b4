"""Tables hold the numbers computed by hand."""

import csv
import io
import statistics
from pathlib import Path

import pytest
import yaml
from helpers import ROOT
from helpers.reports import run, write_result

from util.report.table import PUBLISHED, gather

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
    means = "62.0 ± 2.0 | 70.5 ± 0.5 | 51.5 ± 1.5"
    row = f"| pascal | 1 | resnet50 | amformer | - | ours, 4 runs | {means} |"
    markdown = (tmp_path / "out/table.md").read_text()
    assert row in markdown and markdown in printed
    assert "| published | 71.1 | 75.9 | 69.7 | 63.7 | 70.1 | - |" in markdown
    latex = (tmp_path / "out/table.tex").read_text()
    assert r"62.0 $\pm$ 2.0 & 70.5 $\pm$ 0.5 &" in latex and latex.count("&") == 11 * 3


def test_training_seeds_share_a_row_and_settings_do_not(tmp_path: Path) -> None:
    write_result(tmp_path / "a", [], {1: 60.0, 2: 62.0})
    write_result(tmp_path / "b", ["Train.seed=7", "Train.save_path=exp/b"], {1: 66.0, 2: 64.0})
    write_result(tmp_path / "c", ["Train.lr=0.1"], {1: 10.0})
    pooled, other = [row for row in gather(tmp_path) if row.runs]
    assert pooled.folds[0] == pytest.approx((63.0, statistics.pstdev([60, 62, 66, 64])))
    assert (pooled.runs, pooled.setting) == (2, "Train.lr=0.0002")
    assert other.folds == {0: (10.0, None)} and other.setting == "Train.lr=0.1"
    assert pooled.mean is None and pooled.fb_iou is None  # folds are missing


def test_systems_have_rows_of_their_own_in_one_table(tmp_path: Path) -> None:
    scores = {"amformer": 60.0, "bam": 50.0, "hdmnet": 70.0, "pfenet": 40.0}
    for name, miou in scores.items():
        write_result(tmp_path / name, [f"Method.name={name}"], {1: miou})
    rows = [row for row in gather(tmp_path) if row.runs]
    assert {row.method: row.folds[0][0] for row in rows} == scores
    assert not any(row.setting for row in rows)


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
