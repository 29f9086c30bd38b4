"""Fixtures that more than one test file uses."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import ROOT
from helpers.downloads import lay_out_real_images
from helpers.pictures import data_config
from helpers.small import balance_heads
from hypothesis import settings

from model import build_model
from model.backbones import load_pretrained, pixel_statistics
from util.checkpoint.file import write_checkpoint
from util.config import Config, load_config, to_dict
from util.data.dataset import collate, open_episodes
from util.data.demo.make import make_demo
from util.runtime.log import close_log_file, configure
from util.runtime.system import release

SAMPLE = ROOT.parent / "shared"
"""A sample of the two data sets that may lie beside the repository."""

NEEDS_IMAGES = "needs images of PASCAL VOC and COCO: set AMFORMER_DATA, see CONTRIBUTING.md"

# Properties: the same examples every time, however slow the machine.
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def restore_warning_options() -> Iterator[None]:
    """Undo what `-v` adds: processes that a later test starts would inherit it."""
    before = list(sys.warnoptions)
    yield
    sys.warnoptions[:] = before


@pytest.fixture
def console() -> Iterator[None]:
    """Log to the console as a command does; close at the end what a run has opened."""
    configure()
    yield
    close_log_file()
    release()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute on one thread, as processes of `helpers.runs` do: sums have the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real images of VOC 2012 and COCO 2014 in a data folder as docs/data.md lays it out.

    They are those of the folder that AMFORMER_DATA names: VOC as it is, and of COCO the images of
    tests/golden/coco_lists.json.gz.
    """
    root = tmp_path_factory.mktemp("tree")
    if own := os.environ.get("AMFORMER_DATA"):
        lay_out_real_images(Path(own), root)
    elif SAMPLE.is_dir():
        subprocess.run(["sh", str(SAMPLE / "make_tree.sh"), str(root)], check=True)
    else:
        pytest.skip(NEEDS_IMAGES)
    return root


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one line for each reason how many tests were skipped."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    for reason, count in reasons.items():
        terminalreporter.write_line(f"{count} skipped: {reason}")


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
