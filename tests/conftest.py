"""Fixtures that more than one test file uses."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from helpers import ROOT
from helpers.pictures import data_config
from helpers.small import balance_heads
from hypothesis import settings

from model import build_model
from model.backbones import load_pretrained, pixel_statistics
from util.checkpoint.file import write_checkpoint
from util.config import Config, load_config, to_dict
from util.data.dataset import collate, open_episodes
from util.data.demo.make import make_demo

# Properties: the same examples every time, however slow the machine.
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def restore_warning_options() -> Iterator[None]:
    """Undo what `-v` adds: processes that a later test starts would inherit it."""
    before = list(sys.warnoptions)
    yield
    sys.warnoptions[:] = before


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the repository that holds golden files and samples of the data sets."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip(f"needs {path}, which is not part of the repository")
    return path


@pytest.fixture(scope="session")
def golden(shared: Path) -> ModuleType:
    """`golden.py`: weights and episodes behind the golden files."""
    spec = importlib.util.spec_from_file_location("golden", shared / "golden/golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def official_shapes(shared: Path) -> dict[int, dict[str, list[int]]]:
    """Shots -> {name in a published checkpoint: shape} of the ResNet-50 system on PASCAL."""
    name = "golden/official_shapes_pascal_resnet50_{}shot.json"
    return {shot: json.loads((shared / name.format(shot)).read_text()) for shot in (1, 5)}


@pytest.fixture(scope="session")
def tree(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real part of VOC 2012 and COCO 2014, laid out as their own downloads lie."""
    root = tmp_path_factory.mktemp("tree")
    subprocess.run(["sh", str(shared / "make_tree.sh"), str(root)], check=True)
    return root


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A config of a small demo data set."""
    out = tmp_path_factory.mktemp("pictures")
    make_demo(out, images=200, seed=0)
    root = out / "VOCdevkit2012" / "VOC2012"
    return data_config(data_root=str(root), list_dir=f"{out}/lists")


@pytest.fixture(scope="session")
def small_run(pictures: Config, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A checkpoint of random weights that finds objects, as train.py writes it, and its data.

    `checkpoint` and `config` are files, `words` what overrides that config, `cfg` the two together,
    `episodes` the validation episodes of seed 5.
    """
    folder = tmp_path_factory.mktemp("small_run")
    words = [
        f"Data.data_root={pictures.Data.data_root}",
        f"Data.list_dir={folder}/lists",
        f"Train.save_path={folder}/run",
        f"Eval.weight={folder}/best.pth",
        "Data.size=65",
    ]
    path = ROOT / "config/demo/demo_split0_lite0.yaml"
    cfg = load_config(path, words)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    load_pretrained(model.encoder.base.backbone, cfg.Method.backbone, "package")
    episodes, _ = open_episodes(cfg, "val", 5, *pixel_statistics(cfg.Method.backbone))
    first = collate([episodes[i] for i in range(4)])
    with torch.no_grad():
        for head in model.object_mining.heads:
            head[-1].weight *= 100
    balance_heads(model, first.query, first.support, first.support_mask)
    write_checkpoint(
        folder / "best.pth", model=model.state_dict(), config=to_dict(cfg), iteration=7
    )
    return SimpleNamespace(
        folder=folder, checkpoint=folder / "best.pth", config=path, words=words, cfg=cfg,
        episodes=episodes,
    )  # fmt: skip
