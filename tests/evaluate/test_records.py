"""A row of each tested episode: right to the pixel, and the scores of result.json."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers.entries import call

import test as test_entry
from model import build_model
from model.backbones import pixel_statistics
from util.checkpoint.load import load_checkpoint
from util.data import EpisodeDataset, collate, open_episodes
from util.evaluate.records import SCHEMA, read_records, write_records
from util.runtime.errors import UserError

SEEDS, COUNT = (5, 6), 7
WORDS = [
    f"Eval.episodes={COUNT}",
    f"Eval.seeds={list(SEEDS)}",
    "Eval.control=none",
    "Eval.absent=0",
]


@pytest.fixture(scope="module")
def tested(small_run: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a test."""
    folder = tmp_path_factory.mktemp("tested")
    words = [*small_run.words, f"Train.save_path={folder}", *WORDS]
    assert call(test_entry.test, *words, "Eval.batch_size=2") == 0
    return folder


@pytest.fixture(scope="module")
def table(tested: Path) -> pa.Table:
    """The rows of that test."""
    return read_records(tested / "episodes.parquet")


def summed(rows: list[dict], *names: str) -> list[int]:
    return [sum(row[name] for row in rows) for name in names]


@pytest.mark.parametrize("kind", ["final", "meta"])
def test_scores_of_the_result_follow_from_the_rows_exactly(
    tested: Path, table: pa.Table, kind: str
) -> None:
    result = json.loads((tested / "result.json").read_text())
    for seed in SEEDS:
        rows = [row for row in table.to_pylist() if row["seed"] == seed]
        expected = result["seeds"][str(seed)][kind]
        of_class = {
            name: [r for r in rows if r["class_name"] == name] for name in expected["classes"]
        }
        iou = {}
        for name, part in of_class.items():
            hit, union = summed(part, f"{kind}_i", f"{kind}_u")
            iou[name] = 100 * (hit / max(1, union))
        assert iou == expected["classes"] and max(iou.values()) > 0
        assert np.mean(list(iou.values())) == pytest.approx(expected["miou"], rel=1e-14)
        hit, union, of_background, with_background = summed(
            rows, *(f"{kind}_{part}" for part in ("i", "u", "bg_i", "bg_u"))
        )
        both = hit / union, of_background / with_background
        assert 100 * both[0] == expected["p_iou"]
        assert 50 * sum(both) == pytest.approx(expected["fb_iou"], rel=1e-14)


