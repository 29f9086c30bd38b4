"""The command: resume after a stop or a kill at any stage, failing runs, messages, one table.

The scripts of a run are stand-ins (scripts.py), so that a sweep takes seconds.
"""

import csv
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from helpers import ROOT
from helpers.entries import call
from helpers.processes import FORKSERVER

from util.sweep import __main__ as entry
from util.sweep import work

RUNS = [f"split0/{setting}/seed{seed}" for seed in (1, 2) for setting in ("baseline", "no_game")]
STAGES = [
    ("train_base.py", "base0.pth"),
    ("train.py", "split0/no_game/seed1"),
    ("test.py", "split0/no_game/seed1"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a sweep of one fold, two settings and one seed."""
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    for name in ("train_base.py", "train.py", "test.py"):
        shutil.copy(Path(__file__).with_name("scripts.py"), scripts / name)
    sweep = {
        "config": str(ROOT / "config/demo/demo_split0_lite0.yaml"),
        "base_learner": "init/base{fold}.pth",
        "out": "out",
        "folds": [0],
        "seeds": [1],
        "settings": {"baseline": None, "no_game": {"Train.adversarial": False}},
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(work, "ROOT", scripts)
    monkeypatch.setenv("SWEEP_TEST_ROOT", str(ROOT))
    return tmp_path


def sweep(*words: str) -> int:
    return call(entry.sweep, "s.yaml", *words, config=False)


def change(folder: Path, **keys: object) -> None:
    path = folder / "s.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | keys, sort_keys=False))


def begun(folder: Path) -> list[str]:
    """Return the scripts that the runs have begun, from their logs."""
    logs = [folder / "init/base0", *(folder / "out" / name for name in RUNS)]
    texts = [p.read_text() for log in logs if (p := log / "sweep.log").is_file()]
    return sorted(
        line.split()[0] for text in texts for line in text.splitlines() if "begin" in line
    )


ALL = sorted(["train_base.py"] + 2 * ["train.py", "test.py"])


def test_sweep_trains_the_base_learner_once_then_each_run_and_ends_with_a_table(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    change(folder, seeds=[1, 2])
    assert sweep("--jobs", "2") == 0
    said = capsys.readouterr().out
    assert begun(folder) == sorted(ALL + 2 * ["train.py", "test.py"])
    assert said.startswith("4 runs: 0 are finished, 4 to do; base learners to train first: 1\n")
    assert said.index("base0.pth: written to init/base0.pth") < said.index("seed1: starts")
    for name in RUNS:
        assert f"{name}: starts\n" in said and f"{name}: mIoU 5" in said
    assert said.count("to go\n") == 4 and said.count("; 5 of 5 done\n") == 1
    table = (folder / "out/sweep.md").read_text()
    assert table in said and "written: out/sweep.md, sweep.csv" in said
    rows = list(csv.DictReader((folder / "out/sweep.csv").read_text().splitlines()))
    assert [row["setting"] for row in rows] == [
        "baseline", "no_game", "baseline, meta", "no_game, meta"
    ]  # fmt: skip
    assert [float(row["fold 0"]) for row in rows] == [50.5, 53.5, 50.5, 53.5]
    for row in rows[1::2]:
        numbers = [float(row[f"difference{end}"]) for end in (" low", "", " high")]
        assert numbers[1] == pytest.approx(3) and numbers == sorted(numbers)
    assert rows[0]["difference"] == rows[2]["difference"] == ""


def test_finished_sweep_starts_nothing_and_gives_the_same_table(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    assert sweep() == 0
    first = (folder / "out/sweep.csv").read_text()
    before = begun(folder)
    assert sweep() == 0
    assert begun(folder) == before and (folder / "out/sweep.csv").read_text() == first
    assert "2 runs: 2 are finished, 0 to do" in capsys.readouterr().out


@pytest.mark.parametrize(("script", "name"), STAGES)
def test_killed_script_fails_its_run_alone_and_the_same_command_finishes(
    script: str, name: str, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    Path("fault").write_text(f"{script} {name} killed")
    assert sweep("--jobs", "2") == 2
    said = capsys.readouterr()
    assert f"{script} was ended by SIGKILL" in said.err and name in said.err
    is_base = script == "train_base.py"
    assert said.err.splitlines()[-1].startswith(f"error: {3 if is_base else 1} failed: ")
    assert (folder / "out/sweep.md").exists() is not is_base
    Path("fault").unlink()
    assert sweep("--jobs", "2") == 0
    again = {"train_base.py": ["train_base.py"], "train.py": ["train.py"],
             "test.py": ["train.py", "test.py"]}[script]  # fmt: skip
    assert begun(folder) == sorted(ALL + again)
    assert "53.0" in (folder / "out/sweep.md").read_text()


def test_failing_run_is_named_with_the_last_line_of_its_log_and_costs_no_other(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    change(folder, seeds=[1, 2])
    Path("fault").write_text("train.py split0/no_game/seed2 fails")
    assert sweep("--jobs", "1") == 2
    said = capsys.readouterr().err
    log = "out/split0/no_game/seed2/sweep.log"
    assert "split0/no_game/seed2: failed after 00:0" in said
    assert f"error: this one fails ({log})" in said
    last = said.splitlines()[-1]
    assert last.startswith("error: 1 failed: split0/no_game/seed2; ") and said.count("failed:") == 1
    rows = list(csv.DictReader((folder / "out/sweep.csv").read_text().splitlines()))
    assert [float(row["fold 0"]) for row in rows[:2]] == [50.5, 53.0]


@pytest.mark.parametrize(
    ("script", "name", "number"),
    [(*stage, signal.SIGINT) for stage in STAGES] + [(*STAGES[1], signal.SIGTERM)],
)
def test_signal_stops_every_script_and_the_same_command_goes_on(
    script: str, name: str, number: int, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    Path("fault").write_text(f"{script} {name} waits")

    def send() -> None:
        while not Path("waits").exists() or not Path("waits").read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    assert sweep("--jobs", "4") == 0
    thread.join()
    said = capsys.readouterr().out
    assert f"{name}: stopped\n" in said
    assert "The same command goes on:\npython -m util.sweep s.yaml --jobs 4\n" in said
    assert not (folder / "out/sweep.md").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int(Path("waits").read_text()), 0)
    Path("fault").unlink()
    assert sweep() == 0
    assert "53.0" in (folder / "out/sweep.md").read_text()


def test_run_that_a_signal_from_outside_stops_is_not_tested(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    Path("fault").write_text("train.py split0/baseline/seed1 waits")

    def send() -> None:
        while not Path("waits").exists() or not Path("waits").read_text():
            time.sleep(0.01)
        os.kill(int(Path("waits").read_text()), signal.SIGTERM)

    thread = threading.Thread(target=send)
    thread.start()
    assert sweep("--jobs", "1") == 2
    thread.join()
    assert "a signal from outside has stopped this run" in capsys.readouterr().err
    assert not (folder / "out/split0/baseline/seed1/result.json").exists()


def _sweep_there(folder: Path) -> None:
    os.chdir(folder)
    work.ROOT, sys.argv = folder / "scripts", ["sweep", "s.yaml", "--jobs", "1"]
    os.environ["SWEEP_TEST_ROOT"] = str(ROOT)
    entry.sweep()


@pytest.mark.parametrize(("script", "name"), STAGES)
def test_killed_sweep_keeps_its_folder_until_its_runs_have_ended_then_goes_on(
    script: str, name: str, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    Path("fault").write_text(f"{script} {name} waits")
    process = FORKSERVER.Process(target=_sweep_there, args=(folder,))
    process.start()
    while not Path("waits").exists() or not Path("waits").read_text():
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    process.join()
    assert sweep() == 2
    assert "out: another sweep, or a run that it left behind, is at work" in capsys.readouterr().err
    pid = int(Path("waits").read_text())
    os.kill(pid, signal.SIGTERM)
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text():
        time.sleep(0.01)
    Path("fault").unlink()
    assert sweep() == 0
    assert "53.0" in (folder / "out/sweep.md").read_text()


def test_changed_checkpoint_is_tested_again(folder: Path) -> None:
    assert sweep() == 0
    (folder / "out/split0/baseline/seed1/best.pth").write_text("another")
    assert sweep() == 0
    assert begun(folder) == sorted([*ALL, "train.py", "test.py"])


def test_change_of_the_test_alone_repeats_the_tests(folder: Path) -> None:
    assert sweep() == 0
    change(folder, common={"Eval.episodes": 7})
    assert sweep() == 0
    assert begun(folder) == sorted([*ALL, *2 * ["train.py", "test.py"]])


def test_folder_of_another_setting_is_refused_before_anything_starts(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    assert sweep() == 0
    before = begun(folder)
    change(folder, common={"Train.lr": 0.5}, seeds=[1, 2])
    capsys.readouterr()
    assert sweep() == 2
    said = capsys.readouterr().err
    assert said.startswith("error: out/split0/baseline/seed1: holds a run of another setting")
    assert "Train.lr 0.0002 -> 0.5" in said and begun(folder) == before


def test_base_learner_of_another_stage_one_is_refused(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    config = yaml.safe_load("{Train: {}, Base: {epochs: 77}, Method: {}}")
    (folder / "init/base0").mkdir(parents=True)
    (folder / "init/base0/config.yaml").write_text(yaml.safe_dump(config))
    assert sweep() == 2
    assert "init/base0: is of another stage one (Base.epochs 77 -> 5)" in capsys.readouterr().err


def test_setting_tested_on_other_episodes_has_no_difference_and_a_warning_says_why(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    five = {"Data.shot": 5, "Eval.kshot": "ensemble"}
    change(folder, settings={"baseline": None, "no_game": five})
    assert sweep() == 0
    said = capsys.readouterr()
    assert "warning: no difference: " in said.err and "supports is" in said.err
    assert "difference" not in (folder / "out/sweep.md").read_text()


def test_run_without_a_record_of_its_episodes_is_tested_again(folder: Path) -> None:
    assert sweep() == 0
    (folder / "out/split0/baseline/seed1/episodes.parquet").unlink()
    assert sweep() == 0
    assert begun(folder) == sorted([*ALL, "train.py", "test.py"])


def test_cores_are_shared_fairly(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "cores", lambda: 7)
    assert sweep("--jobs", "3") == 0
    assert "with 2 threads" in (folder / "out/split0/baseline/seed1/sweep.log").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--jobs", "0"], "--jobs wants at least 1"),
        (["--jobs", "2", "--gpus", "2"], "--jobs wants at least 1, and no --gpus"),
        (["--gpus", "64"], "GPUS 64: this machine has"),
        (["--slurm", "partition"], "--slurm: 'partition' is no option; write KEY=VALUE"),
        (["--slurm", "gpu=1"], "command line: --slurm: unknown key gpu; did you mean gpus?"),
    ],
)
def test_wrong_option_is_one_line_before_anything_starts(
    words: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    assert sweep(*words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not begun(folder)


def test_slurm_without_its_commands_is_refused_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(folder))
    assert sweep("--slurm") == 2
    assert "--slurm: there is no srun on this machine's PATH" in capsys.readouterr().err
