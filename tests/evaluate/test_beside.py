"""Episodes beside the right ones: what they are, that they change nothing else, their scores."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.entries import call
from helpers.pictures import a_fold

import test as test_entry
from model import AMFormer, build_model
from model.backbones import pixel_statistics
from util.checkpoint.load import load_checkpoint
from util.data import EpisodeDataset, binary_mask, open_episodes
from util.data.controls import ABSENT, PLANS
from util.data.episodes import EpisodePlan, EpisodeSampler
from util.data.lists import FoldList
from util.evaluate.beside import control_scores, control_table, spread
from util.evaluate.records import read_records

CONTROLS = [kind for kind in PLANS if kind != ABSENT]
WORDS = ["Eval.episodes=7", "Eval.seeds=[5,6]", "Eval.control_share=0.4", "Eval.absent=0.5"]


def samplers() -> list[EpisodeSampler]:
    """Of folds in which images hold one or two classes, for one shot and for three."""
    return [EpisodeSampler(a_fold(c1=9, c2=6, c4=5), shot, 3) for shot in (1, 3)]


def pairs(fold: FoldList) -> set[tuple[str, int]]:
    return {(name, c) for c, names in fold.by_class.items() for name in names}


@pytest.mark.parametrize("kind", PLANS)
def test_episode_depends_on_seed_and_number_alone(kind: str) -> None:
    for sampler in samplers():
        plans = [PLANS[kind](sampler, number) for number in range(40)]
        again = EpisodeSampler(sampler.fold, sampler.shot, 3)
        assert plans[::-1] == [PLANS[kind](again, number) for number in range(40)[::-1]]
        other = [PLANS[kind](sampler.with_seed(4), number) for number in range(40)]
        assert plans != other


def made(kind: str) -> list[tuple[EpisodeSampler, EpisodePlan, EpisodePlan]]:
    """Sampler, right episode and the one beside it, of 200 numbers."""
    found = []
    for sampler in samplers():
        for number in range(200):
            plan = PLANS[kind](sampler, number)
            assert plan is not None and plan.index == number
            found.append((sampler, sampler.plan(number), plan))
    return found


def test_other_class_asks_for_the_right_class_with_supports_of_one_not_in_the_query() -> None:
    drawn = set()
    for sampler, right, plan in made("other_class"):
        assert (plan.query, plan.class_id) == (right.query, right.class_id) and not plan.blank
        [class_id] = {c for _, c in plan.masks}
        assert class_id not in sampler.fold.classes_of[plan.query]
        assert tuple(name for name, _ in plan.masks) == plan.supports
        assert len(set(plan.supports)) == sampler.shot
        assert set(plan.supports) <= set(sampler.fold.by_class[class_id])
        drawn.add((right.class_id, class_id))
    assert drawn == {(1, 4), (2, 1), (2, 4), (4, 1), (4, 2)}  # images of class 1 hold 2, too


def test_blank_support_keeps_images_and_masks_by_name() -> None:
    for _, right, plan in made("blank_support"):
        assert plan.blank and plan.supports == right.supports and plan.masks == ()
        assert (plan.query, plan.class_id) == (right.query, right.class_id)


def test_shuffled_mask_puts_masks_of_other_images_on_the_right_ones() -> None:
    drawn = set()
    for sampler, right, plan in made("shuffled_mask"):
        assert plan.supports == right.supports and plan.query == right.query and not plan.blank
        assert len(plan.masks) == sampler.shot and set(plan.masks) <= pairs(sampler.fold)
        assert not {name for name, _ in plan.masks} & {plan.query, *plan.supports}
        drawn |= set(plan.masks)
    assert drawn == pairs(sampler.fold)


def test_random_support_takes_any_supports_but_the_query() -> None:
    drawn, right_class = set(), 0
    for sampler, right, plan in made("random_support"):
        assert plan.query == right.query not in plan.supports and plan.class_id == right.class_id
        assert tuple(name for name, _ in plan.masks) == plan.supports
        assert len(set(plan.supports)) == sampler.shot and set(plan.masks) <= pairs(sampler.fold)
        drawn |= set(plan.masks)
        right_class += plan.class_id in {c for _, c in plan.masks}
    assert drawn == pairs(sampler.fold) and 0 < right_class < 400


def test_absent_object_is_asked_for_with_right_supports_of_a_class_not_in_the_query() -> None:
    drawn = set()
    for sampler, right, plan in made(ABSENT):
        assert plan.query == right.query and plan.masks == () and not plan.blank
        assert plan.class_id not in sampler.fold.classes_of[plan.query]
        assert len(set(plan.supports)) == sampler.shot
        assert set(plan.supports) <= set(sampler.fold.by_class[plan.class_id])
        drawn.add(plan.class_id)
    assert drawn == {1, 2, 4}


def test_query_that_holds_every_class_has_no_other_class() -> None:
    sampler = EpisodeSampler(a_fold(c1=5), 1, 3)
    assert PLANS["other_class"](sampler, 0) is None is PLANS[ABSENT](sampler, 0)
    small = EpisodeSampler(a_fold(c1=4), 3, 3)
    assert PLANS["shuffled_mask"](small, 0) is None
    assert PLANS["random_support"](small, 0) is not None


def test_numbers_are_spread_evenly_and_their_share_is_rounded_up() -> None:
    assert spread(30, 0.1) == [0, 10, 20] and spread(31, 0.1) == [0, 7, 15, 23]
    assert spread(1000, 0.1) == list(range(0, 1000, 10)) and spread(7, 1.0) == list(range(7))
    assert spread(1, 0.001) == [0]


@pytest.fixture(scope="module")
def tested(small_run: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Two tests: with all controls and absent objects, and without any."""
    found = {}
    for name, more in (("all", f"[{','.join(CONTROLS)}]"), ("none", "none")):
        folder = tmp_path_factory.mktemp(name)
        words = [*small_run.words, f"Train.save_path={folder}", *WORDS, f"Eval.control={more}"]
        words += ["Eval.absent=0"] if name == "none" else []
        assert call(test_entry.test, *words) == 0
        result = json.loads((folder / "result.json").read_text())
        rows = read_records(folder / "episodes.parquet").to_pylist()
        found[name] = SimpleNamespace(folder=folder, result=result, rows=rows)
    return SimpleNamespace(**found)


