"""A model tested, with scores, on data that it was not trained on (`Data.trained_on: other`)."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from helpers import ROOT, entries
from helpers.drawn import demo_as_own_data, write_rectangles
from helpers.pictures import data_config, refused

import test as test_entry
import train as train_entry
import train_base as base_entry
from util.checkpoint.file import read_checkpoint, write_checkpoint
from util.checkpoint.load import load_base_learner
from util.checkpoint.origin import require_unseen, training_of_stages, with_known_classes
from util.class_names import canonical_name
from util.config import load_config, to_dict, with_class_names
from util.data.demo.art import KINDS
from util.data.lists import write_lists
from util.folds import CLASSES, fold_of, other_fold

SHAPES = tuple(shape for shape, _ in KINDS)  # other names than those of PASCAL
NOVEL = ("bird", "cat", "dog", "horse", "sheep")
KNOWN = tuple(name for name in CLASSES["pascal"] if name not in NOVEL)
SMALL = {
    "Data": {"size": 65, "missing": "skip"},
    "Base": {"size": 65, "max_iterations": 1, "val_images": 2},
    "Train": {"max_iterations": 2, "batch_size": 2, "feature_store": False},
    "Eval": {"val_episodes": 2, "episodes": 6, "seeds": [1], "visualize": 0},
}


def write_config(path: Path, root: Path, run: Path, **keys: dict) -> Path:
    """Write a config as docs/custom_data.md shows it, but small."""
    tree = {
        "_base_": str(ROOT / "config/_base_/demo.yaml"),
        **{k: dict(v) for k, v in SMALL.items()},
    }
    data = {"data_set": "custom", "data_root": str(root), "list_dir": f"{path.parent}/lists"}
    tree["Data"] |= data
    tree["Train"] |= {"save_path": str(run)}
    for section, values in keys.items():
        tree[section] = tree.get(section, {}) | values
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(tree))
    return path


def call(entry, config: Path, *words: str) -> int:
    return entries.call(entry, "--config", str(config), "--gpus", "0", *words, config=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A model of one's own data set, whose classes have PASCAL's names, and its config."""
    folder = tmp_path_factory.mktemp("trained")
    root = demo_as_own_data(folder, CLASSES["pascal"], 80, 0)
    config = write_config(
        folder / "config/mine.yaml", root, folder / "run",
        Data={"novel": list(NOVEL)}, Method={"pre_weight": f"{folder}/base.pth"},
    )  # fmt: skip
    for entry in (base_entry.train_base, train_entry.train):
        assert call(entry, config) == 0
    return SimpleNamespace(folder=folder, config=config, best=folder / "run/best.pth", root=root)


@pytest.fixture
def other(trained: SimpleNamespace, tmp_path: Path):
    """Return a function that tests that model on another data set with these class names."""

    def run(names: tuple[str, ...], *words: str) -> tuple[int, Path]:
        root = demo_as_own_data(tmp_path, names, 60, 1)
        config = write_config(
            tmp_path / "config/other.yaml", root, tmp_path / "tested",
            Data={"trained_on": "other"}, Eval={"weight": str(trained.best)},
        )  # fmt: skip
        return call(test_entry.test, config, *words), tmp_path / "tested/result.json"

    return run


# --- end to end ----------------------------------------------------------------------------------


def test_model_is_tested_on_other_classes_without_repeating_what_it_was_trained_on(
    other, trained: SimpleNamespace, capsys: pytest.CaptureFixture
) -> None:
    status, path = other(SHAPES)
    assert status == 0
    result = json.loads(path.read_text())
    assert result["config"]["Data"]["known"] == list(KNOWN)
    scores = result["seeds"]["1"]
    classes = list(scores["final"]["classes"])
    assert set(classes) <= set(SHAPES) and len(classes) > 10
    assert (scores["base_miou"], scores["base_classes"]) == (0.0, {})
    assert result["leaks"]["not_tested"] == []
    assert all(counts is None for counts in result["leaks"]["stage one"]["classes"].values())
    assert "images (pixels) of the novel classes" in capsys.readouterr().out
    words = "--verify", str(path)
    assert entries.call(test_entry.test, *words, config=False) == 0  # the result names all it needs


SOME_KNOWN = ("Motorcycle", "dining-table", "TV monitor", *SHAPES[3:18], "cat", "Pizza")


def test_classes_that_the_model_was_trained_on_are_refused_by_default(
    other, capsys: pytest.CaptureFixture
) -> None:
    status, path = other(SOME_KNOWN)
    error = capsys.readouterr().err
    assert status == 2 and error.count("\n") == 1 and not path.exists()
    assert "the model was trained on Motorcycle, dining-table, TV monitor, which" in error
    assert "Data.novel" in error and "Data.overlap=remove" in error
    assert "cat" not in error.partition("was trained on")[2].partition(", which")[0]