def test_every_row_equals_that_of_its_episode_computed_alone(
    small_run: SimpleNamespace, table: pa.Table
) -> None:
    cfg = small_run.cfg
    model = build_model(cfg).eval()
    load_checkpoint(model, small_run.checkpoint)
    data, _ = open_episodes(cfg, "val", 1, *pixel_statistics(cfg.Method.backbone))
    rows = iter(table.to_pylist())
    for seed in SEEDS:
        episodes = EpisodeDataset(
            data.source, data.sampler.with_seed(seed), data.transform, data.base_table.numpy(),
            data.classes,
        )  # fmt: skip
        for number in range(COUNT):
            batch, row = collate([episodes[number]]), next(rows)
            [plan] = batch.plans
            with torch.no_grad():
                prediction = model(batch.query, batch.support, batch.support_mask)
            _, label = data.source.load(plan.query)
            height, width = label.shape
            target = np.where(label == 255, 255, label == plan.class_id)
            expected = {
                **{"seed": seed, "number": number, "control": "", "query": plan.query},
                **{"class_id": plan.class_id, "class_name": data.sampler.fold.name(plan.class_id)},
                **{"supports": list(plan.supports), "height": height, "width": width},
                "object_pixels": int((target == 1).sum()),
            }
            for kind, scores in (("final", prediction.final), ("meta", prediction.logits[-1])):
                resized = data.transform.to_image(scores, (height, width)).numpy()
                found, labeled = resized[1] > resized[0], target != 255
                for part, mine, truth in (
                    ("", found, target == 1), ("bg_", ~found, target == 0)
                ):  # fmt: skip
                    expected[f"{kind}_{part}i"] = int((mine & truth & labeled).sum())
                    expected[f"{kind}_{part}u"] = int(((mine | truth) & labeled).sum())
            background, foreground = prediction.final[0].numpy()
            similar = np.sort(prediction.prior[0, 0].numpy().flatten())[::-1]
            mean = similar[: -(-len(similar) // 10)].mean()
            there = (foreground - background).max() + mean
            assert row.pop("presence") == pytest.approx(there, abs=1e-5)
            assert row == expected
    assert next(rows, None) is None


def test_file_tells_checkpoint_config_and_list(
    tested: Path, table: pa.Table, small_run: SimpleNamespace
) -> None:
    meta = json.loads(pa.parquet.read_schema(tested / "episodes.parquet").metadata[b"amformer"])
    result = json.loads((tested / "result.json").read_text())
    for name in ("checkpoint_sha256", "iteration", "config"):
        assert meta[name] == result[name]
    assert meta["fold"] == result["environment"]["lists"]
    assert table.schema.equals(SCHEMA)


def test_csv_holds_the_same_rows_and_replaces_the_other_file(
    tested: Path, table: pa.Table, small_run: SimpleNamespace, tmp_path: Path
) -> None:
    (tmp_path / "episodes.parquet").write_bytes(b"of an earlier test")
    words = [*small_run.words, f"Train.save_path={tmp_path}", *WORDS, "Eval.batch_size=2"]
    assert call(test_entry.test, *words, "Eval.records=csv") == 0
    assert read_records(tmp_path / "episodes.csv").equals(table)
    assert not (tmp_path / "episodes.parquet").exists()


def test_short_test_keeps_the_files_of_a_longer_one_and_a_longer_one_replaces_them(
    tested: Path, small_run: SimpleNamespace, tmp_path: Path
) -> None:
    for name in ("result.json", "episodes.parquet"):
        (tmp_path / name).write_bytes((tested / name).read_bytes())
    words = [*small_run.words, f"Train.save_path={tmp_path}", "Eval.seeds=[1]", *WORDS[2:]]
    for count in (2, 3):
        assert call(test_entry.test, *words, f"Eval.episodes={count}") == 0
        result = json.loads((tmp_path / "result.json").read_text())
        assert result["config"]["Eval"]["episodes"] == count
        assert len(read_records(tmp_path / "episodes.parquet")) == count
        for name in ("result", "episodes"):
            [kept] = tmp_path.glob(f"{name}.1.*")
            assert kept.read_bytes() == (tested / f"{name}{kept.suffix}").read_bytes()
            assert not list(tmp_path.glob(f"{name}.2.*"))


def test_result_of_something_else_is_kept(small_run: SimpleNamespace, tmp_path: Path) -> None:
    for content in (b"{}", b"my notes", b"[1, 2]"):
        (tmp_path / "result.json").write_bytes(content)
        assert test_entry.tested_episodes(tmp_path / "result.json") > 1e9
    words = [*small_run.words, f"Train.save_path={tmp_path}", "Eval.seeds=[1]", *WORDS[2:]]
    assert call(test_entry.test, *words, "Eval.episodes=2") == 0
    assert (tmp_path / "result.1.json").read_bytes() == b"[1, 2]"


def test_pictures_that_the_test_did_not_draw_stay(tmp_path: Path) -> None:
    strip = [np.zeros((4, 6, 3), np.uint8)]
    for name in ("episodes", "worst"):
        (tmp_path / f"{name}.png").write_bytes(b"drawn by hand")
    test_entry.write_pictures(tmp_path, {})
    assert {path.name for path in tmp_path.iterdir()} == {"episodes.png", "worst.png"}
    test_entry.write_pictures(tmp_path, {"episodes": strip, "best": strip})
    assert (tmp_path / "episodes.1.png").read_bytes() == b"drawn by hand"
    assert (tmp_path / "worst.png").read_bytes() == b"drawn by hand"
    test_entry.write_pictures(tmp_path, {})  # its own are removed
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {"episodes.1.png", "worst.png"}


def test_rows_are_sorted_and_a_torn_file_is_refused(table: pa.Table, tmp_path: Path) -> None:
    rows = table.to_pylist()
    for suffix in ("parquet", "csv"):
        path = tmp_path / f"episodes.{suffix}"
        write_records(path, rows[::-1], {})
        assert read_records(path).to_pylist() == rows
        path.write_bytes(path.read_bytes()[:300])
        with pytest.raises(UserError, match=f"^{path}: torn"):
            read_records(path)


def test_csv_refuses_names_with_a_space_before_the_test(
    small_run: SimpleNamespace, tmp_path: Path
) -> None:
    cfg, fold = small_run.cfg, small_run.episodes.sampler.fold
    csv = replace(cfg, Eval=replace(cfg.Eval, records="csv"))
    spaced = [*fold.images, "a photo"]
    assert test_entry.records_path(csv, fold.images).name == "episodes.csv"
    assert test_entry.records_path(cfg, spaced).name == "episodes.parquet"
    with pytest.raises(UserError, match="^Eval.records csv: image 'a photo' has a space"):
        test_entry.records_path(csv, spaced)
