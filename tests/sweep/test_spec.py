"""Sweep files: the grid that they describe, and one line for each mistake."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import ROOT

from util.config import load_config, to_dict
from util.report.compare import FILES
from util.reproduce.environment import file_hash
from util.runtime.errors import UserError
from util.sweep.plan import Run, plan
from util.sweep.spec import SlurmOptions, as_yaml, read_sweep, validated

GOOD: dict[str, Any] = {
    "config": "config/demo/demo_split{fold}_lite0.yaml",
    "base_learner": "init/base{fold}.pth",
    "out": "exp/sweeps/x",
    "folds": [0, 1],
    "seeds": [321, 322],
    "common": {"Train.max_iterations": 4},
    "settings": {"baseline": None, "no_game": {"Train.adversarial": False}},
}


def write(folder: Path, **changes: object) -> Path:
    """Write the good file with changes; None leaves a key out."""
    path = folder / "s.yaml"
    content = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def runs_of(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    monkeypatch.chdir(ROOT)
    return plan(read_sweep(path), path)


def test_sweep_has_a_run_for_each_setting_fold_and_seed_and_a_base_learner_for_each_fold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = runs_of(write(tmp_path), monkeypatch)
    assert [run.name for run in runs] == [
        f"split{fold}/{setting}/seed{seed}"
        for seed in (321, 322)
        for fold in (0, 1)
        for setting in ("baseline", "no_game")
    ]
    assert {(run.fold, str(run.base.target)) for run in runs} == {
        (0, "init/base0.pth"),
        (1, "init/base1.pth"),
    }
    assert len({run.base for run in runs}) == 2
    run = runs[-1]
    assert run.config == "config/demo/demo_split1_lite0.yaml"
    assert run.cfg.Train.save_path == "exp/sweeps/x/split1/no_game/seed322" == str(run.folder)
    assert (run.cfg.Data.split, run.cfg.Train.seed, run.cfg.Train.adversarial) == (1, 322, False)


def test_axes_give_a_setting_for_each_choice_and_the_first_values_come_first(
    tmp_path: Path,
) -> None:
    axes = {"Train.lr": [1e-4, 2e-4], "Data.shot": [1, 5], "Data.size": [[65, 33]]}
    sweep = read_sweep(write(tmp_path, settings=None, axes=axes))
    assert list(sweep.settings) == [
        "lr=0.0001,shot=1,size=_65,_33_",
        "lr=0.0001,shot=5,size=_65,_33_",
        "lr=0.0002,shot=1,size=_65,_33_",
        "lr=0.0002,shot=5,size=_65,_33_",
    ]
    assert sweep.settings["lr=0.0002,shot=1,size=_65,_33_"] == {
        "Train.lr": 2e-4, "Data.shot": 1, "Data.size": [65, 33]
    }  # fmt: skip


def test_axes_with_the_same_last_name_keep_their_sections(tmp_path: Path) -> None:
    axes = {"Train.lr": [0.1], "Base.lr": [0.2]}
    sweep = read_sweep(write(tmp_path, settings=None, axes=axes))
    assert list(sweep.settings) == ["Train.lr=0.1,Base.lr=0.2"]


def test_settings_that_change_stage_one_share_a_base_learner_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "baseline": None,
        "short": {"Base.epochs": 2},
        "short_no_game": {"Base.epochs": 2, "Train.adversarial": False},
        "backbone": {"Method.backbone": "resnet50", "Method.pretrained": "none"},
        "same_value": {"Base.epochs": 5},
        "episodes": {"Data.shot": 5, "Eval.kshot": "ensemble"},
    }
    runs = runs_of(write(tmp_path, settings=settings, folds=[0], seeds=[1]), monkeypatch)
    base = {run.setting: run.base for run in runs}
    assert base["baseline"] is base["same_value"] is base["episodes"]
    assert base["short"] is base["short_no_game"]
    assert len(set(base.values())) == 3
    assert base["short"].target.name.startswith("base0_") and base["short"].cfg.Base.epochs == 2
    assert base["backbone"].cfg.Method.backbone == "resnet50"


def mix_of(*sets: str, **more: object) -> dict[str, Any]:
    return {"Data.data_set": "mix", "Data.mix": list(sets), **more}


def test_settings_with_other_data_sets_have_other_base_learners_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, moved, y, z = (f"custom:{tmp_path}/{name}" for name in ("b/x", "d/x", "b/y", "b/z"))
    for entry in (x, moved, y, z):
        folder = Path(entry.partition(":")[2])
        folder.mkdir(parents=True)
        (folder / "classes.txt").write_text("cat\ndog\n")
    settings = {
        "none": None,
        "mix": mix_of("coco:a", x),
        "moved": mix_of("coco:c", moved),
        "weighted": mix_of("coco:a", x, **{"Data.mix_weights": [1, 2]}),
        "turned": mix_of(x, "coco:a"),
        "more": mix_of("coco:a", x, y),
        "other": mix_of("coco:a", z),
    }
    runs = runs_of(write(tmp_path, settings=settings, folds=[0], seeds=[1]), monkeypatch)
    of = {run.setting: replace(run, folder=tmp_path / "run") for run in runs}
    base = {name: run.base for name, run in of.items()}
    assert base["mix"] is base["moved"] is base["weighted"]
    assert len(set(base.values())) == 5

    folder = of["mix"].folder
    folder.mkdir()
    config = to_dict(of["mix"].cfg)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "best.pth").write_bytes(b"weights")
    (folder / FILES[0]).write_bytes(b"")
    content = {"config": config, "checkpoint": f"{folder}/best.pth"}
    content["checkpoint_sha256"] = file_hash(folder / "best.pth")
    of["mix"].result.write_text(json.dumps(content))
    of["mix"].check()
    assert of["mix"].is_finished()
    for name in ("turned", "more", "other"):
        assert not of[name].is_finished()
        with pytest.raises(UserError, match="another setting .*Data.mix "):
            of[name].check()
        stage_one = replace(base[name], folder=folder)
        with pytest.raises(UserError, match="another stage one .*Data.mix "):
            stage_one.check()
    replace(base["weighted"], folder=folder).check()


@pytest.mark.parametrize("name", ["oddities", "folds", "listening", "demo", "family"])
def test_words_of_a_run_give_its_config(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for run in runs_of(ROOT / f"config/sweeps/{name}.yaml", monkeypatch):
        for unit in (run, run.base):
            assert to_dict(load_config(unit.config, list(unit.words))) == to_dict(unit.cfg)


@pytest.mark.parametrize("value", [1e-9, "1e-9", "", None, "a: b", [1, 2], True, "true", "ä" * 99])
def test_value_as_yaml_is_one_line_that_reads_back(value: object) -> None:
    assert yaml.safe_load(as_yaml(value)) == value and "\n" not in as_yaml(value)


def test_sweep_of_the_oddities_names_every_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = runs_of(ROOT / "config/sweeps/oddities.yaml", monkeypatch)
    assert len(runs) == 11 * 2
    run = next(run for run in runs if run.name == "split2/adversarial_1/seed322")
    words = ["Data.split=2", "Method.pre_weight=initmodel/pascal/real193_split2_lite0.pth"]
    words += ["Train.save_path=exp/sweeps/oddities/split2/adversarial_1/seed322"]
    words += ["Train.seed=322", "Train.max_iterations=704", "Train.resume=auto"]
    words += ["Train.adversarial_weight=1.0", "Train.adversarial_rest_weight=0.01"]
    assert run.cfg == load_config("config/pascal/pascal_real193_lite0.yaml", words)
    text = (ROOT / "docs/deviations.md").read_text()
    changed = {key for words in read_sweep(ROOT / "config/sweeps/oddities.yaml").settings.values()
               for key in words}  # fmt: skip
    assert all(f"`{key}" in text for key in changed - {"Train.adversarial", "Train.aux_weight1"})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": [1]}, "s.yaml:16: unknown key seed; did you mean seeds?"),
        ({"out": None}, "s.yaml: out is missing; docs/sweeps.md has an example"),
        ({"folds": 0}, "s.yaml:4: folds: input should be a valid list, given 0"),
        ({"folds": []}, "s.yaml:4: folds: "),
        ({"seeds": [1, "two"]}, "s.yaml:7: seeds.1: input should be a valid integer, given 'two'"),
        ({"seeds": [1, 1]}, "s.yaml: seeds names [1, 1]; remove the repetition"),
        ({"base_learner": "b.pth"}, "s.yaml: base_learner: the folds would share one"),
        ({"settings": None}, "s.yaml: give settings, or axes"),
        ({"axes": {"Train.lr": [1.0]}}, "s.yaml: give settings, or axes"),
        ({"settings": None, "axes": {"Train.lr": []}}, "s.yaml:13: axes.Train.lr: list should"),
        ({"settings": {"a/b": None}}, "the name 'a/b' is to be a folder; use letters"),
        ({"settings": {"a": [1]}}, "s.yaml:13: settings.a: input should be a valid dict"),
        ({"settings": {"a": {"Train.seed": 1}}}, "s.yaml: Train.seed is set by the sweep; give se"),
        ({"settings": {"a": {"Train.lrr": 1}}}, "s.yaml: settings.a: unknown key Train.lrr; did"),
        ({"settings": {"a": {"Train.lr": "x"}}}, "s.yaml: settings.a: Train.lr wants a number, "),
        ({"common": {"Base.epochs": 0}}, "s.yaml: common: Base.epochs wants an integer, at least"),
        (
            {"settings": {"a": {"Train.adversarial": False, "Method.train_parts": True}}},
            "s.yaml: settings.a: Method.train_parts has no effect without Train.adversarial",
        ),
        (
            {"folds": [0, 4], "config": "config/demo/demo_split0_lite0.yaml"},
            "s.yaml: settings.baseline: Data.split wants at most 3, given 4",
        ),
        ({"common": {"Eval.way": 2}}, "s.yaml: settings.baseline: the table of a sweep has one-w"),
        ({"config": "nowhere.yaml"}, "nowhere.yaml: cannot read this config file"),
    ],
)
def test_mistake_is_one_line_that_names_file_and_key(
    changes: dict, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError) as error:
        runs_of(write(tmp_path, **changes), monkeypatch)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "not valid YAML"),
        ("- 1", "wants keys such as `config:`, given [1]"),
        ("out: a\nout: b", "s.yaml:2: out is in line 1, too; join them"),
        ("settings:\n  a: {}\n  a: {}", "s.yaml:3: settings.a is in line 2, too; join them"),
        ("settings: {a: {Train.lr: 1, Train.lr: 2}}", "settings.a.Train.lr is in line 1, too"),
    ],
)
def test_file_that_is_no_sweep_is_refused_in_one_line(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_sweep(path)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"partitoin": "x"}, "unknown key partitoin; did you mean partition?"),
        ({"time": "1:00"}, "time: input should be a valid integer, given '1:00'"),
        ({"gpus": 2}, "gpus: input should be less than or equal to 1, given 2"),
    ],
)
def test_wrong_option_of_slurm_is_one_line(options: dict, said: str) -> None:
    with pytest.raises(UserError, match="^x: ") as error:
        validated(SlurmOptions, options, "x")
    assert said in str(error.value)
