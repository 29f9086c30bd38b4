"""Counted operations do not grow, and stay below fixed limits."""

from types import SimpleNamespace

import pytest
import torch
from golden import golden

from util.bench import measure
from util.bench.__main__ import CONFIG
from util.bench.counting import count
from util.config import load_config
from util.data.episodes import EpisodeSampler
from util.data.lists import FoldList
from util.evaluate.order import evaluation_order
from util.features import FeatureStore
from util.runtime.distributed import Ranks
from util.runtime.errors import UserError

SMALL = 129
GROWTH = 1.02
# GFLOP of `python -m util.bench --count --size 129`; lower a number if a change saves operations.
AT_129 = {
    ("cold", 1): 38.314,
    ("warm", 1): 0.753,
    ("G", 1): 84.458,
    ("D", 1): 77.292,
    ("cold", 5): 105.476,
    ("warm", 5): 1.286,
    ("G", 5): 219.09,
    ("D", 5): 211.615,
}
OTHERS_AT_129 = {
    ("bam", "cold", 1): 38.634,
    ("bam", "warm", 1): 2.640,
    ("bam", "G", 1): 87.045,
    ("bam", "cold", 5): 99.380,
    ("bam", "warm", 5): 3.026,
    ("bam", "G", 5): 208.845,
    ("hdmnet", "cold", 1): 38.412,
    ("hdmnet", "warm", 1): 0.851,
    ("hdmnet", "G", 1): 84.424,
    ("hdmnet", "cold", 5): 106.756,
    ("hdmnet", "warm", 5): 2.566,
    ("hdmnet", "G", 5): 232.087,
    ("pfenet", "cold", 1): 49.574,
    ("pfenet", "warm", 1): 19.394,
    ("pfenet", "G", 1): 175.953,
    ("pfenet", "cold", 5): 110.320,
    ("pfenet", "warm", 5): 19.780,
    ("pfenet", "G", 5): 297.754,
}
CPU = Ranks(0, 1, torch.device("cpu"))


def gflop(work: str, shot: int, size: int, *words: str) -> float:
    cfg = load_config(CONFIG, [f"Data.size={size}", f"Data.shot={shot}", *words])
    return measure.operations(work, cfg) / 1e9


@pytest.fixture(scope="module")
def at_473() -> tuple[float, float]:
    """Return GFLOP of a 1-shot evaluation, (cold, warm)."""
    return gflop("cold", 1, 473), gflop("warm", 1, 473)


def test_counting_without_computing_gives_the_true_number_of_operations() -> None:
    layer = torch.nn.Conv2d(3, 4, 3, padding=1)

    def work() -> None:
        (layer(torch.randn(2, 3, 5, 7)).flatten(1) @ torch.randn(140, 6)).sum().backward()

    forward = 2 * 2 * 5 * 7 * 4 * 27 + 2 * 2 * 140 * 6
    weight, product = 2 * 2 * 5 * 7 * 4 * 27, 2 * 2 * 140 * 6
    assert count(work) == forward + weight + product


@pytest.mark.parametrize(("work", "shot"), AT_129)
def test_no_operation_count_grows(work: str, shot: int) -> None:
    got = gflop(work, shot, SMALL)
    assert got <= GROWTH * AT_129[work, shot], f"{work}, {shot}-shot: {got:.3f} GFLOP"


@pytest.mark.parametrize(("system", "work", "shot"), OTHERS_AT_129)
def test_no_operation_count_of_another_system_grows(system: str, work: str, shot: int) -> None:
    got = gflop(work, shot, SMALL, f"Method.name={system}")
    expected = OTHERS_AT_129[system, work, shot]
    assert got <= GROWTH * expected, f"{system}, {work}, {shot}-shot: {got:.3f} GFLOP"


def test_plain_formulation_and_steps_of_d_are_of_amformer_only() -> None:
    cfg = load_config(CONFIG, ["Method.name=bam", "Data.size=65"])
    for work, plain in (("D", False), ("cold", True)):
        with pytest.raises(UserError, match=r"amformer only, not bam"):
            measure.operations(work, cfg, plain)


def test_cost_of_an_evaluation_stays_below_its_limits(at_473: tuple[float, float]) -> None:
    cold, warm = at_473
    assert cold <= 492 and warm <= 28.5


def test_cost_of_a_generator_step_stays_below_its_limit() -> None:
    assert gflop("G", 1, 473) <= 1090


class Counter(FeatureStore):
    """A store that reads no image. Each support takes 8.5 MB, the average of fold 0.

    That is a Gram matrix of 1.05 MB and an eighth of 59 MB of features.
    """

    def __init__(self, gigabytes: float):
        super().__init__(SimpleNamespace(changes=0), None, gigabytes)

    def _encode_support(self, name: str, class_id: int, flipped: bool) -> SimpleNamespace:
        self.passes += 1
        taken = torch.empty(8_500_000, dtype=torch.uint8, device="meta")
        return SimpleNamespace(tensors=lambda: (taken,))


def test_evaluation_of_five_seeds_encodes_every_image_about_once(
    at_473: tuple[float, float],
) -> None:
    """PASCAL fold 0, 5 x 1,000 episodes, supports in the default `Eval.cache_gb`."""
    lists = golden.published_lists("pascal")
    images = lists["val_0"]["images"]
    by_class = {int(c): names for c, names in lists["val_0"]["by_class"].items()}
    classes_of = {i: tuple(c for c in by_class if i in by_class[c]) for i in images}
    fold = FoldList(images, by_class, classes_of, "pascal")
    work = evaluation_order(EpisodeSampler(fold, 1, 0), 1000, range(321, 326), CPU, 1)
    store = Counter(load_config(CONFIG).Eval.cache_gb)
    queries, last = 0, None
    for [task] in work.groups:
        plan = task.plan
        queries, last = queries + (plan.query != last), plan.query
        for name in plan.supports:
            store._support(name, plan.class_id, False)
    assert work.episodes == 5000 and queries == len(images) == 364
    pairs = sum(map(len, by_class.values()))
    assert store.passes <= 1.05 * pairs
    cold, warm = at_473
    total = (queries + store.passes) * (cold - warm) / 2 + work.episodes * warm
    assert total / 1e3 <= 310  # TFLOP; published: 3,830
