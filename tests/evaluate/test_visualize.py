"""Strips of evaluated episodes: evenly spread, worst and best, each drawn once."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from helpers.processes import on_processes

from model.resize import bilinear_ac
from util.data.transform import EvalTransform
from util.evaluate import visualize
from util.evaluate.visualize import GALLERIES, TILE, TITLE, Gallery, draw_strip, save_strips
from util.runtime.distributed import Ranks

IOUS = [0.5, 0.1, 0.9, 0.3, 0.3, 0.8, 0.2, 0.7, 0.1, 0.6, 0.4, 0.95]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let a strip be its episode's IoU; return the list of drawn ones."""
    made = []

    def draw(example: SimpleNamespace, episodes: object) -> np.ndarray:
        made.append(example.iou)
        return np.array(example.iou)

    monkeypatch.setattr(visualize, "draw_strip", draw)
    return made


def gallery(ious: list[float], count: int, **options: bool) -> dict[str, list]:
    made = Gallery(None, count, len(ious), **options)
    for iou in ious:
        made.add(SimpleNamespace(iou=iou))
    return made.gather()


def test_gallery_keeps_spread_worst_and_best_episodes_in_order(drawn: list[float]) -> None:
    found = gallery(IOUS, 3, extremes=True)
    assert found == {
        "episodes": [IOUS[0], IOUS[4], IOUS[8]],
        "worst": [0.1, 0.1, 0.2],
        "best": [0.95, 0.9, 0.8],
    }
    assert list(found) == list(GALLERIES)
    assert len(drawn) < len(IOUS)  # episodes that are not kept are not drawn


def test_without_extremes_only_spread_episodes_are_drawn(drawn: list[float]) -> None:
    assert gallery(IOUS, 4) == {"episodes": [IOUS[0], IOUS[3], IOUS[6], IOUS[9]]}
    assert len(drawn) == 4


def test_gallery_larger_than_the_evaluation_holds_all_episodes_and_an_empty_one_none(
    drawn: list[float],
) -> None:
    few = gallery(IOUS[:2], 5, extremes=True)
    assert few == {"episodes": [0.5, 0.1], "worst": [0.1, 0.5], "best": [0.5, 0.1]}
    assert gallery(IOUS, 0, extremes=True) == {} == gallery([], 3, extremes=True)


def gallery_of(ranks: Ranks) -> dict[str, list]:
    part = IOUS[:6] if ranks.is_main else IOUS[6:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(visualize, "draw_strip", lambda example, episodes: np.array(example.iou))
        found = gallery(part, 2, extremes=True)
    return {name: [float(strip) for strip in strips] for name, strips in found.items()}


def test_gallery_finds_worst_and_best_over_all_ranks(tmp_path: Path) -> None:
    both = on_processes(2, gallery_of, tmp_path)
    expected = {"episodes": [IOUS[0], IOUS[6]], "worst": [0.1, 0.1], "best": [0.95, 0.9]}
    assert both == [expected, expected]


@pytest.fixture
def example() -> SimpleNamespace:
    """An episode with known masks: the object is the left half, below a strip of 255."""
    size, cells = 64, 16
    truth = torch.zeros(size, size, dtype=torch.uint8)
    truth[:, : size // 2], truth[:4] = 1, 255
    left = torch.zeros(1, 2, cells, cells)
    left[:, 1, :, : cells // 2], left[:, 0, :, cells // 2 :] = 1, 1
    right = left.flip(-1)
    return SimpleNamespace(
        plan=SimpleNamespace(query="q", supports=("s", "t"), class_id=1),
        prediction=SimpleNamespace(
            size=(size, size), prior=left, logits=[right, left, right], final=left
        ),
        row=0,
        target=truth,
        iou=1.0,
        resize=lambda scores: bilinear_ac(scores, (size, size))[0],
    )


def test_strip_shows_every_stage_under_its_title(
    example: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles = []
    titled = visualize._add_title
    monkeypatch.setattr(visualize, "_add_title", lambda p, t: titles.append(t) or titled(p, t))
    image = np.full((40, 60, 3), 100, np.uint8)
    episodes = SimpleNamespace(
        source=SimpleNamespace(load=lambda name: (image, None)),
        load_pair=lambda *_: (None, example.target, None),
        sampler=SimpleNamespace(fold=SimpleNamespace(name=lambda c: "cat")),
        transform=EvalTransform((64, 64)),
    )
    picture = draw_strip(example, episodes)
    assert titles == [
        *("support 1/2: cat", "query", "ground truth", "prior", "first mask: IoU 0"),
        *("refined 1: IoU 100", "refined 2: IoU 0", "final: IoU 100"),
    ]
    pad, wide = 3, TILE + 3
    assert picture.shape == (TITLE + TILE + 2 * pad, 8 * wide + pad, 3)
    middle = pad + TITLE + TILE // 2

    def color(tile: int, across: float) -> str:
        red, green, blue = picture[middle, pad + tile * wide + int(across * TILE)].astype(int)
        names = {"red": red - green, "green": green - red, "blue": blue - green}
        name, lead = max(names.items(), key=lambda item: item[1])
        return name if lead > 20 else "gray"

    assert [color(2, 0.25), color(2, 0.75)] == ["green", "gray"]  # ground truth
    assert [color(4, 0.25), color(4, 0.75)] == ["blue", "red"]  # miss, false alarm
    assert [color(7, 0.25), color(7, 0.75)] == ["green", "gray"]


def test_strips_are_saved_below_each_other(tmp_path: Path) -> None:
    strips = [np.full((5, 7, 3), value, np.uint8) for value in (10, 200)]
    strips[0][..., 0] = 90
    save_strips(strips, tmp_path / "best.png")
    assert [path.name for path in tmp_path.iterdir()] == ["best.png"]
    read = cv2.imread(str(tmp_path / "best.png"))[..., ::-1]
    assert np.array_equal(read, np.concatenate(strips))