def test_right_episodes_and_their_scores_stay_as_they_are(tested: SimpleNamespace) -> None:
    for part in ("summary", "seeds", "confusion"):
        assert tested.all.result[part] == tested.none.result[part], part
    assert [r for r in tested.all.rows if not r["control"]] == tested.none.rows
    assert tested.none.result["controls"] == {} and "absent" not in tested.none.result


def parts(run: SimpleNamespace) -> tuple[AMFormer, EpisodeDataset]:
    model = build_model(run.cfg).eval()
    load_checkpoint(model, run.checkpoint)
    data, _ = open_episodes(run.cfg, "val", 1, *pixel_statistics(run.cfg.Method.backbone))
    return model, data


@torch.no_grad()
def areas_alone(model: AMFormer, data: EpisodeDataset, plan: EpisodePlan) -> dict[str, int]:
    """Intersection and union of an episode's object, computed from its images alone."""
    query, _, label = data.load_pair(plan.query, None)
    images, masks = [], []
    own = [(name, plan.class_id) for name in plan.supports]
    for name, (owner, class_id) in zip(plan.supports, plan.masks or own, strict=True):
        image = data.load_pair(name, None)[0]
        images.append(torch.zeros_like(image) if plan.blank else image)
        masks.append(binary_mask(data.load_pair(owner, None, class_id)[1], class_id).long())
    prediction = model(query[None], torch.stack(images)[None], torch.stack(masks)[None])
    found = {}
    for kind, scores in (("final", prediction.final), ("meta", prediction.logits[-1])):
        resized = data.transform.to_image(scores, tuple(label.shape)).numpy()
        mask, labeled = resized[1] > resized[0], label.numpy() != 255
        truth = label.numpy() == plan.class_id
        found[f"{kind}_i"] = int((mask & truth).sum())
        found[f"{kind}_u"] = int(((mask | truth) & labeled).sum())
        found[f"{kind}_bg_u"] = int((~(mask & truth) & labeled).sum())
    return found