def test_overlapping_classes_are_left_out_and_named_if_asked(
    other, capsys: pytest.CaptureFixture
) -> None:
    status, path = other(SOME_KNOWN, "Data.overlap=remove")
    assert status == 0
    result, said = json.loads(path.read_text()), capsys.readouterr().out
    removed = ["Motorcycle", "dining-table", "TV monitor"]
    assert result["leaks"]["not_tested"] == removed
    assert f"not tested, the model was trained on it: {', '.join(removed)}" in said
    scores = result["seeds"]["1"]
    assert not set(scores["final"]["classes"]) & set(removed)
    assert "cat" in scores["final"]["classes"] and "Pizza" in scores["final"]["classes"]
    # The base learner is scored on them, under the names of its own classes.
    assert set(scores["base_classes"]) <= {"motorbike", "diningtable", "tvmonitor"}
    assert result["leaks"]["stage one"]["classes"]["cat"]["images"] > 0
    assert result["leaks"]["stage two"]["classes"]["cat"]["images"] == 0


def test_classes_to_test_can_be_named(other) -> None:
    status, path = other(SOME_KNOWN, "Data.novel=[cat, Pizza]")
    assert status == 0
    result = json.loads(path.read_text())
    assert set(result["seeds"]["1"]["final"]["classes"]) == {"cat", "Pizza"}


def test_test_on_the_data_of_the_training_says_what_both_stages_saw(
    trained: SimpleNamespace, tmp_path: Path
) -> None:
    words = f"Eval.weight={trained.best}", f"Train.save_path={tmp_path}"
    assert call(test_entry.test, trained.config, *words) == 0
    leaks = json.loads((tmp_path / "result.json").read_text())["leaks"]
    alone = json.loads((trained.folder / "base/result.json").read_text())["leaks"]
    assert leaks["stage one"] == alone["stage one"]
    # The images are not divided: stage one has seen every test image, with its objects unlabeled.
    assert leaks["stage one"]["images"] == 80
    assert leaks["stage one"]["test_images"] > 0 == leaks["stage two"]["test_images"]
    assert set(leaks["stage two"]["classes"]) == set(NOVEL)
    assert leaks["validation of stage two"]["images"] > 0


def test_checkpoint_keeps_the_config_of_its_stage_one(trained: SimpleNamespace) -> None:
    state = read_checkpoint(trained.best)
    one, two = training_of_stages(state, trained.best)
    cfg = with_class_names(load_config(trained.config))
    assert one is not None and two is not None
    assert (one.config, two.config) == (cfg, cfg) and one.images == 80 > two.images
    del state["base_learner"]  # as of a base learner of BAM
    assert training_of_stages(state, trained.best)[0] is None
    assert training_of_stages({"model": {}}, "published.pth") == (None, None)


def test_base_learner_of_other_classes_is_refused(trained: SimpleNamespace, tmp_path: Path) -> None:
    wrong = f"Data.novel=[{', '.join(NOVEL[:4])}, car]"
    cfg = with_class_names(load_config(trained.config, [wrong]))
    model = train_entry.build_model(cfg)
    told = ["Method.pre_weight", "base.pth", "other base classes", "(car)"]
    refused(told, load_base_learner, model.encoder.base, cfg)
    content = read_checkpoint(cfg.Method.pre_weight)
    write_checkpoint(tmp_path / "bare.pth", state_dict=content["state_dict"])
    bare = load_config(trained.config, [f"Method.pre_weight={tmp_path}/bare.pth"])
    assert load_base_learner(model.encoder.base, with_class_names(bare)) is None


# --- where the classes come from -----------------------------------------------------------------


@pytest.mark.parametrize("data_set", ["pascal", "coco"])
def test_published_data_set_can_be_tested_on_a_model_of_another_one(data_set: str) -> None:
    keys = {"data_set": data_set, "trained_on": "other"}
    data = data_config(**keys, known=["ball", "Cup", "TV"], overlap="remove").Data
    fold = fold_of(data)
    removed = {"pascal": {"tvmonitor"}, "coco": {"cup", "tv"}}[data_set]
    assert {fold.names[c - 1] for c in fold.base} == removed
    table = fold.base_table()
    for c, name in enumerate(fold.names, 1):
        assert table[c] == {"tvmonitor": 3, "tv": 3, "cup": 2}.get(name, 0)
    assert table[0] == 0 and table[255] == 255 and fold.learned.base_names == ("ball", "Cup", "TV")


