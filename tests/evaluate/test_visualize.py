"""Strips of evaluated episodes: evenly spread, worst and best, each drawn once."""

from collections.abc import Callable
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
from util.evaluate.order import EvaluationOrder, Task
from util.evaluate.visualize import (
    GALLERIES,
    TILE,
    TITLE,
    choose_episodes,
    draw_episodes,
    draw_strip,
    encode_strips,
)
from util.runtime.distributed import Ranks

IOUS = [0.5, 0.1, 0.9, 0.3, 0.3, 0.8, 0.2, 0.7, 0.1, 0.6, 0.4, 0.95]


def rows(ious: list[float], control: str = "") -> list[dict]:
    made = [{"control": control, "seed": 1, "number": n} for n in range(len(ious))]
    return [
        row | {"final_i": round(100 * i), "final_u": 100} for row, i in zip(made, ious, strict=True)
    ]


def chosen(ious: list[float], count: int, *, extremes: bool) -> dict[str, list[int]]:
    beside = rows([1.0, 0.0], "other_class")
    found = choose_episodes([*rows(ious), *beside], count, extremes=extremes)
    assert all(row["control"] == "" for of in found.values() for row in of)
    return {name: [row["number"] for row in of] for name, of in found.items()}


def test_spread_worst_and_best_right_episodes_are_drawn_in_order() -> None:
    found = chosen(IOUS, 3, extremes=True)
    assert found == {"episodes": [0, 4, 8], "worst": [1, 8, 6], "best": [11, 2, 5]}
    assert list(found) == list(GALLERIES)


def test_without_extremes_only_spread_episodes_are_drawn() -> None:
    assert chosen(IOUS, 4, extremes=False) == {"episodes": [0, 3, 6, 9]}


def test_gallery_larger_than_the_evaluation_holds_all_episodes_and_an_empty_one_none() -> None:
    few = chosen(IOUS[:2], 5, extremes=True)
    assert few == {"episodes": [0, 1], "worst": [1, 0], "best": [0, 1]}
    nothing = {"episodes": [], "worst": [], "best": []}
    assert chosen(IOUS, 0, extremes=True) == nothing == chosen([], 3, extremes=True)


class Evaluator:
    """Stands in for the evaluator: the IoU of an episode is in its plan."""

    def __init__(self, ranks: Ranks):
        self.ran: list[int] = []
        plans = [SimpleNamespace(index=n, iou=iou) for n, iou in enumerate(IOUS)]
        tasks = [Task(1, plan) for plan in plans]
        groups = [tasks[i : i + 2] for i in range(0, len(tasks), 2)]
        self.order = EvaluationOrder((1,), len(IOUS), ranks, groups, range(len(groups)))
        self.episodes = None

    def run(self, order: EvaluationOrder, on_episode: Callable) -> None:
        for task in (task for group in order.groups for task in group):
            self.ran.append(task.plan.index)
            on_episode(SimpleNamespace(task=task, iou=task.plan.iou))


def strips_of(ranks: Ranks) -> tuple[dict[str, list], list[int]]:
    evaluator = Evaluator(ranks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(visualize, "draw_strip", lambda example, episodes: np.array(example.iou))
        found = draw_episodes(evaluator, evaluator.order, rows(IOUS), 2, extremes=True)
    return {name: [float(s) for s in strips] for name, strips in found.items()}, evaluator.ran


@pytest.mark.parametrize("world", [1, 2])
def test_strips_of_all_ranks_are_those_of_the_rows_and_their_groups_run_again(
    world: int, tmp_path: Path
) -> None:
    found = on_processes(world, strips_of, tmp_path)
    expected = {"episodes": [IOUS[0], IOUS[6]], "worst": [0.1, 0.1], "best": [0.95, 0.9]}
    assert all(strips == expected for strips, _ in found)
    ran = [number for _, numbers in found for number in numbers]
    assert sorted(ran) == [0, 1, 2, 3, 6, 7, 8, 9, 10, 11]


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
            size=(size, size), prior=left, stages=[right, left, right], final=left
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
        source=SimpleNamespace(load=lambda name, support_of=None: (image, None)),
        load_pair=lambda *_, **_roles: (None, example.target, None),
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
    (tmp_path / "best.png").write_bytes(encode_strips(strips))
    read = cv2.imread(str(tmp_path / "best.png"))[..., ::-1]
    assert np.array_equal(read, np.concatenate(strips))
