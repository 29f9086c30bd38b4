"""The demo data set: as promised by `python -m util.data.demo`."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from helpers.pictures import refused
from mmseg.core.evaluation import get_palette
from PIL import Image

from util.data.demo.__main__ import draw_demo
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


def test_a_run_that_was_cut_off_goes_on_and_a_finished_one_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    make_demo(out, images=20, seed=1)
    whole, marker = digest(out), out / "demo.json"
    first, second = sorted(out.rglob("*.jpg"))[:2]
    times = second.stat().st_mtime_ns
    first.unlink()
    assert not make_demo(out, images=20, seed=1)  # finished: not looked into
    marker.write_text(marker.read_text().replace("true", "false"))
    assert make_demo(out, images=20, seed=1)
    assert digest(out) == whole
    assert second.stat().st_mtime_ns == times


def test_every_class_can_serve_in_every_fold(demo: Path, tmp_path: Path) -> None:
    for subset in SUBSETS:
        table = load_table(Source(demo / "VOCdevkit2012/VOC2012", "pascal", subset), tmp_path)
        large = [c for has in table.values() for c in has if has[c] >= MIN_PIXELS]
        assert set(large) == set(range(1, 21))
        assert len(large) > 0.7 * sum(map(len, table.values()))
        for split in range(4):
            assert fold_list(table, published_fold("pascal", split), subset).images


def test_masks_are_palette_pngs_in_vocs_colours_with_borders(demo: Path) -> None:
    assert np.array_equal(np.reshape(voc_palette(), (256, 3))[:21], get_palette("voc"))
    masks = sorted((demo / "VOCdevkit2012/VOC2012/SegmentationClassAug").glob("*.png"))
    assert len(masks) == 60 + 20
    for path in masks:
        mask = Image.open(path)
        assert mask.mode == "P" and mask.getpalette() == voc_palette()
        assert 255 in np.asarray(mask)


def test_colour_alone_does_not_tell_the_class() -> None:
    """Mean colours of a class scatter more than the classes' own means differ."""
    means = []
    for class_id in range(1, 21):
        rng = np.random.default_rng(class_id)
        pictures = (draw([class_id], (200, 240), rng) for _ in range(6))
        means.append([image[label == class_id].mean(0) for image, label in pictures])
    means = np.array(means)
    assert means.std(1).mean() > 1.5 * means.mean(1).std(0).mean()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--images", "60", "--seed", "6"], "holds the demo of --images 60 --seed 5"),
        (["--images", "0"], "at least 1 image"),
        (["--seed", "-1"], "a seed >= 0"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    demo: Path, arguments: list[str], words: str
) -> None:
    refused([words], draw_demo, ["--out", str(demo), *arguments])


def test_a_folder_of_other_things_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "thesis.txt"):
        refused(["new or empty folder"], draw_demo, ["--out", str(out)])
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
