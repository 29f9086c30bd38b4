"""Config files hold the published settings; files, bases and overrides merge; results reload."""

import itertools
import json
from dataclasses import FrozenInstanceError, asdict, replace
from pathlib import Path

import pytest
from helpers import ROOT

from util.config import (
    Config,
    config_from,
    flatten,
    load_config,
    save_config,
    to_dict,
    with_class_names,
)
from util.folds import fold_of
from util.runtime.errors import UserError

FOLD_FILES = sorted(p for p in ROOT.glob("config/[a-z]*/*.yaml") if p.parent.name != "sweeps")
R50 = ROOT / "config/pascal/pascal_split0_resnet50.yaml"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", FOLD_FILES, ids=lambda path: path.stem)
def test_every_config_file_loads_and_its_header_tells_score_or_cost(path: Path) -> None:
    config = load_config(path, [])
    header = path.read_text()
    assert header.startswith("# ") and ("Cost:" in header or "Published" in header)
    assert config.Train.save_path != "exp/run"
    assert config.Method.pre_weight or config.Method.name == "pfenet"
    if path.stem.endswith("_lite0"):  # for a CPU
        assert config.Base.freeze_backbone
        assert config.Train.feature_store != config.Data.augment
    else:
        assert path.stem == config.name.replace("custom", path.parent.name)


def test_every_fold_shot_and_network_has_a_config() -> None:
    names = {path.stem for path in FOLD_FILES}
    for data_set in ("pascal", "coco"):
        for fold in range(4):
            for shot in ("", "_5shot"):
                for net in ("resnet50", "resnet101", "vgg16"):
                    assert f"{data_set}_split{fold}{shot}_{net}" in names


def test_every_system_has_configs_that_differ_from_those_of_amformer_only_in_the_system() -> None:
    names = {path.stem for path in FOLD_FILES}
    own = {"Data.size", "Data.novel_in_training"}  # and what is of the method or of training
    for system in ("bam", "hdmnet", "pfenet"):
        for fold in range(4):
            assert f"demo_split{fold}_{system}_lite0" in names
            for data_set, shot in itertools.product(("pascal", "coco"), ("", "_5shot")):
                name = f"{data_set}_split{fold}{shot}_{system}_resnet50"
                path = ROOT / f"config/{data_set}/{name}.yaml"
                ours = flatten(to_dict(load_config(path)))
                other = path.with_name(path.name.replace(f"_{system}", ""))
                theirs = flatten(to_dict(load_config(other)))
                changed = {key for key in ours if ours[key] != theirs[key]} - own
                assert all(key.startswith(("Method.", "Train.", "Eval.resize")) for key in changed)
                assert system == "pfenet" or "Method.pre_weight" not in changed


def test_no_two_configs_write_to_the_same_folder() -> None:
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
def test_configs_hold_the_released_settings(
    name: str, size: int, batch: int, lr: float, epochs: int, shot: int
) -> None:
    config = load_config(ROOT / f"config/{name.partition('_')[0]}/{name}.yaml", [])
    train = config.Train
    assert (config.Data.size, train.batch_size, train.lr) == (size, batch, lr)
    assert (train.epochs, config.Data.shot) == (epochs, shot)
    assert (train.seed, train.weight_decay, train.lr_multiplier) == (321, 0.01, 10)
    assert len(config.Eval.seeds) == 10
    coco = name.startswith("coco")
    base = (config.Base.batch_size, config.Base.size, config.Base.scale, config.Base.train_list)
    assert base == (12, 417, (0.5, 2.0), "all")
    assert (config.Base.stop_interval, train.stop_interval) == (75, 75 if coco else 100)
    assert (config.Eval.order, config.Data.novel_in_training) == ("list", "drop")
    assert config.Eval.episodes == (10_000 if coco else 1_000)
    assert config.Data.scale == ((0.8, 1.25) if coco else (0.9, 1.1))
    stage_one = (config.Base.epochs, config.Base.lr, config.Base.head_lr_multiplier)
    assert stage_one == ((20, 2.5e-3, 1) if coco else (100, 2.5e-4, 10))
    assert config.num_base_classes == (60 if coco else 15)


def test_oddities_of_the_published_code_are_the_default() -> None:
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


