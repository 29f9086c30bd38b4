"""Evaluation ordered by query, with stored features: the totals of the drawn order, encoded once.

Everything is computed in float64: there, another order of summation moves no pixel.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from helpers.double import CPU, System
from torch import Tensor

from model.amformer import plain
from util.config import load_config
from util.data.dataset import EpisodeDataset, collate
from util.data.demo.make import make_demo
from util.data.episodes import EpisodeSampler
from util.evaluate import evaluator as evaluate
from util.evaluate.evaluator import EvaluatedEpisode, QueryScorer
from util.evaluate.metrics import argmax_channels, object_iou
from util.evaluate.order import Task, evaluation_order
from util.evaluate.scores import Scores, ScoreTotals, add_confusions
from util.evaluate.tally import Tally
from util.runtime.distributed import Ranks

SEEDS, COUNT = [5, 6], 8  # episodes a seed


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> System:
    out = tmp_path_factory.mktemp("demo")
    make_demo(out, images=120, seed=0)
    words = [f"Data.data_root={out}/VOCdevkit2012/VOC2012", f"Data.list_dir={out}/lists"]
    cfg = load_config(ROOT / "config/demo/demo_split0_lite0.yaml", [*words, "Data.size=65"])
    return System(cfg)


def counts(total: ScoreTotals) -> Tensor:
    """Return all counts of pixels but those of the prior."""
    parts = (total.final, total.meta, total.base, total.confusion)
    return torch.cat([part.totals.flatten() for part in parts])


@pytest.fixture
def totals(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The counts of every evaluation, in the order in which their scores are computed."""
    found: list[Tensor] = []

    class Recorded(ScoreTotals):
        def scores(self, names: list[str], base_names: list[str], episodes: int) -> Scores:
            found.append(counts(self))
            return super().scores(names, base_names, episodes)

    monkeypatch.setattr(evaluate, "ScoreTotals", Recorded)
    return found


def drawn(system: System, seed: int, count: int) -> Iterator[tuple]:
    """Yield (batch, images) of a seed's episodes in the order in which they are drawn."""
    dataset = system.episodes
    sampler = dataset.sampler.with_seed(seed)
    episodes = EpisodeDataset(
        dataset.source, sampler, dataset.transform, dataset.base_table.numpy(), dataset.classes
    )
    for index in range(count):
        batch = collate([episodes[index]])
        yield batch, (batch.query, batch.support, batch.support_mask)


@torch.no_grad()
def in_drawn_order(
    system: System, predict: Callable, count: int
) -> tuple[dict[tuple, Tensor], list[Tensor]]:
    """Predict one episode after the other; return masks by (seed, index), and counts by seed."""
    evaluator, masks, found = system.evaluator(), {}, []
    for seed in SEEDS:
        size = len(evaluator.classes), system.cfg.num_base_classes, CPU
        total = ScoreTotals(*size, system.model.PRIORS, system.model.has_base_learner)
        tally = Tally({seed: total})
        for batch, images in drawn(system, seed, count):
            [plan] = batch.plans
            prediction = predict(*images)
            QueryScorer(evaluator, plan.query).score(prediction, 0, Task(seed, plan), tally)
            masks[seed, plan.index] = argmax_channels(prediction.scores[0])
        found.append(counts(total))
    return masks, found


@pytest.fixture(scope="module")
def drawn_totals(demo: System) -> list[Tensor]:
    """The counts of each seed's episodes in the order in which they are drawn."""
    _, found = in_drawn_order(demo, demo.model, COUNT)
    assert found[0].any() and not torch.equal(*found)
    return found


def test_totals_equal_those_of_the_drawn_order_with_any_memory_budget(
    demo: System, totals: list, drawn_totals: list
) -> None:
    for gigabytes in (0.0, 1e-3, 1.0):
        totals.clear()
        evaluator = demo.evaluator(cache_gb=gigabytes)
        work = evaluator.order(COUNT, SEEDS)
        evaluator.run(work)
        assert all(torch.equal(*pair) for pair in zip(totals, drawn_totals, strict=True))
        plans = [task.plan for group in work.groups for task in group]
        queries = {plan.query for plan in plans}
        supports = {(name, plan.class_id) for plan in plans for name in plan.supports}
        first = evaluator.store.passes
        if gigabytes == 1.0:
            assert first == len(queries) + len(supports)
        assert first <= len(queries) + len(plans)
        evaluator.run(work)  # as training does at each validation
        again = totals[len(SEEDS) :]
        assert all(torch.equal(*pair) for pair in zip(again, drawn_totals, strict=True))
        more = evaluator.store.passes - first
        assert more == 0 if gigabytes == 1.0 else more >= len(queries)


def test_memory_budget_counts_all_that_the_store_keeps(demo: System) -> None:
    evaluator = demo.evaluator(cache_gb=1.0)
    evaluator.run(evaluator.order(COUNT, SEEDS))
    store = evaluator.store
    kept = [entry.tensors() for entry in store._entries.values()]
    assert store.used == sum(t.numel() * t.element_size() for tensors in kept for t in tensors) > 0


