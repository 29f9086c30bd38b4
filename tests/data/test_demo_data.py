"""The demo data set is what the help of `python -m util.data.demo` says."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from helpers.pictures import refused
from mmseg.core.evaluation import get_palette
from PIL import Image

from util.data.demo.__main__ import run_demo
from util.data.demo.art import draw
from util.data.demo.make import make_demo
from util.data.image_io import voc_palette
from util.data.lists import MIN_PIXELS, fold_list
from util.data.source import SUBSETS, Source
from util.data.tables import load_table
from util.folds import published_fold


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    assert make_demo(out, images=60, seed=5)
    return out


def digest(out: Path) -> dict[str, str]:
    files = sorted(p for p in out.rglob("*") if p.is_file())
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_same_seed_gives_the_same_bytes(demo: Path, tmp_path: Path) -> None:
    make_demo(tmp_path / "again", images=60, seed=5)
    make_demo(tmp_path / "other", images=60, seed=6)
    assert digest(tmp_path / "again") == digest(demo)
    assert not set(digest(tmp_path / "other").values()) & set(
        value for name, value in digest(demo).items() if name.endswith(".jpg")
    )


def test_interrupted_run_continues_and_finished_data_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    make_demo(out, images=20, seed=1)
    whole, marker = digest(out), out / "demo.json"
    first, second = sorted(out.rglob("*.jpg"))[:2]
    times = second.stat().st_mtime_ns
    first.unlink()
    assert not make_demo(out, images=20, seed=1)  # finished, so its files are not checked
    marker.write_text(marker.read_text().replace("true", "false"))
    assert make_demo(out, images=20, seed=1)
    assert digest(out) == whole
    assert second.stat().st_mtime_ns == times


def test_every_class_has_large_objects_in_every_fold(demo: Path, tmp_path: Path) -> None:
    for subset in SUBSETS:
        table = load_table(Source(demo / "VOCdevkit2012/VOC2012", "pascal", subset), tmp_path)
        large = [c for has in table.values() for c in has if has[c] >= MIN_PIXELS]
        assert set(large) == set(range(1, 21))
        assert len(large) > 0.7 * sum(map(len, table.values()))
        for split in range(4):
            assert fold_list(table, published_fold("pascal", split), subset).images


def test_masks_are_palette_pngs_in_colors_of_voc_with_borders(demo: Path) -> None:
    assert np.array_equal(np.reshape(voc_palette(), (256, 3))[:21], get_palette("voc"))
    masks = sorted((demo / "VOCdevkit2012/VOC2012/SegmentationClassAug").glob("*.png"))
    assert len(masks) == 60 + 20
    for path in masks:
        mask = Image.open(path)
        assert mask.mode == "P" and mask.getpalette() == voc_palette()
        assert 255 in np.asarray(mask)


def test_color_alone_does_not_reveal_the_class() -> None:
    """The mean color varies more within a class than between classes."""
    colors = []
    for class_id in range(1, 21):
        rng = np.random.default_rng(class_id)
        pictures = (draw([class_id], (200, 240), rng) for _ in range(6))
        colors.append([image[label == class_id].mean(0) for image, label in pictures])
    means = np.array(colors)
    assert means.std(1).mean() > 1.5 * means.mean(1).std(0).mean()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--images", "60", "--seed", "6"], "contains the demo of --images 60 --seed 5"),
        (["--images", "0"], "at least 1 image"),
        (["--seed", "-1"], "a seed >= 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_in_one_line(
    demo: Path, arguments: list[str], words: str
) -> None:
    refused([words], run_demo, ["--out", str(demo), *arguments])


def test_folder_of_other_things_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "thesis.txt"):
        refused(["new or empty folder"], run_demo, ["--out", str(out)])
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
