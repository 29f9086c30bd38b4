"""A test that was stopped goes on: the numbers and the file of one that never stopped."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.entries import call
from helpers.processes import on_processes
from helpers.runs import StopAt, start, wait_for

import test as test_entry
from model import build_model
from model.backbones import pixel_statistics
from util.checkpoint.file import read_checkpoint
from util.checkpoint.load import load_checkpoint
from util.config import load_config
from util.data import open_episodes
from util.evaluate import unfinished as unfinished_module
from util.evaluate.evaluator import Evaluator
from util.evaluate.unfinished import Unfinished
from util.runtime.distributed import Ranks
from util.runtime.errors import RunStopped

WORDS = ["Eval.episodes=7", "Eval.seeds=[5,6]", "Eval.visualize=2"]
PARTS = ("summary", "seeds", "confusion", "checkpoint_sha256", "iteration", "config")


@pytest.fixture(scope="module")
def words(small_run: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*small_run.words, f"Train.save_path={tmp_path_factory.mktemp('run')}", *WORDS]


def folder_of(words: list[str]) -> Path:
    return Path([w for w in words if w.startswith("Train.save_path=")][-1].partition("=")[2])


@pytest.fixture
def folder(words: list[str]) -> Path:
    """The folder of the test, which is empty."""
    path = folder_of(words)
    for file in path.iterdir():
        file.unlink()
    return path


def files_of(folder: Path) -> dict[str, object]:
    """What a test has written, but for its log, its cost and the machine."""
    found: dict[str, object] = {path.name: path.read_bytes() for path in folder.iterdir()}
    result = json.loads(found.pop("result.json"))
    assert found.pop("test.log")
    return found | {part: result[part] for part in PARTS}


@pytest.fixture(scope="module")
def whole(words: list[str]) -> dict[str, object]:
    """What a test that was not stopped has written."""
    assert call(test_entry.test, *words) == 0
    found = files_of(folder_of(words))
    assert {"episodes.parquet", "episodes.png", "worst.png", "best.png"} <= found.keys()
    return found


def stopped(words: list[str], queries: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_entry, "Stop", StopAt(queries))
        assert call(test_entry.test, *words) == 1


def test_stopped_test_goes_on_with_the_same_command_to_the_same_files(
    words: list[str], whole: dict, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    for queries, done in ((2, 3), (4, 8)):
        stopped(words, queries)
        error = capsys.readouterr().err
        told = f"stopped: {done} episodes are done; the same command goes on with the others: "
        assert error.startswith(told + "python test --config") and error.count("\n") == 1
        assert {path.name for path in folder.iterdir()} == {"unfinished.0.pth", "test.log"}
    assert call(test_entry.test, *words) == 0
    assert "goes on: 8 episodes are done" in capsys.readouterr().out
    assert files_of(folder) == whole


def test_killed_test_loses_what_it_did_since_the_last_file(
    words: list[str], whole: dict, folder: Path, capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(unfinished_module, "PERIOD", 0.0)
    written = []

    def killed(self: Unfinished) -> None:
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(Unfinished._write(self))

    with monkeypatch.context() as patch:
        patch.setattr(Unfinished, "save_if_due", killed)
        assert call(test_entry.test, *words) == 130
    capsys.readouterr()
    assert call(test_entry.test, *words) == 0
    assert "goes on: 4 episodes are done" in capsys.readouterr().out
    assert files_of(folder) == whole


@pytest.mark.parametrize("fault", ["another test", "torn"])
def test_counts_of_another_test_and_torn_ones_are_not_used(
    fault: str, words: list[str], whole: dict, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    stopped([*words, "Eval.seeds=[7]"] if fault == "another test" else words, 2)
    path = folder / "unfinished.0.pth"
    if fault == "torn":
        path.write_bytes(path.read_bytes()[:500])
    assert call(test_entry.test, *words) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "not used" in line]
    assert len(lines) == 1 and str(path) in lines[0]
    assert files_of(folder) == whole


def test_files_that_were_added_up_but_not_removed_do_not_count_twice(
    words: list[str], whole: dict, folder: Path
) -> None:
    stopped(words, 2)
    first = (folder / "unfinished.0.pth").read_bytes()
    stopped(words, 2)
    (folder / "unfinished.1.pth").write_bytes(first)
    assert len(read_checkpoint(folder / "unfinished.0.pth")["groups"]) == 6
    assert call(test_entry.test, *words) == 0
    assert files_of(folder) == whole


def test_verification_that_is_stopped_is_no_success_and_leaves_nothing(
    words: list[str], folder: Path, capsys: pytest.CaptureFixture
) -> None:
    assert call(test_entry.test, *words) == 0
    before = files_of(folder)
    stopped([*words, "--verify", str(folder / "result.json")], 2)
    assert "stopped: the test was not finished, and nothing is compared" in capsys.readouterr().err
    assert files_of(folder) == before


def test_disk_that_fails_costs_a_warning(
    words: list[str], whole: dict, folder: Path, capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def failing(path: Path, **state: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(unfinished_module, "PERIOD", 0.0)
    monkeypatch.setattr(unfinished_module, "write_checkpoint", failing)
    assert call(test_entry.test, *words) == 0
    text = "cannot be written (No space left on device); the test goes on"
    assert text in capsys.readouterr().err
    assert files_of(folder) == whole


def test_signal_stops_the_process(words: list[str], folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start([*words, "Eval.episodes=4000"], log, script="test.py")
    wait_for(lambda: log.exists() and "\n1/" in log.read_text(), process)
    os.kill(process.pid, signal.SIGTERM)
    process.join(120)
    assert process.exitcode == 1
    lines = log.read_text().splitlines()
    assert lines[-1].startswith("stopped: ") and lines[-1].endswith("Eval.episodes=4000")
    state = read_checkpoint(folder / "unfinished.0.pth")
    assert lines[-1].startswith(f"stopped: {len(state['rows'])} episodes") and state["rows"]


def evaluated(ranks: Ranks, limit: int) -> tuple[str, list] | None:
    """Evaluate at most `limit` groups on each rank; None if some are left."""
    cfg = load_config(os.environ["RUN_CONFIG"], os.environ["RUN_WORDS"].split("|"))
    model = build_model(cfg)
    load_checkpoint(model, Path(cfg.Eval.weight))
    episodes, _ = open_episodes(cfg, "val", 1, *pixel_statistics(cfg.Method.backbone))
    evaluator, left = Evaluator(model, episodes, cfg, ranks), iter(range(limit - 1))
    order = evaluator.order(7, [5, 6])
    tally = evaluator.tally(order)
    unfinished = Unfinished(Path(os.environ["RUN_FOLDER"]), {"a": 1}, ranks, tally)
    todo, asked = unfinished.remaining(order), [False]

    def stop() -> bool:
        asked[0] = asked[0] or next(left, None) is None
        return asked[0]

    scores = evaluator.run(todo, tally, stop=stop if limit else None)
    if not scores:
        with pytest.raises(RunStopped):
            unfinished.stop()
        return None
    return str(scores), tally.rows


def two_groups(ranks: Ranks) -> object:
    return evaluated(ranks, 2)


def all_groups(ranks: Ranks) -> object:
    return evaluated(ranks, 0)


def test_any_number_of_ranks_goes_on_to_what_one_rank_finds(
    small_run: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUN_CONFIG", str(small_run.config))
    monkeypatch.setenv("RUN_WORDS", "|".join(small_run.words))
    monkeypatch.setenv("RUN_FOLDER", str(tmp_path / "alone"))
    [alone] = on_processes(1, all_groups, tmp_path)
    assert len(alone[1]) == 14
    monkeypatch.setenv("RUN_FOLDER", str(tmp_path / "shared"))
    for world in (3, 2):
        assert on_processes(world, two_groups, tmp_path) == [None] * world
    groups = {
        path.name: read_checkpoint(path)["groups"] for path in (tmp_path / "shared").iterdir()
    }
    assert {name: len(done) for name, done in groups.items()} == {
        "unfinished.0.pth": 8,
        "unfinished.1.pth": 2,
    }
    assert on_processes(2, all_groups, tmp_path) == [alone, alone]
