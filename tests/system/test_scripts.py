"""train.sh and test.sh: wrong usage is one line and status 2; statuses are passed through."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import ROOT

STUB = "import sys\nprint('{name}', *sys.argv[1:], flush=True)\n"
WRITES = "import os\nos.makedirs('initmodel/demo')\nopen('initmodel/demo/split2_lite0.pth', 'w')\n"
WAITS = """
import time
from util.runtime.stop import Stop
with Stop() as stop:
    print("waits", flush=True)
    while not stop.requested:
        time.sleep(0.01)
    time.sleep(0.5)  # the rest of an iteration
    print("asked to stop")
"""


def call(script: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    names = {name: value for name, value in os.environ.items() if name != "NET"}
    names |= {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""} | environment
    return subprocess.run(
        ["sh", str(script), *words], cwd="/", env=names, capture_output=True, text=True
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the scripts and configs, with entry points that only say how they were called."""
    for part in ("train.sh", "test.sh"):
        shutil.copy(ROOT / part, tmp_path)
    shutil.copytree(ROOT / "config", tmp_path / "config")
    for package in ("model", "util"):
        shutil.copytree(ROOT / package, tmp_path / package)
    for name, status in (("train_base", 0), ("train", 7), ("test", 0)):
        leaves = f"sys.exit({status})\n" if status else ""
        (tmp_path / f"{name}.py").write_text(STUB.format(name=name) + leaves)
    return tmp_path


@pytest.mark.parametrize("script", ["train.sh", "test.sh"])
@pytest.mark.parametrize(
    ("words", "part"),
    [
        ((), "usage: "),
        (("split0", "pascal"), "EXP DATASET GPUS [Section.key=value ...]"),
        (("split0", "nowhere", "0"), "error: no data set nowhere in config/; there is: coco"),
        (("split9", "pascal", "0"), "error: no config/pascal/pascal_split9_resnet50.yaml; "),
        (("split9", "pascal", "0"), " split0_5shot_resnet101 "),
        (("split0", "pascal", "two"), "error: GPUS is a number of GPUs"),
        (("split0", "pascal", "-1"), "error: GPUS is a number of GPUs"),
        (("split0", "pascal", "64"), "error: GPUS 64: this machine has 0; give 0 (the CPU)"),
    ],
)
def test_wrong_usage_of_the_scripts_is_one_line_and_status_2(
    script: str, words: tuple[str, ...], part: str
) -> None:
    got = call(ROOT / script, *words)
    assert (got.returncode, got.stdout) == (2, "")
    assert got.stderr.count("\n") == 1 and part in got.stderr


def test_mistyped_key_is_refused_before_stage_one_starts(tree: Path) -> None:
    got = call(tree / "train.sh", "split0", "pascal", "0", "Train.lrr=1")
    assert (got.returncode, got.stdout) == (2, "")
    expected = "error: command line: unknown key Train.lrr; did you mean Train.lr?\n"
    assert got.stderr == expected


def test_missing_base_learner_is_trained_first(tree: Path) -> None:
    with (tree / "train_base.py").open("a") as stub:
        stub.write(WRITES)
    got = call(
        tree / "train.sh", "split2", "demo", "0", "Train.epochs=3", "Data.shot=2", NET="lite0"
    )
    words = "--config config/demo/demo_split2_lite0.yaml --gpus 0 Train.epochs=3 Data.shot=2"
    absent = "initmodel/demo/split2_lite0.pth is absent: stage one trains the base learner first"
    assert got.stdout.splitlines() == [absent, f"train_base {words}", f"train {words}"]
    assert got.returncode == 7


def test_existing_base_learner_is_not_trained_again(tree: Path) -> None:
    (tree / "there.pth").touch()
    got = call(tree / "train.sh", "split0", "pascal", "0", "Method.pre_weight=there.pth")
    assert got.stdout.startswith("train --config config/pascal/pascal_split0_resnet50.yaml")
    assert got.returncode == 7


def test_failure_of_stage_one_ends_the_script_with_its_status(tree: Path) -> None:
    (tree / "train_base.py").write_text("raise SystemExit(3)\n")
    got = call(tree / "train.sh", "split0", "pascal", "0")
    assert got.returncode == 3 and "\ntrain " not in got.stdout


@pytest.mark.parametrize(
    ("number", "send"),
    [
        (signal.SIGINT, os.killpg),  # as a terminal does
        *[(n, send) for n in (signal.SIGTERM, signal.SIGUSR1) for send in (os.kill, os.killpg)],
    ],
)
def test_stop_request_in_stage_one_ends_the_script(
    number: signal.Signals, send: Callable[[int, int], None], tree: Path
) -> None:
    """It leaves with status 0 and no file. The shell passes on what stage one may have got, too."""
    assert stopped_in_stage_one(tree, "", number, send) == "asked to stop\n"


def test_signal_at_the_end_of_stage_one_prevents_stage_two(tree: Path) -> None:
    done = 'open("made.pth", "w").close()\n'
    said = stopped_in_stage_one(tree, done, signal.SIGTERM, os.kill)
    assert said == "asked to stop\nstopped between the stages; the same command goes on\n"


def stopped_in_stage_one(
    tree: Path, at_last: str, number: signal.Signals, send: Callable[[int, int], None]
) -> str:
    """What train.sh says after a signal to a stage one that ends with `at_last`."""
    with (tree / "train_base.py").open("a") as stub:
        stub.write(WAITS + at_last)
    words = "split2", "demo", "0", "Method.pre_weight=made.pth"
    process = subprocess.Popen(
        ["sh", str(tree / "train.sh"), *words], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHON": sys.executable, "NET": "lite0", "CUDA_VISIBLE_DEVICES": ""},
        start_new_session=True,
    )  # fmt: skip
    for line in process.stdout:
        if line == "waits\n":
            break
    send(process.pid, number)
    said = process.stdout.read()
    assert process.wait(60) == 0
    return said


def test_script_process_becomes_stage_two(tree: Path) -> None:
    """Signals to it reach train.py, which knows how it was started."""
    (tree / "there.pth").touch()
    (tree / "train.py").write_text("import os\nprint(os.getpid(), os.environ['AMFORMER_SH'])\n")
    process = subprocess.Popen(
        ["sh", "train.sh", "split0", "pascal", "0", "Method.pre_weight=there.pth"], cwd=tree,
        env={**os.environ, "PYTHON": sys.executable, "NET": "vgg16"}, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    said = process.communicate(timeout=60)[0]
    assert said == f"{process.pid} NET=vgg16 sh train.sh split0 pascal 0\n"


def test_several_machines_need_a_rendezvous_address() -> None:
    got = call(ROOT / "train.sh", "split0", "pascal", "0", NNODES="2", NODE_RANK="1")
    assert got.returncode == 2 and got.stderr.count("\n") == 1
    assert "NNODES=2 also needs NODE_RANK and RDZV=HOST:PORT" in got.stderr


def test_overrides_with_spaces_stay_one_word(tree: Path) -> None:
    (tree / "test.py").write_text("import sys\nprint(sys.argv[5:])\n")
    got = call(tree / "test.sh", "split0", "pascal", "0", "Eval.seeds=[1, 2]")
    assert (got.returncode, got.stdout) == (0, "['Eval.seeds=[1, 2]']\n")
