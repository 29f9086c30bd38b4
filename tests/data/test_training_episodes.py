"""Training episodes that ask for the support: one query in a row, supports of absent classes."""

from collections import Counter

import numpy as np
import pytest
import torch
from helpers.pictures import a_fold, changed

from model import AMFormer
from model.backbones import LITE0
from util.config import Config
from util.data.controls import absent_object
from util.data.dataset import collate, open_episodes
from util.data.episodes import Draw, EpisodeSampler
from util.data.image_io import read_label
from util.data.lists import FoldList
from util.features import FeatureStore, encode
from util.folds import CLASSES


def scene(**holds: tuple[int, ...]) -> FoldList:
    """A list of images by name, with the classes that each holds, all large."""
    classes = sorted({c for each in holds.values() for c in each})
    by_class = {c: [i for i, each in holds.items() if c in each] for c in classes}
    return FoldList(list(holds), by_class, dict(holds), CLASSES["pascal"])


SCENE = scene(
    a1=(1,), a2=(1,), a3=(1,), ab1=(1, 2), ab2=(1, 2), b1=(2,), b2=(2,),
    c1=(3,), c2=(3,), c3=(3,), abd1=(1, 2, 4), d1=(4,), d2=(4,),
)  # fmt: skip


def test_defaults_draw_as_without_these_options() -> None:
    plain = EpisodeSampler(SCENE, 1, 5)
    given = EpisodeSampler(SCENE, 1, 5, Draw("permuted", 0.0, 1, 0.0, False))
    assert [plain.plan(i) for i in range(60)] == [given.plan(i) for i in range(60)]


@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_episodes_in_a_row_have_one_query_and_ask_for_its_classes_in_turn(balance: float) -> None:
    sampler = EpisodeSampler(SCENE, 1, 5, Draw(balance=balance, same_query=3))
    alone = EpisodeSampler(SCENE, 1, 5, Draw(balance=balance))
    for turn in range(100):
        plans = [sampler.plan(3 * turn + place) for place in range(3)]
        [query] = {plan.query for plan in plans}
        asked = [plan.class_id for plan in plans]
        # The first is the episode that the turn would have alone.
        assert (query, asked[0]) == (alone.plan(turn).query, alone.plan(turn).class_id)
        there = SCENE.classes_of[query]
        assert (
            set(asked[: len(there)]) == set(there)
            and asked[len(there) :] == asked[: 3 - len(there)]
        )
        for plan in plans:
            assert set(plan.supports) <= set(SCENE.by_class[plan.class_id]) - {query}
    assert [plan.index for plan in plans] == [297, 298, 299]


def test_every_image_is_the_query_so_often_in_a_row_per_pass() -> None:
    sampler = EpisodeSampler(SCENE, 1, 5, Draw(same_query=2))
    for first in (0, 26):
        queries = Counter(sampler.plan(first + i).query for i in range(26))
        assert queries == dict.fromkeys(SCENE.images, 2)


@pytest.mark.parametrize("same_query", [1, 2])
def test_share_of_episodes_asks_for_a_class_that_the_query_does_not_hold(same_query: int) -> None:
    with_some = EpisodeSampler(SCENE, 2, 5, Draw(same_query=same_query, absent=0.3))
    without = EpisodeSampler(SCENE, 2, 5, Draw(same_query=same_query))
    absent = 0
    for index in range(3000):
        plan = with_some.plan(index)
        assert len(set(plan.supports)) == 2 and plan.index == index
        assert set(plan.supports) <= set(SCENE.by_class[plan.class_id])
        if plan.class_id in SCENE.classes_of[plan.query]:
            assert plan == without.plan(index)
        else:
            absent += 1
            assert plan.query == without.plan(index).query
            if same_query == 1:  # as the absent episodes of a test
                assert plan == absent_object(without, index)
    assert absent / 3000 == pytest.approx(0.3, abs=0.03)


def test_supports_beside_the_query_s_class_are_taken_where_there_are_any() -> None:
    sampler = EpisodeSampler(SCENE, 1, 5, Draw(absent=1.0, beside=True))
    drawn = Counter()
    for plan in map(sampler.plan, range(600)):
        there = set(SCENE.classes_of[plan.query])
        beside = {
            (c, i)
            for c, images in SCENE.by_class.items()
            for i in images
            if c not in there and there & set(SCENE.classes_of[i])
        }
        pair = (plan.class_id, plan.supports[0])
        assert pair[0] not in there and (pair in beside if beside else True)
        drawn[plan.query, plan.class_id] += 1
    # An image of class 1 alone: class 2 and class 4 stand beside it elsewhere, class 3 never does.
    assert drawn["a1", 2] and drawn["a1", 4] and not drawn["a1", 3]
    # Nothing stands beside class 3: any class.
    assert {c for (query, c) in drawn if query == "c1"} == {1, 2, 4}


def test_list_of_one_class_has_no_absent_episode() -> None:
    sampler = EpisodeSampler(a_fold(c1=6), 1, 0, Draw(absent=1.0))
    assert {sampler.plan(i).class_id for i in range(20)} == {1}


def test_target_of_an_absent_class_is_empty_and_validation_is_as_before(pictures: Config) -> None:
    cfg = changed(pictures, augment=False, absent=0.5, same_query=2)
    episodes, _ = open_episodes(cfg, "train", 3)
    batch = collate([episodes[i] for i in range(40)])
    empty = 0
    for row, plan in enumerate(batch.plans):
        label = read_label(episodes.source.label_path(plan.query))
        is_there = bool((label == plan.class_id).any())
        assert bool((batch.query_mask[row] == 1).any()) <= is_there
        assert (batch.support_mask[row] == 1).any()
        empty += not is_there
    assert 8 <= empty <= 32
    assert len(episodes) == 2 * len(episodes.sampler.fold.images)
    (one, _), (other, _) = (open_episodes(c, "val", 3) for c in (pictures, cfg))
    assert [one.sampler.plan(i) for i in range(20)] == [other.sampler.plan(i) for i in range(20)]


def test_feature_store_gives_the_absent_episodes_of_the_loader(pictures: Config) -> None:
    torch.manual_seed(0)
    encoder = AMFormer(LITE0, 15, 1).eval().encoder
    cfg = changed(pictures, augment=False, absent=0.5, same_query=2)
    episodes, _ = open_episodes(cfg, "train", 3)
    numbers = list(range(6))
    stored = FeatureStore(encoder, episodes).batch(numbers)
    loaded = encode(encoder, collate([episodes[i] for i in numbers]))
    assert stored.plans == loaded.plans
    assert torch.equal(stored.query_mask, loaded.query_mask)
    assert np.isin(loaded.query_mask.flatten(1).amax(1).numpy(), (0, 1, 255)).all()
