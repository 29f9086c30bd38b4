"""Command lines with a config: `python -m util.config`, the arguments of the entry points."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

from util.config.arguments import arguments, config_argument
from util.runtime.errors import UserError

R50 = ROOT / "config/pascal/pascal_split0_resnet50.yaml"


def test_util_config_prints_one_value_and_refuses_mistakes_with_status_2() -> None:
    call = [sys.executable, "-m", "util.config", str(R50)]
    got = subprocess.run(
        [*call, "Data.split=1", "--get", "Method.pre_weight"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (got.returncode, got.stdout) == (0, "initmodel/pascal/split0_resnet50.pth\n")
    got = subprocess.run(
        [*call, "Data.splitt=1", "--get", "Data.split"], cwd=ROOT, capture_output=True, text=True
    )
    assert got.returncode == 2
    expected = "error: command line: unknown key Data.splitt; did you mean Data.split?\n"
    assert got.stderr == expected
    got = subprocess.run([*call, "--get", "Data.splt"], cwd=ROOT, capture_output=True, text=True)
    expected = "error: command line: --get: unknown key Data.splt; did you mean Data.split?\n"
    assert (got.returncode, got.stderr) == (2, expected)


def test_arguments_returns_config_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["train.py", "--config", str(R50), "--gpus", "2", "Train.lr=1", "Data.split=3"]
    monkeypatch.setattr(sys, "argv", words)
    config, gpus = arguments("")
    assert (config.Train.lr, config.Data.split, gpus) == (1.0, 3, 2)
    monkeypatch.setattr(sys, "argv", [*words[:4], "many"])
    with pytest.raises(UserError, match="command line: argument --gpus: invalid int value: 'many'"):
        arguments("")


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("--Train.lr=1", "a key of the config has no dashes: Train.lr=1"),
        ("--gpsu=1", "did you mean --gpus?"),
        ("--qqq", "--help lists what there is"),
    ],
)
def test_unknown_option_names_the_most_similar_one(
    monkeypatch: pytest.MonkeyPatch, word: str, hint: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", str(R50), "--gpus", "0", word])
    with pytest.raises(UserError, match=f"unrecognized arguments: {word}; .*{re.escape(hint)}"):
        arguments("")


def test_overrides_may_be_before_and_after_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["Train.lr=1", "--gpus", "0", "Data.split=3", "-v", "--config", str(R50), "Data.shot=2"]
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    config, _ = arguments("")
    assert (config.Train.lr, config.Data.split, config.Data.shot) == (1.0, 3, 2)


def test_command_lines_fill_in_the_class_names_of_a_custom_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    words = ["Data.data_set=custom", f"Data.data_root={tmp_path}", "Data.novel=[cat]"]
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", str(R50), "--gpus", "0", *words])
    assert arguments("")[0].Data.classes == ("dog", "cat")
    monkeypatch.setattr(sys, "argv", ["check.py", str(R50), *words])
    assert config_argument("").Data.classes == ("dog", "cat")


def test_importing_util_config_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, util.config.arguments; print({'torch', 'numpy'} & sys.modules.keys())"
    got = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert got.stdout == "set()\n", got.stderr
