"""Every entry point says what it takes, in one style, before anything heavy is imported."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

SECONDS = 2.0  # of processor time


def tracked() -> list[str]:
    """Python files of the repository, tests left out."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [n for n in names.splitlines() if not n.startswith("tests/") and (ROOT / n).is_file()]


PASSED_ON = {"util/runtime/launch.py"}  # its options are torchrun's
ENTRIES = sorted(
    n
    for n in tracked()
    if '__name__ == "__main__"' in (ROOT / n).read_text() and n not in PASSED_ON
)
# What cannot start without a model, and is called once and not in a loop, may import torch first.
WITH_TORCH = {
    "predict.py",
    "util/predict/app.py",
    "util/checkpoint/convert.py",
    "util/report/__main__.py",
}


def words_of(name: str) -> list[str]:
    """How one calls it: a script by its name, a module by -m."""
    if "/" not in name:
        return [sys.executable, name]
    module = name.removesuffix(".py").replace("/", ".")
    return [sys.executable, "-m", module.removesuffix(".__main__")]


def calls(name: str, method: str) -> list[ast.Call]:
    """Calls of a method where the file makes its own command line, `Parser(__doc__)`."""
    tree = ast.parse((ROOT / name).read_text())
    places = [n for n in tree.body if "Parser(__doc__)" in ast.unparse(n)]
    nodes = [n for place in places for n in ast.walk(place)]
    found = [n for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
    return [n for n in found if n.func.attr == method]


def argument_names(name: str) -> list[str]:
    """What a file adds to a command line, hidden arguments left out."""
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


def without_torch(name: str, folder: Path) -> None:
    """Makes torch impossible to import from there, but for what may."""
    if name not in WITH_TORCH:
        (folder / "torch.py").write_text("raise SystemExit('torch was imported for --help')\n")


def ask(words: list[str], folder: Path) -> tuple[str, float]:
    """What is printed, and the seconds of processor time."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "100"}
    before = os.times()
    done = subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    after = os.times()
    taken = after.children_user + after.children_system
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout, taken - before.children_user - before.children_system


def test_every_entry_point_is_found_by_this_file() -> None:
    assert {"train.py", "test.py", "train_base.py", "util/config/load.py"} < set(ENTRIES)
    assert argument_names("util/bench/__main__.py").count("--size") == 1
    assert "--row" not in argument_names("util/bench/__main__.py")


@pytest.mark.parametrize("name", ENTRIES)
def test_help_lists_every_argument_within_a_second(name: str, tmp_path: Path) -> None:
    words = words_of(name)
    without_torch(name, tmp_path)
    said, seconds = ask([*words, "--help"], tmp_path)
    program = " ".join(["python", *words[1:]])
    assert said.startswith(f"usage: {program} ") and "-v, --verbose" in said
    docstring = ast.get_docstring(ast.parse((ROOT / name).read_text()))
    assert docstring.partition("\n")[0] in said
    assert seconds < SECONDS or name in WITH_TORCH
    for call in calls(name, "add_parser"):  # the commands have a help of their own
        more, seconds = ask([*words, call.args[0].value, "--help"], tmp_path)
        assert more.startswith(f"usage: {program} {call.args[0].value} ") and seconds < SECONDS
        said += more
    for argument in argument_names(name):
        assert argument in said
    told = re.sub(r"\n {8,}", "  ", said)  # what an argument does may stand on the next line
    listed = re.split(r"^(?:positional arguments|options):\n", told, flags=re.M)[1:]
    for line in re.findall(r"^  \S.*$", "".join(listed), re.M):
        assert re.search(r"\S {2,}\S", line), f"no word about: {line}"


@pytest.mark.parametrize("name", ENTRIES)
def test_refused_argument_is_one_line_within_a_second(name: str, tmp_path: Path) -> None:
    without_torch(name, tmp_path)
    done = subprocess.run(
        [*words_of(name), "--no-such-option"], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: command line: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("script", ["train.sh", "test.sh"])
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_shell_scripts_print_their_usage_for_help(script: str, option: str) -> None:
    done = subprocess.run(["sh", script, option], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("EXP", "DATASET", "GPUS", "NET", "PYTHON", "Section.key=value", "-v"):
        assert word in done.stdout
    assert "set -eu" not in done.stdout and not done.stdout.startswith("#")