@pytest.mark.parametrize("name", ["isic", "deepglobe", "chestx"])
def test_config_of_a_set_without_base_classes_tests_all_its_classes(
    tmp_path: Path, name: str
) -> None:
    bases = [
        str(ROOT / "config" / part) for part in ("pascal/pascal_split0_resnet50.yaml", "_base_")
    ]
    path = tmp_path / "test.yaml"
    path.write_text(yaml.safe_dump({"_base_": [bases[0], f"{bases[1]}/{name}.yaml"]}))
    (tmp_path / "classes.txt").write_text("lung\n")
    cfg = with_class_names(load_config(path, [f"Data.data_root={tmp_path}"]))
    state = {"config": to_dict(load_config(bases[0]))}
    full = with_known_classes(cfg, state, Path("best.pth"))
    fold = fold_of(full.Data)
    assert (fold.names, fold.novel, full.num_base_classes) == (("lung",), (1,), 15)
    assert not fold.base_table()[:255].any()
    # FSS-1000 has such a file; its other classes are for training.
    (tmp_path / "classes.txt").write_text("lung\nheart\nbone\n")
    (tmp_path / "novel_0.txt").write_text("bone\nlung\n")
    cfg = with_class_names(load_config(path, [f"Data.data_root={tmp_path}"]))
    assert fold_of(cfg.Data).novel == (1, 3) and cfg.Data.novel == ("bone", "lung")


def test_config_of_a_checkpoint_names_the_known_classes() -> None:
    path = ROOT / "config/coco/coco_split1_resnet50.yaml"
    coco = load_config(path)
    words = ["Data.data_set=pascal", "Data.trained_on=other", "Data.overlap=remove"]
    cfg, state = load_config(path, words), {"config": to_dict(coco)}
    full = with_known_classes(cfg, state, Path("best.pth"))
    assert full.Data.known == fold_of(coco.Data).base_names and full.num_base_classes == 60
    names = [fold_of(full.Data).names[c - 1] for c in fold_of(full.Data).novel]
    assert names == ["bicycle", "bus", "horse", "sofa"]  # those of RePRI's protocol
    across = load_config(ROOT / "config/coco2pascal/coco2pascal_split1_resnet50.yaml")
    assert np.array_equal(fold_of(full.Data).base_table(), fold_of(across.Data).base_table())
    require_unseen(state, Path("best.pth"), full)
    assert with_known_classes(coco, state, Path("best.pth")) is coco
    assert with_known_classes(full, {}, Path("published.pth")) is not None
    told = ["published.pth", "does not say on which classes", "Data.known"]
    refused(told, with_known_classes, cfg, {}, Path("published.pth"))
    wrong = load_config(path, [*words, "Data.known=[car]"])
    told = ["best.pth: was trained on person, car,", "not those of Data.known"]
    refused(told, with_known_classes, wrong, state, Path("best.pth"))


def test_checkpoint_of_other_base_classes_needs_trained_on_other() -> None:
    keys = {"data_set": "custom", "classes": ["a", "b", "c"], "novel": ["c"]}
    state = {"config": to_dict(data_config(**keys))}
    require_unseen(state, Path("best.pth"), data_config(**keys))
    renamed = data_config(**keys | {"classes": ["a", "x", "c"]})
    told = ["best.pth", "other base classes", "(b)", "Data.trained_on=other"]
    refused(told, require_unseen, state, Path("best.pth"), renamed)


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [("sofa", "Couch", "COUCH "), ("potted plant", "PottedPlant", "potted_plant", "potted-plant"),
     ("TV", "tv monitor", "tvmonitor"), ("Traffic  Light", "traffic_light")],
)  # fmt: skip
def test_spellings_and_synonyms_are_one_class(names: tuple[str, ...]) -> None:
    assert len(set(map(canonical_name, names))) == 1


def test_different_names_stay_different() -> None:
    for names in CLASSES.values():
        assert len(set(map(canonical_name, names))) == len(names)
    assert canonical_name("bike") != canonical_name("bicycle")


def test_nothing_left_to_test_is_refused() -> None:
    refused(["every class", "(Cat)"], other_fold, ("Cat", "dog"), ["Cat"], ("cat",), "remove")
    refused(["no class is named 'cow'"], other_fold, ("cat", "dog"), ["cow"], ("sheep",))


def test_id_255_is_no_class_to_test() -> None:
    names = tuple(f"kind {c}" if c != 255 else "ignored" for c in range(1, 301))
    fold = other_fold(names, (), ("Kind_7",), "remove")
    assert fold.novel == tuple(c for c in range(1, 301) if c not in (7, 255))
    assert fold.base_table()[[7, 8, 255, 300]].tolist() == [1, 0, 255, 0]


def test_lists_of_a_test_on_other_data_are_written_once(tmp_path: Path) -> None:
    write_rectangles(tmp_path / "data", "custom", 4)
    data = data_config(
        data_set="custom", data_root=f"{tmp_path}/data", list_dir=f"{tmp_path}/lists",
        trained_on="other", min_pixels=90,
    ).Data  # fmt: skip
    assert write_lists(data) == []
    [path] = (tmp_path / "lists").glob("val_*.json")
    assert path.name == "val_0_other.json" and len(json.loads(path.read_text())["by_class"]) == 4
    assert torch.equal(torch.from_numpy(fold_of(data).base_table()[:255]), torch.zeros(255).byte())
