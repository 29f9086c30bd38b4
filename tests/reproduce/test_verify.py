"""The same run twice gives the same bits; `--verify` repeats a result or names what differs."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.entries import call
from helpers.runs import ROOT, make_data, same

import test as test_entry
import train as train_entry
from util.checkpoint.file import read_checkpoint, write_checkpoint
from util.reproduce import verify as verify_module
from util.runtime.errors import UserError


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    words = [*make_data(tmp_path_factory.mktemp("data")), "Train.seed_deterministic=true"]
    return [
        *words,
        "Data.workers=0",
        "Eval.episodes=4",
        "Eval.seeds=[1,2]",
        "Train.max_iterations=4",
    ]


@pytest.fixture(scope="module")
def run(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    for entry in (train_entry.train, test_entry.test):
        assert call(entry, *words, f"Train.save_path={folder}") == 0
    return folder


def verify(path: Path, *more: str) -> int:
    return call(test_entry.test, "--verify", str(path), *more, config=False)


def test_two_runs_give_the_same_bits(words: list[str], run: Path, tmp_path: Path) -> None:
    for entry in (train_entry.train, test_entry.test):
        assert call(entry, *words, f"Train.save_path={tmp_path}") == 0
    same(run / "last.pth", tmp_path / "last.pth")
    first, second = (json.loads((f / "result.json").read_text()) for f in (run, tmp_path))
    for name in ("summary", "seeds", "confusion", "environment"):
        assert first[name] == second[name], name
    assert any(first["confusion"].values())


def test_result_is_repeated_and_no_file_is_written(
    run: Path, capsys: pytest.CaptureFixture
) -> None:
    before = {p: p.stat().st_mtime_ns for p in run.iterdir()}
    assert verify(run / "result.json") == 0
    assert capsys.readouterr().out.endswith(f"{run}/result.json: every number is equal\n")
    assert before == {p: p.stat().st_mtime_ns for p in run.iterdir()}


@pytest.mark.slow
def test_verify_needs_no_other_argument(run: Path) -> None:
    command = [sys.executable, "test.py", "--verify", str(run / "result.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    got = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    lines = got.stdout.splitlines()
    assert got.returncode in (0, 2), got.stderr  # with more threads, sums have another order
    assert "equal" in lines[-1] if got.returncode == 0 else "numbers differ" in got.stderr


def changed(run: Path, to: Path, change: Callable[[dict], None]) -> Path:
    content = json.loads((run / "result.json").read_text())
    change(content)
    to.write_text(json.dumps(content))
    return to


def number(content: dict) -> None:
    content["seeds"]["2"]["base_miou"] += 1e-9
    content["environment"]["packages"]["torch"] = "1.0"
    content["environment"]["machine"]["threads"] = 99


def test_each_differing_number_and_each_difference_of_environments_is_a_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert verify(changed(run, tmp_path / "result.json", number)) == 2
    got = capsys.readouterr()
    assert got.err == f"error: {tmp_path}/result.json: 1 numbers differ, see above\n"
    told = [line for line in got.out.splitlines() if line.startswith(("differs", "another"))]
    assert told[0].startswith("another environment: packages.torch 1.0 -> 2.")
    assert told[1].startswith("another environment: machine.threads 99 -> ")
    assert told[2].startswith("differs: seeds.2.base_miou ") and len(told) == 3


def test_number_in_only_one_of_two_results_differs() -> None:
    """For example 0 pixels against 7, because the confusion leaves out zeros."""
    environment = {"code": {"commit": "a"}, "packages": {}, "machine": {}}
    pixels = {"cat": {"predicted": {"hit": 3}, "object": {"hit": 3, "car": 7}}, "dog": {}}
    summary = {"mIoU": {"mean": 1.0, "std": 0.0}}
    full = {"summary": summary, "seeds": {"1": 1.0}, "confusion": pixels}
    less = {"summary": {}, "seeds": {"1": 1.0}, "confusion": {"cat": {"object": {"hit": 3}}}}
    full, less = (record | {"environment": environment} for record in (full, less))
    alone = {"confusion.cat.object.car": 7, "confusion.cat.predicted.hit": 3}
    alone |= {"summary.mIoU.mean": 1.0, "summary.mIoU.std": 0.0}
    for then, now in ((full, less), (less, full)):
        told: list[str] = []
        with pytest.raises(ValueError, match="^x.json: 4 numbers differ"):
            verify_module.compare_results("x.json", then, now, told.append)
        sides = [(v, "missing") if then is full else ("missing", v) for v in alone.values()]
        pairs = zip(alone, sides, strict=True)
        assert told == [f"differs: {name} {old} -> {new}" for name, (old, new) in pairs]
    told = []
    verify_module.compare_results("x.json", full, full, told.append)
    assert told == ["x.json: every number is equal"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c["config"]["Eval"].update(seeds=[1, 3]), "config Eval.seeds"),
        (lambda c: c["environment"]["lists"].update(val=7), "list of val 7 -> "),
        (lambda c: c.update(checkpoint_sha256="0"), "is not the one that was tested"),
        (lambda c: c.pop("seeds"), "not a result of test.py"),
        (lambda c: c.clear(), "not a result of test.py"),
    ],
)
def test_result_of_another_measurement_is_refused_before_the_test_begins(
    words: list[str],
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    change: Callable[[dict], None],
    told: str,
) -> None:
    path = changed(run, tmp_path / "x.json", change)
    more = f"Train.save_path={run}", "--verify", str(path)
    assert call(test_entry.test, *words, *more) == 2
    got = capsys.readouterr()
    assert told in got.err and got.err.count("\n") == 1 and "seed 1" not in got.out


def test_another_checkpoint_than_the_tested_one_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    state = read_checkpoint(run / "best.pth")
    state["model"]["ensemble.gram_merge.weight"] += 1
    write_checkpoint(tmp_path / "best.pth", **state)
    assert verify(run / "result.json", f"Eval.weight={tmp_path}/best.pth") == 2
    assert "best.pth is not the one that was tested" in capsys.readouterr().err


def test_missing_or_torn_result_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert verify(tmp_path / "result.json") == 2
    assert "cannot read this config file" in capsys.readouterr().err
    (tmp_path / "result.json").write_bytes((run / "result.json").read_bytes()[:500])
    assert verify(tmp_path / "result.json") == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("environment", [[], 7, {}, {"lists": [1]}])
def test_foreign_result_is_refused_before_the_test(environment: object, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    content = {"config": {}, "environment": environment, "checkpoint_sha256": ""}
    path.write_text(json.dumps({**dict.fromkeys(verify_module.NUMBERS, {}), **content}))
    with pytest.raises(UserError, match="is not a result of test.py"):
        verify_module.read_comparable(str(path), {})
