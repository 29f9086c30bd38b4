"""No foreign file can run code here, or cause another file to be changed."""

import ast
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers import ROOT

import train
import train_base
from model.base_learner import BaseLearner
from model.published import base_to_published
from util.checkpoint.file import read_checkpoint, write_checkpoint
from util.config import load_config
from util.data.source import Source
from util.runtime.cli import main

CONFIG = ROOT / "config/demo/demo_split0_lite0.yaml"
FORBIDDEN = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}


def sources() -> list[Path]:
    files = [*ROOT.glob("*.py"), *ROOT.glob("util/**/*.py"), *ROOT.glob("model/**/*.py")]
    assert len(files) > 40
    return files


def faults(text: str) -> list[str]:
    """The calls and imports of a source that could run the content of a file."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.partition(".")[0] in FORBIDDEN]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module] * ((node.module or "").partition(".")[0] in FORBIDDEN)
        elif isinstance(node, ast.Call):
            name, given = (
                ast.unparse(node.func),
                {k.arg: ast.unparse(k.value) for k in node.keywords},
            )
            if name in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"):
                found.append(name)
            elif name.endswith("torch.load") and given.get("weights_only") != "True":
                found.append(f"{name} without weights_only=True")
            elif name in ("yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all"):
                found.append(name)
            elif given.get("allow_pickle", "False") != "False" or given.get("shell") == "True":
                found.append(ast.unparse(node))
            elif name.endswith(("gather_object", "_object_list")):  # pickle to a peer
                found.append(name)
    return found


# Its reader refuses every name in a pickle, so nothing can run (tests/data/test_prepare_sets.py).
PLAIN_DATA = {"lvis.py": ["pickle"]}


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_evaluates_or_unpickles(path: Path) -> None:
    assert faults(path.read_text(encoding="utf-8")) == PLAIN_DATA.get(path.name, [])


@pytest.mark.parametrize(
    "text",
    ["import pickle", "from pickle import loads", "eval('1')", "torch.load(p)", "yaml.load(f)",
     "np.load(f, allow_pickle=True)", "dist.all_gather_object(a, b)", "run(x, shell=True)"],
)  # fmt: skip
def test_check_finds_each_kind_of_unsafe_code(text: str) -> None:
    assert len(faults(text)) == 1


class Bomb:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("/tmp/amformer-bomb"),)


def test_hostile_checkpoint_is_refused_and_runs_no_code(tmp_path: Path) -> None:
    bomb = Path("/tmp/amformer-bomb")
    bomb.unlink(missing_ok=True)
    torch.save({"model": {}, "config": Bomb()}, tmp_path / "last.pth")
    with pytest.raises(ValueError, match="holds a Python object besides weights"):
        read_checkpoint(tmp_path / "last.pth")
    assert not bomb.exists()


def test_hostile_config_is_refused_and_runs_no_code(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("Train: !!python/object/apply:os.mkdir ['/tmp/bomb']\n")
    with pytest.raises(ValueError, match="not valid YAML"):
        load_config(tmp_path / "config.yaml")
    with pytest.raises(ValueError, match="is not valid YAML"):
        load_config(
            ROOT / "config/demo/demo_split0_lite0.yaml", ["Train.lr=!!python/name:os.system"]
        )
    assert not Path("/tmp/bomb").exists()


@pytest.mark.parametrize("name", ["../../outside", "/tmp/outside", "a/b"])
def test_image_list_cannot_name_a_file_outside_its_folder(
    name: str, pictures, tmp_path: Path
) -> None:
    """Ids become file names in `Data.cache`."""
    listed = tmp_path / "VOC2012"
    listed.mkdir()
    for part in ("JPEGImages", "SegmentationClassAug"):
        (listed / part).symlink_to(Path(pictures.Data.data_root) / part)
    folder = listed / "ImageSets/Segmentation"
    folder.mkdir(parents=True)
    (folder / "val.txt").write_text(f"{name}\n")
    with pytest.raises(ValueError, match="val.txt: .* is no image name"):
        Source(listed, "pascal", "val", cache=str(tmp_path / "cache")).image_ids()


@pytest.mark.parametrize(
    ("script", "key", "file"),
    [("train.py", "Train.save_path={}", "config.yaml"),
     ("train_base.py", "Method.pre_weight={}/notes.txt", "notes.txt")],
)  # fmt: skip
def test_config_cannot_replace_a_foreign_file(
    script: str, key: str, file: str, pictures, tmp_path: Path, monkeypatch, capsys
) -> None:
    """A file that no run wrote stays unchanged, whatever path a config names."""
    foreign = tmp_path / file
    foreign.write_text("services: {web: {}}\n")
    base = tmp_path / "base.pth"
    words = [key.format(tmp_path), f"Data.data_root={pictures.Data.data_root}"]
    words += [f"Data.list_dir={pictures.Data.list_dir}", "Data.size=33", "Base.size=33"]
    if script == "train.py":
        cfg = load_config(CONFIG, words)
        state = BaseLearner(cfg.Method.backbone, cfg.num_base_classes).state_dict()
        write_checkpoint(base, state_dict=base_to_published(state))
        words.append(f"Method.pre_weight={base}")
    monkeypatch.setattr(sys, "argv", [script, "--config", str(CONFIG), "--gpus", "0", *words])
    with pytest.raises(SystemExit) as stop:
        main(train.train if script == "train.py" else train_base.train_base)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith(f"error: {foreign}"), said
    assert yaml.safe_load(foreign.read_text()) == {"services": {"web": {}}}
