"""Fixtures that more than one test file uses."""

import importlib.util
import json
import subprocess
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from pictures import config

from util.data.make_demo import make_demo

ROOT = Path(__file__).resolve().parent.parent


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
def pictures(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A config of a small demo data set."""
    out = tmp_path_factory.mktemp("pictures")
    make_demo(out, images=200, seed=0)
    root = out / "VOCdevkit2012" / "VOC2012"
    return config(data_root=root, list_dir=out / "lists")
