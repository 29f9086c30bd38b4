"""Every command answers `--help` and refuses a mistake within a second, before importing torch."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

SECONDS = 1.0  # of processor time


def tracked() -> list[str]:
    """Python files of the repository, without tests."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [n for n in names.splitlines() if not n.startswith("tests/") and (ROOT / n).is_file()]


ARGUMENTS_OF_TORCHRUN = {"util/runtime/launch.py"}
ENTRIES = sorted(
    n
    for n in tracked()
    if '__name__ == "__main__"' in (ROOT / n).read_text() and n not in ARGUMENTS_OF_TORCHRUN
)


def words_of(name: str) -> list[str]:
    """The command that runs a file: a script by its name, a module with -m."""
    if "/" not in name:
        return [sys.executable, name]
    module = name.removesuffix(".py").replace("/", ".")
    return [sys.executable, "-m", module.removesuffix(".__main__")]


def calls(name: str, method: str) -> list[ast.Call]:
    """Calls of a method in the functions that create a `Parser(__doc__)`."""
    tree = ast.parse((ROOT / name).read_text())
    places = [n for n in tree.body if "Parser(__doc__)" in ast.unparse(n)]
    nodes = [n for place in places for n in ast.walk(place)]
    found = [n for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
    return [n for n in found if n.func.attr == method]


def argument_names(name: str) -> list[str]:
    """The arguments that a file adds to its command line, without hidden ones."""
    names = []
    for call in calls(name, "add_argument"):
        options = {k.arg: k.value for k in call.keywords}
        if "SUPPRESS" in ast.dump(options.get("help", ast.Constant(""))):
            continue
        flags = [a.value for a in call.args if isinstance(a, ast.Constant)]
        shown = options.get("metavar")
        if not flags[-1].startswith("-") and isinstance(shown, ast.Constant):
            flags = [shown.value]
        names.append(flags[-1])
    return names


@pytest.fixture(autouse=True)
def without_torch(tmp_path: Path) -> None:
    """Make it impossible to import torch from `tmp_path`."""
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')\n")


def run(words: list[str], folder: Path) -> tuple[subprocess.CompletedProcess, float]:
    """Run a command; return it and its seconds of processor time.

    A command that seems slow runs up to three times: other work on the machine may slow it down.
    """
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "100"}
    seconds: list[float] = []
    while not seconds or min(seconds) >= SECONDS and len(seconds) < 3:
        before = os.times()
        done = subprocess.run(
            words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
        )
        after = os.times()
        taken = after.children_user + after.children_system
        seconds.append(taken - before.children_user - before.children_system)
    return done, min(seconds)


def ask(words: list[str], folder: Path) -> tuple[str, float]:
    """Run a command that must succeed; return its output and its seconds of processor time."""
    done, seconds = run(words, folder)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout, seconds


def test_every_entry_point_is_found_by_this_file() -> None:
    assert {"train.py", "test.py", "train_base.py", "util/config/__main__.py"} < set(ENTRIES)
    assert len(calls("util/data/prepare/__main__.py", "add_parser")) > 0
    assert argument_names("util/bench/__main__.py").count("--size") == 1
    assert "--row" not in argument_names("util/bench/__main__.py")


@pytest.mark.parametrize("name", ENTRIES)
def test_help_lists_every_argument_within_a_second(name: str, tmp_path: Path) -> None:
    words = words_of(name)
    said, seconds = ask([*words, "--help"], tmp_path)
    program = " ".join(["python", *words[1:]])
    assert said.startswith(f"usage: {program} ") and "-v, --verbose" in said
    docstring = ast.get_docstring(ast.parse((ROOT / name).read_text()))
    assert docstring.partition("\n")[0] in said
    assert seconds < SECONDS
    commands = re.search(r"\w+(\|\w+)+", said) if calls(name, "add_parser") else None
    for command in commands[0].split("|") if commands else []:  # each has its own help
        more, seconds = ask([*words, command, "--help"], tmp_path)
        assert more.startswith(f"usage: {program} {command} ") and seconds < SECONDS
        said += more
    for argument in argument_names(name):
        assert argument in said
    told = re.sub(r"\n {8,}", "  ", said)  # the help of an argument may start on the next line
    listed = re.split(r"^(?:positional arguments|options):\n", told, flags=re.M)[1:]
    for line in re.findall(r"^  \S.*$", "".join(listed), re.M):
        assert re.search(r"\S {2,}\S", line), f"no help text: {line}"


@pytest.mark.parametrize("name", ENTRIES)
def test_refused_argument_is_one_line_within_a_second(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [*words_of(name), "--no-such-option"], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: command line: ") and done.stderr.count("\n") == 1


DEMO = ["--config", "config/demo/demo_split0_lite0.yaml", "--gpus", "0"]


@pytest.mark.parametrize(
    "words",
    [
        ["train.py", *DEMO, "Train.lrr=1"],
        ["train_base.py", *DEMO, "Base.epochs=0"],
        ["test.py", *DEMO, "Eval.seeds=[]"],
        ["predict.py", "--checkpoint", "nowhere.pth", "--support", "a.jpg:a.png",
         "--query", "b.jpg", "--out", "nowhere"],
        ["-m", "util.predict.app", "--checkpoint", "nowhere.pth"],
        ["-m", "util.report", "nowhere"],
        ["-m", "util.sweep", "nowhere.yaml"],
        ["-m", "util.checkpoint.convert", "same.pth", "same.pth"],
        ["-m", "util.data.lists", "nowhere.yaml"],
        ["-m", "util.bench", "--repeat", "0"],
    ],
    ids=lambda words: words[words[0] == "-m"],
)  # fmt: skip
def test_refused_value_is_one_line_within_a_second(words: list[str], tmp_path: Path) -> None:
    done, seconds = run([sys.executable, *words], tmp_path)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert seconds < SECONDS


@pytest.mark.parametrize("script", ["train.sh", "test.sh"])
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_shell_scripts_print_their_usage_for_help(script: str, option: str) -> None:
    done = subprocess.run(["sh", script, option], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("EXP", "DATASET", "GPUS", "NET", "PYTHON", "Section.key=value", "-v"):
        assert word in done.stdout
    assert "set -eu" not in done.stdout and not done.stdout.startswith("#")
