"""Every config file loads with the settings it promises; a mistake is one line with a remedy."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

from util.config import load_config, save_config, to_dict
from util.config.arguments import arguments

FOLD_FILES = sorted(path for path in ROOT.glob("config/[a-z]*/*.yaml"))
R50 = ROOT / "config/pascal/pascal_split0_resnet50.yaml"


def mistake(path: Path, *overrides: str) -> str:
    """The message that this file with these overrides is refused with."""
    with pytest.raises(ValueError) as caught:
        load_config(path, list(overrides))
    message = str(caught.value)
    assert "\n" not in message
    return message


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", FOLD_FILES, ids=lambda path: path.stem)
def test_every_config_file_loads_and_says_score_or_cost(path: Path) -> None:
    config = load_config(path, [])
    header = path.read_text()
    assert header.startswith("# ") and ("Cost:" in header or "Published" in header)
    assert config.Method.pre_weight and config.Train.save_path != "exp/run"
    if path.parent.name == "demo" or "real193" in path.stem:
        assert config.Train.feature_store and config.Base.freeze_backbone
    else:
        assert path.stem == config.name


def test_all_folds_shots_and_networks_are_there() -> None:
    names = {path.stem for path in FOLD_FILES}
    for data_set in ("pascal", "coco"):
        for fold in range(4):
            for shot in ("", "_5shot"):
                for net in ("resnet50", "resnet101", "vgg16"):
                    assert f"{data_set}_split{fold}{shot}_{net}" in names


def test_two_configs_never_write_into_one_folder() -> None:
    folders = [load_config(path, []).Train.save_path for path in FOLD_FILES]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize(
    ("name", "size", "batch", "lr", "epochs", "shot"),
    [
        ("pascal_split0_resnet50", 473, 8, 2e-4, 300, 1),
        ("pascal_split3_resnet101", 473, 16, 3e-4, 300, 1),
        ("pascal_split1_5shot_resnet50", 473, 4, 1e-4, 200, 5),
        ("coco_split2_resnet50", 633, 4, 5e-5, 75, 1),
    ],
)
def test_released_settings(
    name: str, size: int, batch: int, lr: float, epochs: int, shot: int
) -> None:
    config = load_config(ROOT / f"config/{name.partition('_')[0]}/{name}.yaml", [])
    train = config.Train
    assert (config.Data.size, train.batch_size, train.lr) == (size, batch, lr)
    assert (train.epochs, config.Data.shot) == (epochs, shot)
    assert (train.seed, train.weight_decay, train.lr_multiplier) == (321, 0.01, 10)
    assert len(config.Eval.seeds) == 10
    base = (config.Base.lr, config.Base.batch_size, config.Base.size, config.Base.scale)
    assert base == (2.5e-4, 12, 417, (0.5, 2.0))
    coco = name.startswith("coco")
    assert config.Eval.episodes == (10_000 if coco else 1_000)
    assert config.Data.scale == ((0.8, 1.25) if coco else (0.9, 1.1))
    stage_one = (config.Base.epochs, config.Base.head_lr_multiplier)
    assert stage_one == ((20, 1) if coco else (100, 10))
    assert config.num_base_classes == (60 if coco else 15)


def test_published_oddities_are_the_default() -> None:
    method, train = load_config(R50, []).Method, load_config(R50, []).Train
    assert method.mining_softmax == "query" and method.mask_threshold == 0.7
    assert method.fix_bn and method.base_dropout and method.discriminator_sigmoid
    assert not method.train_parts and not method.train_kshot
    assert (train.adversarial_weight, train.adversarial_rest_weight) == (0.1, 1e-9)
    assert (train.adversarial_period, train.diversity_weight, train.aux_weight1) == (5, 0.01, 1)


def test_overrides_win_and_are_read_as_yaml() -> None:
    words = ["Train.lr=1e-4", "Data.scale=[1, 1.5]", "Train.resume=", "Train.adversarial=false"]
    config = load_config(R50, [*words, "Train.lr=3e-4", "Eval.seeds=[5]"])
    assert config.Train.lr == 3e-4
    assert config.Data.scale == (1.0, 1.5)
    assert config.Train.resume == "" and config.Train.adversarial is False
    assert config.Eval.seeds == (5,)


def test_bases_merge_by_key_and_the_nearer_file_wins(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "Train: {lr: 1.0, epochs: 7}\nData: {split: 1}")
    write(tmp_path / "b.yaml", "_base_: a.yaml\nTrain: {lr: 2.0}")
    write(tmp_path / "c.yaml", "Train: {power: 0.5}\nData: {split: 2}")
    top = write(tmp_path / "top.yaml", "_base_: [b.yaml, c.yaml]\nData: {shot: 5}")
    config = load_config(top, [])
    assert (config.Train.lr, config.Train.epochs, config.Train.power) == (2.0, 7, 0.5)
    assert (config.Data.split, config.Data.shot) == (2, 5)


def test_saved_config_reads_back_as_it_was(tmp_path: Path) -> None:
    config = load_config(R50, ["Data.shot=3", "Train.lr=1e-7"])
    save_config(config, tmp_path / "run/config.yaml")
    assert load_config(tmp_path / "run/config.yaml", []) == config
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]
    assert to_dict(config)["Data"]["scale"] == [0.9, 1.1]


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("Train.lrr=1", ("Train.lrr", "did you mean Train.lr?")),
        ("lr=1", ("unknown key lr", "Base.lr or Train.lr")),
        ("Train.shot=5", ("Train.shot", "did you mean Data.shot?")),
        ("Trian.zzz=1", ("Trian.zzz", "did you mean Train?")),
        ("Trian.lr=1", ("Trian.lr", "did you mean Train.lr?")),
        ("trian.lrr=1", ("trian.lrr", "did you mean Train.lr?")),
        ("train.LR=1", ("train.LR", "did you mean Train.lr?")),
        ("epoch=1", ("unknown key epoch", ".epochs?")),
        ("Data.datset=coco", ("Data.datset", "did you mean Data.data_set?")),
        ("Train.lr", ("'Train.lr'", "Section.key=value")),
        ("Train.lr=[1", ("Train.lr", "not valid YAML")),
        ("Train.lr=fast", ("Train.lr wants a number", "'fast'")),
        ("Train.lr=true", ("Train.lr wants a number", "True")),
        ("Train.lr=.nan", ("Train.lr wants a number", "nan")),
        ("Train.lr=", ("Train.lr wants a number", "None")),
        ("Train.lr=0", ("Train.lr wants more than 0", "given 0")),
        ("Train.epochs=true", ("Train.epochs wants an integer", "True")),
        ("Train.epochs=2.5", ("Train.epochs wants an integer", "2.5")),
        ("Train.adversarial=1", ("Train.adversarial wants true or false", "given 1")),
        ("Train.save_path=7", ("Train.save_path wants text", "given 7")),
        ("Data.split=4", ("Data.split wants at most 3", "given 4")),
        ("Data.shot=0", ("Data.shot wants at least 1", "given 0")),
        ("Data.data_set=voc", ("Data.data_set wants pascal or coco", "'voc'")),
        ("Data.size=480", ("Data.size must be 1 mod 8", "481")),
        ("Data.scale=[1.2, 0.8]", ("Data.scale", "smaller number first")),
        ("Data.scale=1", ("Data.scale wants a list of 2 numbers", "given 1")),
        ("Eval.seeds=[]", ("Eval.seeds wants a list of one or more integers", "[]")),
        ("Eval.seeds=[1, 1]", ("Eval.seeds", "twice")),
        ("Method.backbone=resnet18", ("Method.backbone", "timm/<name>", "'resnet18'")),
        ("Method.pretrained=package", ("Method.pretrained", "tf_efficientnet_lite0")),
        ("Method.train_kshot=true", ("Method.train_kshot", "Data.shot")),
        ("Data.use_split_coco=false", ("Data.use_split_coco", "coco")),
        ("Train.adversarial_period=4", ("Train.adversarial_period", "odd")),
        ("Train.feature_store=true", ("Train.feature_store", "Data.augment False")),
    ],
)
def test_a_mistyped_override_is_one_line_with_the_remedy(
    override: str, parts: tuple[str, ...]
) -> None:
    message = mistake(R50, override)
    assert "command line" in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("Train: {lrr: 1}", "unknown key Train.lrr; did you mean Train.lr?"),
        ("Trian: {lr: 1}", "unknown section Trian; did you mean Train?"),
        ("zzz: {lr: 1}", "unknown section zzz; there is Data, Method, Base, Train, Eval"),
        ("Train: 5", "section Train wants keys with values, given 5"),
        ("Train: {epochs: many}", "Train.epochs wants an integer, given 'many'"),
        ("just words", "wants sections"),
        ("", "wants sections"),
        ("Train: [", "not valid YAML"),
        ("_base_: 5", "_base_ wants a path or a list of paths, given 5"),
        ("_base_: nowhere.yaml", "nowhere.yaml: cannot read this config file"),
        ("_base_: x.yaml", "_base_ leads back to this file"),
        ("Data:\n  shot: 1\n\nTrain:\n  # comment\n  lrr: 1", "x.yaml:6: unknown key Train.lrr;"),
        ("Data:\n  shot: 1\n  size: 480.5", "x.yaml:3: Data.size wants an integer"),
        ("Data: {}\nTrian: {}", "x.yaml:2: unknown section Trian; did you mean Train?"),
        ("Data:\n  shot: 1\n  shot: 5", "x.yaml:3: Data.shot stands in line 2 too; join them"),
        ("Data: {shot: 1}\nData: {size: 65}", "x.yaml:2: Data stands in line 1 too"),
        ("Data: &d {size: 0.5}\nBase: {<<: *d}", "x.yaml:1: Data.size wants an integer"),
        ("Base:\n  <<: {sise: 9}", "x.yaml:1: unknown key Base.sise; did you mean Base.size?"),
        ("Data: {yes: 1}", "x.yaml:1: unknown key Data.True"),
    ],
)
def test_a_mistake_in_a_file_names_the_file(tmp_path: Path, text: str, part: str) -> None:
    message = mistake(write(tmp_path / "x.yaml", text))
    assert part in message and message.startswith(str(tmp_path))


def test_bases_in_a_circle_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "_base_: b.yaml")
    write(tmp_path / "b.yaml", "_base_: a.yaml")
    assert "leads back" in mistake(tmp_path / "a.yaml")


def test_the_command_prints_one_value_and_refuses_with_status_2() -> None:
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


def test_an_entry_points_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["train.py", "--config", str(R50), "--gpus", "2", "Train.lr=1", "Data.split=3"]
    monkeypatch.setattr(sys, "argv", words)
    config, gpus = arguments("")
    assert (config.Train.lr, config.Data.split, gpus) == (1.0, 3, 2)
    monkeypatch.setattr(sys, "argv", [*words[:4], "many"])
    with pytest.raises(
        ValueError, match="command line: argument --gpus: invalid int value: 'many'"
    ):
        arguments("")


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("--Train.lr=1", "a key of the config has no dashes: Train.lr=1"),
        ("--gpsu=1", "did you mean --gpus?"),
        ("--qqq", "--help lists what there is"),
    ],
)
def test_an_unknown_option_says_what_it_may_have_meant(
    monkeypatch: pytest.MonkeyPatch, word: str, hint: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", str(R50), "--gpus", "0", word])
    with pytest.raises(ValueError, match=f"unrecognized arguments: {word}; .*{re.escape(hint)}"):
        arguments("")


def test_overrides_may_stand_on_both_sides_of_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["Train.lr=1", "--gpus", "0", "Data.split=3", "-v", "--config", str(R50), "Data.shot=2"]
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    config, _ = arguments("")
    assert (config.Train.lr, config.Data.split, config.Data.shot) == (1.0, 3, 2)
