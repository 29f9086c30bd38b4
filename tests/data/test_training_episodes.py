"""Training episodes that ask for the support: one query in a row, supports of absent classes."""

from collections import Counter

import numpy as np
import pytest
import torch
from helpers.pictures import a_fold, changed, data_config, refused

from model import AMFormer
from model.backbones import LITE0
from util.config import Config
from util.data.controls import absent_object
from util.data.dataset import collate, open_episodes
from util.data.episodes import Draw, EpisodePlan, EpisodeSampler, draw_of
from util.data.image_io import read_label
from util.data.lists import FoldList
from util.data.transform import EvalTransform, TrainTransform
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


def published_draw(fold: FoldList, shot: int, seed: int, index: int) -> EpisodePlan:
    """Each pass has every image once; one of its classes; K other images of this class."""

    def numbers(stream: int, index: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence((seed, stream, index)))

    order = numbers(0, index // len(fold.images)).permutation(len(fold.images))
    query, rng = fold.images[order[index % len(fold.images)]], numbers(1, index)
    class_id = int(rng.choice(fold.classes_of[query]))
    images = fold.by_class[class_id]
    drawn = [images[i] for i in rng.choice(len(images), shot + 1, replace=False)]
    return EpisodePlan(index, query, class_id, tuple(i for i in drawn if i != query)[:shot])


@pytest.mark.parametrize("shot", [1, 2])
@pytest.mark.parametrize("seed", [5, 321])
def test_defaults_draw_as_published(seed: int, shot: int) -> None:
    sampler = EpisodeSampler(SCENE, shot, seed, draw_of(Config(), "train"))
    for index in range(60):
        assert sampler.plan(index) == published_draw(SCENE, shot, seed, index)


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


@pytest.mark.parametrize("shot", [1, 2])
def test_share_of_episodes_has_the_query_itself_as_support(shot: int) -> None:
    some = EpisodeSampler(SCENE, shot, 5, Draw(absent=0.2, own_view=0.4))
    without = EpisodeSampler(SCENE, shot, 5, Draw(absent=0.2))
    own = 0
    for index in range(2000):
        plan = some.plan(index)
        if set(plan.supports) == {plan.query}:
            own += 1
            assert len(plan.supports) == shot
            assert plan.class_id in SCENE.classes_of[plan.query]
            alone = without.plan(index)
            assert (plan.query, plan.class_id) == (alone.query, alone.class_id)
        else:
            assert plan == without.plan(index)
    assert own / 2000 == pytest.approx(0.8 * 0.4, abs=0.03)


def test_views_of_the_query_differ_from_it(pictures: Config) -> None:
    cfg = changed(pictures, crop=[0.5, 0.9], own_view=1.0)
    episodes, _ = open_episodes(cfg, "train", 3)
    for index in range(10):
        episode = episodes[index]
        assert episode.plan.supports == (episode.plan.query,)
        assert (episode.query_mask == 1).any() and (episode.support_mask == 1).any()
        assert not torch.equal(episode.query, episode.support[0])


def test_random_part_shows_half_of_the_class_and_keeps_image_and_label_together() -> None:
    label = np.zeros((40, 60), np.uint8)
    label[4:12, 30:50] = 7
    label[20:38, 5:25] = 3
    image = np.repeat(label[..., None] * 10, 3, axis=2)
    transform = TrainTransform((65, 65), crop=(0.4, 0.8))
    sizes = set()
    for seed in range(200):
        rng = np.random.default_rng(seed)
        part, of_label = transform.part(image, label, 7, rng)
        assert (part == of_label[..., None] * 10).all()
        assert (of_label == 7).sum() >= 0.5 * (label == 7).sum()
        sizes.add(part.shape[:2])
    heights, widths = zip(*(size for size in sizes if size != (40, 60)), strict=True)
    assert 16 <= min(heights) and max(heights) <= 32
    assert 24 <= min(widths) and max(widths) <= 48
    assert len(sizes) > 50


def test_image_is_shown_whole_if_no_part_holds_half_of_the_class() -> None:
    image, label = np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40), np.uint8)
    label[[0, 0, -1, -1], [0, -1, 0, -1]] = 7  # a part of less than a side has one corner at most
    transform = TrainTransform((65, 65), crop=(0.3, 0.6))
    for seed in range(20):
        rng = np.random.default_rng(seed)
        assert transform.part(image, label, 7, rng)[1] is label
        # A query without the class may lose anything.
        assert transform.part(image, label, 9, rng)[1].shape < (25, 25)


@pytest.mark.parametrize("crop", [[0.5, 1.5], [1.1, 1.2], [0, 0.5]])
def test_part_larger_than_the_image_or_empty_is_refused(crop: list) -> None:
    words = ["Data.crop wants a list of 2", "above 0 and at most 1"]
    refused(words, lambda: data_config(crop=crop))


def test_without_crop_nothing_is_drawn_and_nothing_changes() -> None:
    image, label = np.zeros((8, 9, 3), np.uint8), np.zeros((8, 9), np.uint8)
    rng = np.random.default_rng(0)
    part = TrainTransform((65, 65)).part(image, label, 1, rng)
    assert part[0] is image and part[1] is label
    assert rng.random() == np.random.default_rng(0).random()


def test_part_of_a_support_is_around_its_object_with_the_proportions_of_the_image() -> None:
    label = np.zeros((60, 120), np.uint8)
    label[10:20, 90:110] = 7  # 10 x 20: a sixth of both sides
    label[40:50, 5:10] = 3
    image = np.repeat(label[..., None] * 10, 3, axis=2)
    for zoom, shape in ((1, (10, 20)), (2, (20, 40)), (3, (30, 60)), (9, (60, 120))):
        part, of_label = EvalTransform((65, 65), zoom=zoom).support_part(image, label, 7)
        assert of_label.shape == shape and (part == of_label[..., None] * 10).all()
        assert (of_label == 7).sum() == 200
    # In the middle, as far as the border lets it.
    _, of_label = EvalTransform((65, 65), zoom=2).support_part(image, label, 7)
    ys, xs = np.nonzero(of_label)
    assert (ys.min(), ys.max(), xs.min(), xs.max()) == (5, 14, 10, 29)
    _, of_label = EvalTransform((65, 65), zoom=1).support_part(image, label, 3)
    assert of_label.shape == (10, 20) and (of_label == 3).sum() == 50


def test_smallest_part_of_a_support_is_an_eighth_and_without_zoom_it_is_all() -> None:
    label = np.zeros((80, 160), np.uint8)
    label[3, 5] = 1
    image = np.zeros((80, 160, 3), np.uint8)
    _, part = EvalTransform((65, 65), zoom=1).support_part(image, label, 1)
    assert part.shape == (10, 20) and part.sum() == 1
    for zoom, class_id in ((0, 1), (2, 9)):  # no zoom; no such object
        whole = EvalTransform((65, 65), zoom=zoom).support_part(image, label, class_id)
        assert whole[0] is image and whole[1] is label
