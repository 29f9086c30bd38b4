"""Evaluation ordered by query, out of a store: the totals of the drawn order, encoded once."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from helpers.small import balance_heads
from torch import Tensor

from model import build_model
from model.amformer import plain
from model.backbones import LITE0, load_pretrained, pixel_statistics
from util.config import load_config
from util.data.dataset import EpisodeDataset, collate, open_episodes
from util.data.demo.make import make_demo
from util.evaluate import evaluator as evaluate
from util.evaluate.evaluator import Evaluator, own_size
from util.evaluate.metrics import argmax_channels, object_iou
from util.evaluate.order import evaluation_order
from util.runtime.distributed import Ranks

CPU = torch.device("cpu")
ALONE = Ranks(0, 1, CPU)
SEEDS, COUNT = [5, 6], 8  # episodes a seed


class System:
    """A model of random weights that finds objects, and episodes for it."""

    def __init__(self, cfg, *, pretrained: bool = False):
        torch.manual_seed(0)
        self.cfg, self.model = cfg, build_model(cfg).eval()
        if pretrained:
            load_pretrained(self.model.encoder.base.backbone, LITE0, "package")
        self.episodes, _ = open_episodes(cfg, "val", 1, *pixel_statistics(LITE0))
        with torch.no_grad():
            for head in self.model.object_mining.heads:
                head[-1].weight *= 100
        first = collate([self.episodes[i] for i in range(4)])
        balance_heads(self.model, first.query, first.support, first.support_mask)

    def evaluator(self, ranks: Ranks = ALONE, **options: object) -> Evaluator:
        cfg = replace(self.cfg, Eval=replace(self.cfg.Eval, **options))
        return Evaluator(self.model, self.episodes, cfg, ranks)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> System:
    out = tmp_path_factory.mktemp("demo")
    make_demo(out, images=120, seed=0)
    words = [f"Data.data_root={out}/VOCdevkit2012/VOC2012", f"Data.list_dir={out}/lists"]
    cfg = load_config(ROOT / "config/demo/demo_split0_lite0.yaml", [*words, "Data.size=65"])
    return System(cfg)


@pytest.fixture
def totals(monkeypatch: pytest.MonkeyPatch) -> list:
    """The totals of every evaluation, in the order in which they were turned into scores."""
    kept: list = []

    class Kept(evaluate._Totals):
        def scores(self, names: list[str], base_names: list[str], episodes: int) -> evaluate.Scores:
            kept.append(torch.stack((self.final.totals, self.meta.totals)))
            more = (self.base.totals.flatten(), self.confusion.totals.flatten())
            kept[-1] = torch.cat((kept[-1].flatten(), *more))
            return super().scores(names, base_names, episodes)

    monkeypatch.setattr(evaluate, "_Totals", Kept)
    return kept


def drawn(system: System, seed: int, count: int) -> Iterator[tuple]:
    """(batch, images) of the episodes of a seed in the order in which they are drawn."""
    dataset = system.episodes
    sampler = type(dataset.sampler)(dataset.sampler.fold, system.cfg.Data.shot, seed)
    episodes = EpisodeDataset(
        dataset.source, sampler, dataset.transform, dataset.base_table.numpy(), dataset.classes
    )
    for index in range(count):
        batch = collate([episodes[index]])
        yield batch, (batch.query, batch.support, batch.support_mask)


@torch.no_grad()
def in_drawn_order(system: System, predict: Callable, count: int) -> dict[tuple, Tensor]:
    """The labels of each episode by seed and index, one episode after the other."""
    evaluator, masks = system.evaluator(), {}
    for seed in SEEDS:
        total = evaluate._Totals(len(evaluator.classes), system.cfg.num_base_classes, CPU)
        for batch, images in drawn(system, seed, count):
            [plan] = batch.plans
            prediction = predict(*images)
            evaluate._Target(evaluator, plan.query).score(prediction, 0, plan, total)
            masks[seed, plan.index] = argmax_channels(prediction.scores[0])
        total.scores(evaluator.names, evaluator.base_names, count)
    return masks


def test_totals_are_those_of_the_drawn_order_whatever_the_budget(
    demo: System, totals: list
) -> None:
    in_drawn_order(demo, demo.model, COUNT)
    expected = totals[:]
    assert expected[0].any() and not torch.equal(*expected)
    for gigabytes in (0.0, 1e-3, 1.0):
        totals.clear()
        evaluator = demo.evaluator(cache_gb=gigabytes)
        work = evaluator.order(COUNT, SEEDS)
        evaluator.run(work)
        assert all(torch.equal(*pair) for pair in zip(totals, expected, strict=True))
        plans = [task.plan for group in work.groups for task in group]
        queries = {plan.query for plan in plans}
        supports = {(name, plan.class_id) for plan in plans for name in plan.supports}
        first = evaluator.store.passes
        if gigabytes == 1.0:
            assert first == len(queries) + len(supports)
        assert first <= len(queries) + len(plans)
        evaluator.run(work)  # a training validates again and again
        assert all(torch.equal(*pair) for pair in zip(totals[len(SEEDS) :], expected, strict=True))
        again = evaluator.store.passes - first
        assert again == 0 if gigabytes == 1.0 else again >= len(queries)


def test_an_evaluation_keeps_and_makes_only_what_it_reads(demo: System) -> None:
    """The budget is for what the encoder saw and the label at S x S, not at the image's size."""
    evaluator = demo.evaluator(cache_gb=1.0)
    evaluator.run(evaluator.order(COUNT, SEEDS))
    store = evaluator.store
    kept = [(*seen.view.tensors(), seen.label) for seen in store._entries.values()]
    assert store.used == sum(t.numel() * t.element_size() for tensors in kept for t in tensors) > 0
    [task, *_] = evaluator.order(1, [5]).groups[0]
    batch = store.of_query(store.image(task.plan.query)[0], [task.plan])
    assert len(batch) == 1 and batch.query_base_mask is None and batch.class_index is None