def test_bases_merge_by_key_and_later_files_win(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "Train: {lr: 1.0, epochs: 7}\nData: {split: 1}")
    write(tmp_path / "b.yaml", "_base_: a.yaml\nTrain: {lr: 2.0}")
    write(tmp_path / "c.yaml", "Train: {power: 0.5}\nData: {split: 2}")
    top = write(tmp_path / "top.yaml", "_base_: [b.yaml, c.yaml]\nData: {shot: 5}")
    config = load_config(top, [])
    assert (config.Train.lr, config.Train.epochs, config.Train.power) == (2.0, 7, 0.5)
    assert (config.Data.split, config.Data.shot) == (2, 5)


def test_saved_config_is_read_back_unchanged(tmp_path: Path) -> None:
    config = load_config(R50, ["Data.shot=3", "Train.lr=1e-7"])
    save_config(config, tmp_path / "run/config.yaml")
    assert load_config(tmp_path / "run/config.yaml", []) == config
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]
    assert to_dict(config)["Data"]["scale"] == [0.9, 1.1]


def test_config_is_an_immutable_value() -> None:
    config = Config()
    other = replace(config, Data=replace(config.Data, shot=5))
    assert (other.Data.shot, config.Data.shot) == (5, 1)
    assert other != config and replace(other, Data=config.Data) == config
    assert hash(config) == hash(Config()) and asdict(config)["Data"]["scale"] == (0.9, 1.1)
    with pytest.raises(FrozenInstanceError):
        config.Data.shot = 2


def test_dict_of_a_config_makes_the_same_config() -> None:
    config = load_config(R50, ["Data.shot=3"])
    assert config_from(to_dict(config), "best.pth") == config
    changed = config_from(to_dict(config), "best.pth", ["Data.shot=4"])
    assert changed == replace(config, Data=replace(config.Data, shot=4))


def test_config_in_a_result_is_read(tmp_path: Path) -> None:
    config = load_config(R50, ["Data.shot=3"])
    result = {"environment": {}, "config": to_dict(config)}
    path = write(tmp_path / "result.json", json.dumps(result, indent=1))
    assert load_config(path) == config


def test_flatten_joins_the_names_of_nested_mappings() -> None:
    assert flatten({"a": {"b": 1, "c": {2: [3]}}, "d": {}}) == {"a.b": 1, "a.c.2": [3]}
    assert flatten(to_dict(Config()))["Data.scale"] == [0.9, 1.1]


# --- custom data sets: class names ---------------------------------------------------------------


def custom(folder: Path, *overrides: str) -> Config:
    words = ["Data.data_set=custom", f"Data.data_root={folder}", "Data.novel=[cat]"]
    return load_config(R50, [*words, *overrides])


def test_loading_a_config_reads_no_file_of_the_data_set(tmp_path: Path) -> None:
    config = custom(tmp_path / "nowhere")
    assert config.Data.classes == ()
    for use in (with_class_names, lambda config: config.num_base_classes):
        with pytest.raises(UserError, match=r"nowhere/classes\.txt: no such file; write the class"):
            use(config)


def test_class_names_are_filled_in_where_a_run_begins(tmp_path: Path) -> None:
    write(tmp_path / "classes.txt", "dog\ncat\n\ncow\n")
    config = custom(tmp_path)
    assert fold_of(config.Data).names == ("dog", "cat", "cow") and config.num_base_classes == 2
    filled = with_class_names(config)
    assert filled.Data.classes == ("dog", "cat", "cow")
    assert replace(filled, Data=replace(filled.Data, classes=())) == config
    assert with_class_names(Config()) == Config()
    (tmp_path / "classes.txt").unlink()  # a checkpoint holds the names, and needs no file
    assert fold_of(config_from(to_dict(filled), "best.pth").Data).novel == (2,)


@pytest.mark.parametrize(
    ("novel", "message"),
    [
        ("[tree]", "Data.novel: no class is named 'tree'; there is dog, cat, cow"),
        ("[cat, dog, cow]", "Data.novel leaves no class to train on"),
    ],
)
def test_novel_classes_must_fit_the_class_names(tmp_path: Path, novel: str, message: str) -> None:
    write(tmp_path / "classes.txt", "dog\ncat\ncow\n")
    with pytest.raises(UserError, match=message):
        with_class_names(custom(tmp_path, f"Data.novel={novel}"))
    with pytest.raises(UserError, match=f"^{R50} with the command line: {message}"):
        custom(tmp_path, f"Data.novel={novel}", "Data.classes=[dog, cat, cow]")