@pytest.mark.parametrize("world", [1, 3])
def test_batches_of_one_query_on_any_number_of_ranks_change_no_total(
    demo: System, totals: list, drawn_totals: list, world: int
) -> None:
    for rank in range(world):
        evaluator = demo.evaluator(Ranks(rank, world, CPU), batch_size=3)
        evaluator.run(evaluator.order(COUNT, SEEDS))
    for index, seed_total in enumerate(drawn_totals):
        got = torch.stack(totals[index :: len(SEEDS)]).sum(0)
        assert torch.equal(got, seed_total)


def test_order_holds_every_episode_once_and_each_query_in_one_place(demo: System) -> None:
    fold, shares = demo.episodes.sampler.fold, []
    for world in (1, 3):
        parts = [
            evaluation_order(EpisodeSampler(fold, 1, 0), 30, SEEDS, Ranks(r, world, CPU), 4)
            for r in range(world)
        ]
        shares.append([group for part in parts for group in part.groups])
    alone, shared = shares
    assert shared == alone and all(len(group) <= 4 for group in alone)
    tasks = [task for group in alone for task in group]
    assert {(t.seed, t.plan.index) for t in tasks} == {(s, i) for s in SEEDS for i in range(30)}
    assert len(tasks) == 60
    order = [group[0].plan.query for group in alone]
    runs = 1 + sum(a != b for a, b in zip(order, order[1:], strict=False))
    assert runs == len(set(order))
    assert all(len({task.plan.query for task in group}) == 1 for group in alone)


def test_every_episode_is_passed_on_with_its_iou(demo: System) -> None:
    evaluator, seen, done = demo.evaluator(), [], []
    work = evaluator.order(COUNT, SEEDS)
    evaluator.run(work, on_episode=seen.append, on_progress=done.append)
    assert done == list(range(1, 2 * COUNT + 1))
    tasks = [task for group in work.groups for task in group]
    assert [example.plan for example in seen] == [task.plan for task in tasks]
    ious = [example.iou for example in seen]
    assert max(ious) > 0 and all(0 <= iou <= 1 for iou in ious)
    for example in seen[:3]:
        final = example.resize(example.prediction.final[example.row :][:1])
        assert final.shape[1:] == example.target.shape
        assert object_iou(argmax_channels(final), example.target) == example.iou


def test_confusion_names_all_pixels_and_sums_to_the_areas_of_the_scores(
    demo: System, totals: list
) -> None:
    evaluator = demo.evaluator()
    scores = list(evaluator.run(evaluator.order(COUNT, SEEDS)).values())
    both = add_confusions(score.confusion for score in scores)
    assert list(both) == evaluator.names
    known = {"background", "another novel class", "hit", *evaluator.base_names}
    size = 4 * len(evaluator.names)
    binary = sum(total[:size] for total in totals).view(-1, 2, 2)
    for (name, kinds), (_, (hit, union)) in zip(both.items(), binary.tolist(), strict=True):
        predicted, there = kinds["predicted"], kinds["object"]
        assert set(predicted) | set(there) <= known and 0 not in predicted.values()
        assert predicted.get("hit", 0) == there.get("hit", 0) == hit, name
        assert sum(predicted.values()) + sum(there.values()) - hit == union, name
    assert any(set(kinds["predicted"]) & set(evaluator.base_names) for kinds in both.values())


def check_against_plain(system: System, totals: list, count: int) -> None:
    """Check that every predicted pixel and every total equals the plain formulation's."""
    expected, reference = in_drawn_order(
        system, lambda *episode: plain.predict(system.model, *episode), count
    )
    evaluator, different, pixels = system.evaluator(), 0, 0
    work = evaluator.order(count, SEEDS)
    seeds = iter([task.seed for group in work.groups for task in group])

    def compare(example: EvaluatedEpisode) -> None:
        nonlocal different, pixels
        mine = argmax_channels(example.prediction.scores[example.row])
        different += (mine != expected[next(seeds), example.plan.index]).sum().item()
        pixels += mine.numel()

    evaluator.run(work, on_episode=compare)
    found = torch.stack(list(expected.values())).float().mean()
    assert 0.01 < found < 0.99  # otherwise the comparison would be empty
    assert different == 0 < pixels
    assert all(torch.equal(*pair) for pair in zip(totals, reference, strict=True))


def test_predictions_equal_those_of_the_plain_formulation(demo: System, totals: list) -> None:
    check_against_plain(demo, totals, 3)


@pytest.mark.slow
def test_200_real_episodes_equal_those_of_the_plain_formulation(
    tree: Path, tmp_path: Path, totals: list
) -> None:
    words = [f"Data.data_root={tree}/VOCdevkit2012/VOC2012", f"Data.list_dir={tmp_path}/lists"]
    cfg = load_config(ROOT / "config/pascal/pascal_real193_lite0.yaml", words)
    check_against_plain(System(cfg, pretrained=True), totals, 100)
