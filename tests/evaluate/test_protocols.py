"""N-way and generalized evaluation, against a literal computation in float64, to the integer."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import ROOT
from helpers.double import ALONE, CPU, System
from helpers.entries import call
from helpers.pictures import refused
from helpers.runs import StopAt, finish, start_ranks

import test as test_entry
from util.config import load_config
from util.data import EpisodePlan
from util.data.demo.make import make_demo
from util.data.episodes import Draw
from util.data.image_io import read_label
from util.data.tables import load_table
from util.evaluate.label_maps import KINDS, LabelTotals, MapEvaluator, merge
from util.evaluate.nway import NWay, nway_plans
from util.evaluate.protocols import open_evaluator
from util.folds import fold_of
from util.runtime.distributed import Ranks

SEEDS, COUNT = (5, 6), 5  # episodes a seed
TAU = 0.52

PROTOCOLS: dict[str, dict] = {
    "2way": {"way": 2},
    "3way": {"way": 3, "order": "permuted"},
    "gfss_bam": {"protocol": "gfss_bam", "merge_tau": TAU, "order": "permuted"},
    "gfss_diam": {"protocol": "gfss_diam", "order": "permuted"},
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> System:
    out = tmp_path_factory.mktemp("demo")
    make_demo(out, images=120, seed=0)
    words = [f"Data.data_root={out}/VOCdevkit2012/VOC2012", f"Data.list_dir={out}/lists"]
    cfg = load_config(ROOT / "config/demo/demo_split0_lite0.yaml", [*words, "Data.size=65"])
    return System(cfg)


def opened(demo: System, name: str, ranks: Ranks = ALONE) -> MapEvaluator:
    made = dict(PROTOCOLS[name])
    demo.episodes.sampler.draw = Draw(made.get("order", "list"))
    evaluator = open_evaluator(demo.model, demo.episodes, demo.options(**made), ranks)
    assert isinstance(evaluator, MapEvaluator)
    return evaluator


def counted(evaluator: MapEvaluator, count: int = COUNT) -> dict[int, dict[str, list]]:
    """Run an evaluation; return seed -> kind -> counts."""
    order = evaluator.order(count, SEEDS)
    tally = evaluator.tally(order)
    evaluator.run(order, tally)
    return {s: {k: t.kinds[k].totals.tolist() for k in KINDS} for s, t in tally.totals.items()}


# --- the literal computation ---------------------------------------------------------------------


@torch.no_grad()
def literal(demo: System, plans: list[EpisodePlan], base: list[int], tau: float) -> dict:
    """Return kind -> (true, predicted) -> pixels of one episode, pixel by pixel.

    True and predicted labels are class ids; 0 is background. `base` are the ids of the base classes
    that the map holds. Every prediction is one pass of the model, from the images.
    """
    data, size = demo.episodes, tuple(demo.cfg.sizes["Data.size"])
    query, _, truth = data.load_pair(plans[0].query, None)
    maps: dict[str, dict[int, np.ndarray]] = {kind: {} for kind in KINDS}
    for plan in plans:
        pairs = [data.load_pair(name, None, plan.class_id) for name in plan.supports]
        support = torch.stack([image for image, _, _ in pairs])[None]
        mask = torch.stack([(label == plan.class_id).long() for _, label, _ in pairs])
        mask[torch.stack([label for _, label, _ in pairs]) == 255] = 255
        got = demo.model(query[None], support, mask[None])
        for kind, scores in (("final", got.final), ("meta", got.logits[-1])):
            maps[kind][plan.class_id] = enlarge(scores, size, truth.shape)
    base_map = enlarge(got.base_logits, size, truth.shape)
    found = {kind: Counter() for kind in KINDS}
    height, width = truth.shape
    for y in range(height):
        for x in range(width):
            true = int(truth[y, x])
            if true == 255:
                continue
            if true not in base and true not in maps["final"]:
                true = 0
            for kind in KINDS:
                chosen, most = 0, tau
                for class_id, scores in maps[kind].items():
                    background, object_ = scores[:, y, x]
                    probability = 1 / (1 + math.exp(background - object_))
                    if probability > most:
                        chosen, most = class_id, probability
                if chosen == 0 and base:
                    chosen = [0, *base][int(base_map[:, y, x].argmax())]
                found[kind][true, chosen] += 1
    return found


def enlarge(scores: torch.Tensor, size: tuple, shape: tuple) -> np.ndarray:
    for to in (size, shape):
        scores = torch.nn.functional.interpolate(scores, to, mode="bilinear", align_corners=True)
    return scores[0].numpy()


@pytest.mark.parametrize("name", PROTOCOLS)
def test_counts_equal_those_of_every_pixel_of_every_single_prediction(
    demo: System, name: str
) -> None:
    evaluator = opened(demo, name)
    fold = fold_of(demo.cfg.Data)
    base = list(fold.base) if name.startswith("gfss") else []
    ids = [0, *base, *evaluator.evaluator.classes]
    tau, got = PROTOCOLS[name].get("merge_tau", 0.5), counted(evaluator)
    for seed in SEEDS:
        wanted = {kind: Counter() for kind in KINDS}
        plans_of = evaluator.protocol.episodes(seed)
        for number in range(COUNT):
            for kind, counts in literal(demo, plans_of(number), base, tau).items():
                wanted[kind] += counts
        for kind in KINDS:
            matrix = [[wanted[kind][true, predicted] for predicted in ids] for true in ids]
            assert got[seed][kind] == matrix
            hits = sum(matrix[i][i] for i in range(1, len(ids)))
            total = sum(map(sum, matrix))
            assert hits > 0 and total > sum(matrix[i][i] for i in range(len(ids)))
        novel = {p for t, p in wanted["final"] if p not in base}
        assert len(novel) > 1  # a novel class was predicted


@pytest.mark.parametrize("name", PROTOCOLS)
def test_two_ranks_count_together_what_one_counts(demo: System, name: str) -> None:
    alone = counted(opened(demo, name))
    shares = [counted(opened(demo, name, Ranks(rank, 2, CPU))) for rank in (0, 1)]
    for seed in SEEDS:
        for kind in KINDS:
            parts = np.array([share[seed][kind] for share in shares])
            assert parts.sum(0).tolist() == alone[seed][kind]
            assert all(part.any() for part in parts)


def test_one_way_gives_the_numbers_of_the_ordinary_evaluation(demo: System) -> None:
    demo.episodes.sampler.draw = Draw("list")
    ordinary = demo.evaluator()
    wanted = ordinary.run(ordinary.order(8, SEEDS))
    one_way = MapEvaluator(demo.evaluator(), NWay(demo.episodes.sampler, 1))
    got = one_way.run(one_way.order(8, SEEDS))
    assert list(got) == list(wanted) == list(SEEDS)
    for seed, scores in got.items():
        assert (scores.final, scores.meta) == (wanted[seed].final, wanted[seed].meta)
        assert scores.final.miou > 0 and scores.episodes == wanted[seed].episodes


# --- scores of counts ----------------------------------------------------------------------------


def test_a_pixel_gets_the_most_probable_class_if_it_is_above_tau() -> None:
    leads = torch.tensor([[-1.0, 0.1, 2.0, 0.3, 0.0], [-2.0, 0.2, 1.0, -0.3, 0.0]])[:, None]
    labels, below = torch.tensor([7, 9]), torch.tensor([[1, 2, 3, 4, 0]])
    assert merge(leads, labels, below).tolist() == [[1, 9, 7, 7, 0]]
    # softmax of a lead of 0.2 is 0.5498
    assert merge(leads, labels, below, 0.549).tolist() == [[1, 9, 7, 7, 0]]
    assert merge(leads, labels, below, 0.55).tolist() == [[1, 2, 7, 7, 0]]
    assert merge(leads, labels, below, 0.9).tolist() == [[1, 2, 3, 4, 0]]


def test_label_counts_by_hand() -> None:
    totals = LabelTotals(3, CPU)
    target = torch.tensor([[0, 0, 1, 1, 2, 255, 255]])
    totals.add(torch.tensor([[0, 1, 1, 2, 2, 0, 2]]), target)
    assert totals.totals.tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 1]]
    hits, union = totals.areas()
    assert hits.tolist() == [1, 1, 1] and union.tolist() == [2, 3, 2]
    named = totals.named(["background", "cat", "dog"])
    assert named["cat"] == {"cat": 1, "dog": 1} and named["dog"] == {"dog": 1}


def test_means_of_base_and_novel_classes_by_hand(demo: System) -> None:
    evaluator = opened(demo, "gfss_diam")
    labels = evaluator.labels
    totals = evaluator.tally(evaluator.order(1, [5])).totals[5]
    first_novel = 1 + len(evaluator.protocol.base)
    cells = totals.kinds["final"].totals
    cells[1, 1], cells[1, 0] = 30, 10  # a base class: 30 of 40
    cells[2, 0] = 5  # another one: 0 of 5
    cells[first_novel, first_novel], cells[0, first_novel] = 20, 30  # a novel class: 20 of 50
    scores = evaluator.protocol.scores(totals, labels, 4)
    assert scores.base_classes == {labels[1]: 75.0, labels[2]: 0.0}
    assert scores.novel_classes == {labels[first_novel]: 40.0}
    assert (scores.base_miou, scores.novel_miou, scores.mean) == (37.5, 40.0, 38.75)
    assert scores.all_miou == pytest.approx(115 / 3)
    assert scores.harmonic_mean == pytest.approx(2 * 37.5 * 40 / 77.5)
    assert {"base mIoU", "novel mIoU", "harmonic mean"} <= scores.columns().keys()


# --- episodes ------------------------------------------------------------------------------------


def test_nway_episode_extends_the_one_way_episode_by_classes_drawn_evenly(demo: System) -> None:
    sampler = demo.episodes.sampler.with_seed(3)
    classes, absent = sorted(sampler.fold.by_class), 0
    drawn: dict[int, Counter] = defaultdict(Counter)
    for number in range(600):
        first = sampler.plan(number)
        plans = nway_plans(sampler, 3, number)
        assert first in plans and [p.class_id for p in plans] == sorted({p.class_id for p in plans})
        assert len(plans) == 3
        for plan in plans:
            assert (plan.index, plan.query) == (number, first.query)
            assert plan.query not in plan.supports and len(set(plan.supports)) == 1
            assert set(plan.supports) <= set(sampler.fold.by_class[plan.class_id])
            drawn[first.class_id][plan.class_id] += 1
            absent += plan.class_id not in sampler.fold.classes_of[plan.query]
        assert nway_plans(sampler, 1, number) == [first]
    assert absent > 0
    for first_class, counts in drawn.items():
        share = 2 * counts[first_class] / (len(classes) - 1)
        assert set(counts) == set(classes)
        assert all(abs(counts[c] - share) < 5 * share**0.5 for c in classes if c != first_class)


def held(demo: System, name: str) -> set[int]:
    """The classes that the mask of an image holds, from the file."""
    return set(np.unique(read_label(demo.episodes.source.label_path(name))).tolist()) - {0, 255}


def test_bam_episode_has_a_novel_class_that_the_query_may_lack_only_beside_a_base_class(
    demo: System,
) -> None:
    evaluator = opened(demo, "gfss_bam")
    novel = set(evaluator.evaluator.classes)
    base = set(fold_of(demo.cfg.Data).base)
    images = list(load_table(demo.episodes.source, demo.cfg.Data.list_dir))
    wanted = [i for i in images if held(demo, i) & (base | novel)]
    plans = [evaluator.protocol.episodes(7)(n) for n in range(10 * len(wanted))]
    assert all(len(of) == 1 for of in plans)
    seen = defaultdict(set)
    for [plan] in plans:
        seen[plan.query].add(plan.class_id)
        assert plan.query not in plan.supports
        assert all(plan.class_id in held(demo, name) for name in plan.supports)
    assert sorted(seen) == sorted(wanted)
    for query, classes in seen.items():
        allowed = novel if held(demo, query) & base else held(demo, query) & novel
        assert classes <= allowed
    assert any(classes - held(demo, query) for query, classes in seen.items())


def test_diam_test_asks_each_image_once_for_all_classes_with_one_support_set(demo: System) -> None:
    evaluator = opened(demo, "gfss_diam")
    novel = set(evaluator.evaluator.classes)
    base = set(fold_of(demo.cfg.Data).base)
    images = list(load_table(demo.episodes.source, demo.cfg.Data.list_dir))
    wanted = {i for i in images if held(demo, i) & (base | novel)}
    sets = []
    for seed in SEEDS:
        order = evaluator.order(10**6, [seed])
        assert len(order.every) == order.count
        plans = [[task.plan for task in group] for group in order.every]
        assert all({p.class_id for p in of} == novel for of in plans)
        [supports] = {tuple(p.supports for p in of) for of in plans}
        flat = [name for names in supports for name in names]
        queries = [of[0].query for of in plans]
        assert sorted([*queries, *flat]) == sorted(wanted)
        for c, names in zip(sorted(novel), supports, strict=True):
            assert all(held(demo, name) & novel == {c} for name in names)
        sets.append(supports)
    assert sets[0] != sets[1]
    assert "the other" in evaluator.protocol.report(10**6)[0]
    assert f"set Eval.episodes to {order.count}" in evaluator.protocol.report(3)[0]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_episode_depends_on_seed_and_number_alone(demo: System, name: str) -> None:
    evaluator = opened(demo, name)
    forward = [evaluator.protocol.episodes(5)(n) for n in range(8)]
    other = [evaluator.protocol.episodes(6)(n) for n in range(8)]
    again = opened(demo, name).protocol.episodes(5)
    assert [again(n) for n in reversed(range(8))] == forward[::-1]
    assert other != forward


# --- test.py -------------------------------------------------------------------------------------

SHORT = ["Eval.episodes=5", "Eval.seeds=[5,6]"]
RUNS = {
    "2way": ["Eval.way=2"],
    "gfss_bam": ["Eval.protocol=gfss_bam", "Eval.merge_tau=0.6"],
    "gfss_diam": ["Eval.protocol=gfss_diam"],
}


def result(folder: Path, name: str) -> dict:
    return json.loads((folder / f"result_{name}.json").read_text())


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", RUNS)
def test_test_writes_a_result_of_its_own_on_one_and_two_ranks_that_verify_repeats(
    small_run: SimpleNamespace, tmp_path: Path, name: str, capsys: pytest.CaptureFixture
) -> None:
    words = [*small_run.words, *SHORT, *RUNS[name]]
    assert call(test_entry.test, *words, f"Train.save_path={tmp_path}/one") == 0
    table = capsys.readouterr().out
    assert {p.name for p in (tmp_path / "one").iterdir()} == {f"result_{name}.json", "test.log"}
    one = result(tmp_path / "one", name)
    assert one["checkpoint_sha256"] and one["environment"]["lists"] and one["config"]["Eval"]
    assert list(one["seeds"]) == ["5", "6"] and one["seeds"]["5"]["episodes"] == 5
    wanted = ["final mIoU", "final FB-IoU"] if name == "2way" else ["base mIoU", "harmonic mean"]
    for score in wanted:
        assert score in one["summary"] and score in table
    assert sum(n for row in one["confusion"]["final"].values() for n in row.values()) > 0

    log = tmp_path / "two.log"
    ranks = start_ranks([*words, f"Train.save_path={tmp_path}/two"], log, 2, script="test.py")
    for rank, process in enumerate(ranks):
        finish(process, log.with_suffix(f".{rank}"))
    two = result(tmp_path / "two", name)
    for part in ("summary", "seeds", "confusion"):
        assert one[part] == two[part]

    path = f"{tmp_path}/one/result_{name}.json"
    assert call(test_entry.test, "--verify", path, config=False) == 0
    assert "every number is equal" in capsys.readouterr().out


def test_stopped_protocol_goes_on_to_the_same_numbers(
    small_run: SimpleNamespace, tmp_path: Path
) -> None:
    words = [*small_run.words, *SHORT, *RUNS["2way"]]
    assert call(test_entry.test, *words, f"Train.save_path={tmp_path}/whole") == 0
    words.append(f"Train.save_path={tmp_path}/stopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_entry, "Stop", StopAt(3))
        assert call(test_entry.test, *words) == 1
    assert not (tmp_path / "stopped/result_2way.json").exists()
    assert call(test_entry.test, *words) == 0
    whole, stopped = (result(tmp_path / name, "2way") for name in ("whole", "stopped"))
    for part in ("summary", "seeds", "confusion"):
        assert whole[part] == stopped[part]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["Eval.way=2", "Eval.protocol=gfss_bam"], ["Eval.way has no effect", "gfss_bam"]),
        (["Eval.way=2", "Eval.batch_size=3"], ["Eval.batch_size", "Eval.way 2"]),
        (["Eval.protocol=gfss_bam", "Eval.batch_size=2"], ["Eval.batch_size has no effect"]),
        (["Eval.merge_tau=0.9"], ["Eval.merge_tau has no effect"]),
        (["Eval.merge_tau=1.0"], ["Eval.merge_tau wants a number, above 0 and below 1"]),
        (["Eval.protocol=gfss_bam", "Data.trained_on=coco"], ["remove Data.trained_on"]),
        (["Eval.protocol=gfss_bam", "Eval.order=classes"], ["Eval.order classes", "permuted"]),
        (["Eval.protocol=gfss_diam", "Eval.order=classes"], ["gfss_diam does not"]),
        (["Eval.protocol=gfss"], ["Eval.protocol wants fss, gfss_bam or gfss_diam"]),
        (["Eval.way=0"], ["Eval.way wants an integer, at least 1"]),
    ],
)
def test_combination_that_makes_no_sense_is_refused(words: list[str], told: list[str]) -> None:
    pascal = ROOT / "config/pascal/pascal_split0_resnet50.yaml"
    refused(told, load_config, pascal, words)


def test_more_classes_or_supports_than_there_are_is_refused(demo: System) -> None:
    def opens(**options: object) -> Callable:
        cfg = demo.options(**options)
        return lambda: open_evaluator(demo.model, demo.episodes, cfg, ALONE)

    refused(["Eval.way wants at most the", "given 6"], opens(way=6))
    many = NWay(demo.episodes.sampler, 2)
    many.base = ["a class"] * 254
    refused(["2way: one map holds at most 254 classes"], MapEvaluator, demo.evaluator(), many)
    evaluator = opened(demo, "gfss_diam")
    evaluator.protocol.novel_of = {name: [1, 2] for name in evaluator.protocol.images}
    refused(["supports without another novel class", "Data.shot"], evaluator.order, 1, [5])