@pytest.mark.parametrize("world", [1, 3])
def test_episodes_of_one_query_may_run_as_a_batch_on_any_number_of_ranks(
    demo: System, totals: list, world: int
) -> None:
    in_drawn_order(demo, demo.model, COUNT)
    expected = totals[:]
    totals.clear()
    for rank in range(world):
        evaluator = demo.evaluator(Ranks(rank, world, CPU), batch_size=3)
        evaluator.run(evaluator.order(COUNT, SEEDS))
    for index, seed_total in enumerate(expected):
        got = torch.stack(totals[index :: len(SEEDS)]).sum(0)
        assert (got - seed_total).abs().max() <= 1e-4 * seed_total.max()


def test_the_schedule_holds_every_episode_once_and_a_query_in_one_place(demo: System) -> None:
    fold, shares = demo.episodes.sampler.fold, []
    for world in (1, 3):
        parts = [
            evaluation_order(fold, 1, 30, SEEDS, Ranks(r, world, CPU), 4) for r in range(world)
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


def test_every_episode_is_shown_with_its_iou(demo: System) -> None:
    evaluator, seen, done = demo.evaluator(), [], []
    work = evaluator.order(COUNT, SEEDS)
    evaluator.run(work, show=seen.append, watch=done.append)
    assert done == list(range(1, 2 * COUNT + 1))
    tasks = [task for group in work.groups for task in group]
    assert [example.plan for example in seen] == [task.plan for task in tasks]
    ious = [example.iou for example in seen]
    assert max(ious) > 0 and all(0 <= iou <= 1 for iou in ious)
    for example in seen[:3]:
        final = own_size(example.prediction.final[example.row :][:1], (65, 65), example.target)
        assert object_iou(argmax_channels(final), example.target) == example.iou


def test_confusion_names_the_pixels_and_its_sums_are_those_of_the_scores(
    demo: System, totals: list
) -> None:
    evaluator = demo.evaluator()
    scores = list(evaluator.run(evaluator.order(COUNT, SEEDS)).values())
    both = evaluate.summed(score.confusion for score in scores)
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


def agrees_with_plain(system: System, totals: list, count: int) -> None:
    """Argmax on 99.99 % of the pixels, and I and U within 1e-4."""
    expected = in_drawn_order(system, lambda *e: plain.predict(system.model, *e), count)
    reference = totals[:]
    totals.clear()
    evaluator, different, pixels = system.evaluator(), 0, 0
    work = evaluator.order(count, SEEDS)
    seeds = iter([task.seed for group in work.groups for task in group])

    def compare(example: evaluate.EvaluatedEpisode) -> None:
        nonlocal different, pixels
        mine = argmax_channels(example.prediction.scores[example.row])
        different += (mine != expected[next(seeds), example.plan.index]).sum().item()
        pixels += mine.numel()

    evaluator.run(work, show=compare)
    found = torch.stack(list(expected.values())).float().mean()
    assert 0.01 < found < 0.99  # else it would say nothing
    assert different <= 1e-4 * pixels
    for got, wanted in zip(totals, reference, strict=True):
        assert ((got - wanted).abs() <= 1e-4 * wanted.clamp(min=1e4)).all()


def test_predictions_are_those_of_the_plain_formulation(demo: System, totals: list) -> None:
    agrees_with_plain(demo, totals, 3)


@pytest.mark.slow
def test_200_real_episodes_are_those_of_the_plain_formulation(
    tree: Path, tmp_path: Path, totals: list
) -> None:
    words = [f"Data.data_root={tree}/VOCdevkit2012/VOC2012", f"Data.list_dir={tmp_path}/lists"]
    cfg = load_config(ROOT / "config/pascal/pascal_real193_lite0.yaml", words)
    agrees_with_plain(System(cfg, pretrained=True), totals, 100)