@pytest.mark.parametrize("kind", PLANS)
def test_every_row_beside_equals_that_of_its_images_computed_alone(
    kind: str, small_run: SimpleNamespace, tested: SimpleNamespace
) -> None:
    model, data = parts(small_run)
    rows = [row for row in tested.all.rows if row["control"] == kind]
    numbers = [0, 1, 3, 5] if kind == ABSENT else [0, 2, 4]
    expected = [(seed, number) for seed in (5, 6) for number in numbers]
    plans = {at: PLANS[kind](data.sampler.with_seed(at[0]), at[1]) for at in expected}
    assert [(row["seed"], row["number"]) for row in rows] == [at for at in expected if plans[at]]
    assert rows
    for row in rows:
        plan = plans[row["seed"], row["number"]]
        assert (row["query"], row["class_id"]) == (plan.query, plan.class_id)
        assert row["supports"] == list(plan.supports)
        assert {**row, **areas_alone(model, data, plan)} == row
        assert (row["object_pixels"] == 0) == (kind == ABSENT)
    right = {(r["seed"], r["number"]): r for r in tested.all.rows if not r["control"]}
    if kind != ABSENT:
        assert any(row["presence"] != right[row["seed"], row["number"]]["presence"] for row in rows)


@pytest.mark.parametrize("kind", CONTROLS)
def test_scores_of_a_control_compare_the_same_episodes(kind: str, tested: SimpleNamespace) -> None:
    scores = tested.all.result["controls"][kind]
    false = [row for row in tested.all.rows if row["control"] == kind]
    wanted = {(row["seed"], row["number"]) for row in false}
    right = [r for r in tested.all.rows if not r["control"] and (r["seed"], r["number"]) in wanted]
    assert scores["episodes"] == len(false) == len(right) and scores["left_out"] == 6 - len(false)
    means = []
    for side, rows in (("right", right), ("false", false)):
        for name, found in scores["classes"].items():
            part = [row for row in rows if row["class_name"] == name]
            hit, union = (sum(row[f"final_{p}"] for row in part) for p in "iu")
            assert found[side] == 100 * hit / union and found["episodes"] == len(part)
        means.append(np.mean([found[side] for found in scores["classes"].values()]))
        assert scores[side] == pytest.approx(means[-1])
    assert scores["difference"] == pytest.approx(means[1] - means[0])
    assert scores["kept"] == pytest.approx(100 * means[1] / means[0])
    assert set(scores["classes"]) == {row["class_name"] for row in false}


def test_control_without_an_episode_or_without_any_hit_is_shown() -> None:
    nothing = control_scores([], "other_class", 12)
    assert nothing["left_out"] == 12 and nothing["kept"] is None and nothing["classes"] == {}
    row = {"seed": 1, "number": 0, "class_name": "cat", "final_i": 0, "final_u": 7}
    rows = [row | {"control": kind} for kind in ("", "blank_support")]
    scores = control_scores(rows, "blank_support", 0)
    assert scores["kept"] is None and scores["difference"] == 0.0
    lines = control_table({"other_class": nothing, "blank_support": scores}).splitlines()
    assert len(lines) == 5 and lines[-1].split() == ["cat", "0.00", "0.00", "+0.00", "-", "1"]


def test_verification_compares_the_controls_if_the_earlier_result_has_them(
    tested: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "result.json"
    for change, status in ((lambda r: r["controls"].clear(), 2), (lambda r: r.pop("controls"), 0)):
        result = json.loads((tested.all.folder / "result.json").read_text())
        change(result)
        path.write_text(json.dumps(result))
        words = ["--verify", str(path)]
        assert call(test_entry.test, *words, config=False) == status
    told = capsys.readouterr().out
    assert "differs: controls.blank_support.classes." in told and "every number is equal" in told
