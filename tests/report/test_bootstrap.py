"""Differences, intervals and parts of the variance equal slow literal computations."""

import math

import numpy as np
import pytest
from helpers.simulated import Pair, draw, true_difference

from util.report.bootstrap import (
    Episodes,
    Variance,
    compare,
    detectable,
    needed,
    scores,
    split,
    split_change,
)


def literal_scores(episodes: Episodes, run: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the scores of a run [episodes, 4] if each image counts `counts[image]` times."""
    weight = counts[episodes.query]
    by_class, both = [], []
    for class_id in range(episodes.class_id.max() + 1):
        ious = []
        for seed in range(episodes.seed.max() + 1):
            chosen = (episodes.class_id == class_id) & (episodes.seed == seed)
            inter, union = ((weight * run[:, part])[chosen].sum() for part in (0, 1))
            if union > 0:
                ious.append(inter / union)
        by_class.append(np.mean(ious) if ious else np.nan)
    for seed in range(episodes.seed.max() + 1):
        sums = (weight[:, None] * run)[episodes.seed == seed].sum(0)
        both.append((sums[0] / sums[1] + sums[2] / sums[3]) / 2)
    return np.array([np.nanmean(by_class), np.mean(both), *by_class])


def literal_difference(pair: Pair, counts: np.ndarray) -> np.ndarray:
    first, second = (
        np.mean([literal_scores(pair.episodes, run, counts) for run in side], axis=0)
        for side in (pair.first, pair.second)
    )
    return second - first


def literal_error(pair: Pair, counts: np.ndarray) -> np.ndarray:
    """Return standard errors by numeric derivatives with regard to the count of each image."""
    step, total = 1e-4, np.zeros(len(counts), dtype=object)
    for image in range(len(counts)):
        shift = step * (np.arange(len(counts)) == image)
        up, down = (literal_difference(pair, counts + s * shift) for s in (1, -1))
        total[image] = counts[image] * ((up - down) / (2 * step)) ** 2
    return np.sqrt(sum(total))


@pytest.mark.parametrize("runs", [(1, 1), (2, 1)])
def test_interval_equals_a_literal_bootstrap_t(runs: tuple[int, int]) -> None:
    pair = draw(np.random.default_rng(5), 25, runs=runs)
    found = compare(*pair, resamples=19, seed=3)
    value, error = (f(pair, np.ones(25)) for f in (literal_difference, literal_error))
    drawn = np.random.default_rng(3).multinomial(25, np.full(25, 1 / 25), 19).astype(float)
    ratios = []
    for counts in drawn:
        change = np.abs(literal_difference(pair, counts) - value)
        errors = literal_error(pair, np.where(counts, counts, 0.0))
        ratios.append(np.where(errors > 1e-9, change / errors.clip(1e-9), np.inf))
    there = np.isfinite(value)
    np.testing.assert_allclose(found.value[there], value[there], atol=1e-12)
    for row, column in enumerate(np.transpose(ratios)):
        known = np.sort(column[~np.isnan(column)])
        half = known[math.ceil(0.95 * (len(known) - 1))] * error[row]
        assert found.half[row] == pytest.approx(half, rel=1e-5), row


def test_equal_runs_differ_by_exactly_zero() -> None:
    episodes, first, _ = draw(np.random.default_rng(1), 80)
    found = compare(episodes, first, first.copy())
    assert (found.value == 0).all() and (found.half == 0).all()


@pytest.mark.parametrize("runs", [(1, 1), (2, 3)])
def test_order_of_the_settings_turns_the_sign_only(runs: tuple[int, int]) -> None:
    episodes, first, second = draw(np.random.default_rng(2), 80, runs=runs)
    one, other = compare(episodes, first, second), compare(episodes, second, first)
    assert (one.value == -other.value).all()
    np.testing.assert_allclose(one.half, other.half, rtol=1e-9)
    if one.half_seeds is not None:
        np.testing.assert_allclose(one.half_seeds, other.half_seeds, rtol=1e-9)


def test_interval_is_repeatable_and_depends_on_no_order_of_episodes() -> None:
    episodes, first, second = draw(np.random.default_rng(3), 60)
    once = compare(episodes, first, second)
    assert (compare(episodes, first, second).half == once.half).all()
    order = np.random.default_rng(0).permutation(len(episodes.query))
    mixed = Episodes(episodes.query[order], episodes.class_id[order], episodes.seed[order])
    again = compare(mixed, first[:, order], second[:, order])
    np.testing.assert_allclose(again.half, once.half, rtol=1e-9)


def test_clustered_interval_is_wider_than_one_of_single_episodes_if_queries_repeat() -> None:
    widths = []
    for seed in range(20):
        episodes, first, second = draw(np.random.default_rng(seed), 100, times=5)
        single = Episodes(np.arange(len(episodes.query)), episodes.class_id, episodes.seed)
        clustered = compare(episodes, first, second, resamples=500).half[0]
        widths.append(clustered / compare(single, first, second, resamples=500).half[0])
    assert min(widths) > 1 and np.mean(widths) > 1.5


def test_class_with_few_images_has_no_interval_and_others_keep_theirs() -> None:
    rng = np.random.default_rng(4)
    query, classes = np.arange(64), np.repeat([0, 1, 2], [1, 3, 60])
    union = rng.integers(100, 200, (2, 64))
    runs = np.stack((union - rng.integers(1, 90, (2, 64)), union, union + 900, union + 1000), -1)
    found = compare(Episodes(query, classes, 0 * query), runs[:1], runs[1:])
    assert np.isinf(found.half[2:4]).all()
    assert np.isfinite(found.half[[0, 1, 4]]).all() and found.half[4] > 0


def test_seeds_need_two_runs_of_one_setting_and_widen_the_interval() -> None:
    episodes, first, second = draw(np.random.default_rng(6), 100, runs=(3, 3), seed_effect=0.3)
    assert compare(episodes, first[:1], second[:1]).half_seeds is None
    found = compare(episodes, first, second)
    assert found.half_seeds is not None and (found.half_seeds >= found.half).all()
    assert found.half_seeds[0] > 1.2 * found.half[0]
    by_two = compare(episodes, first[:2], second[:1]).half_seeds  # one degree of freedom
    assert by_two is not None and np.isfinite(by_two[:2]).all()


# --- parts of the variance ----------------------------------------------------------------------


def two_stage(rng: np.random.Generator, images: np.ndarray) -> tuple[Episodes, np.ndarray]:
    """Draw four episodes of each image: the IoU of an image, and what its supports add."""
    count = len(images)
    query = np.tile(np.arange(count), 4)
    iou = (0.5 + images[query] + rng.uniform(-0.2, 0.2, 4 * count)).clip(0, 1)
    union = np.full(4 * count, 1000.0)
    pixels = np.stack((1000 * iou, union, union, union), -1)
    return Episodes(query, query % 2, np.repeat([0, 1], 2 * count)), pixels[None]


def test_variance_parts_are_those_of_new_images_and_of_new_supports() -> None:
    """For equal sizes: uniform image effect in +-0.3, 200 of them; supports +-0.2, 800 episodes."""
    rng = np.random.default_rng(0)
    parts = [split(*two_stage(rng, rng.uniform(-0.3, 0.3, 200))) for _ in range(200)]
    query, support = (
        np.mean([getattr(part, name) for part in parts]) for name in ("query", "support")
    )
    assert query == pytest.approx(0.6**2 / 12 / 200, rel=0.05)
    assert support == pytest.approx(0.4**2 / 12 / 800, rel=0.05)
    images = rng.uniform(-0.3, 0.3, 200)
    mious = [scores(*two_stage(rng, images))[0, 0] for _ in range(400)]
    assert np.var(mious) == pytest.approx(support, rel=0.2)


def test_support_part_is_unknown_if_no_query_and_class_comes_twice() -> None:
    episodes, first, second = draw(np.random.default_rng(1), 100, seeds=1, times=1)
    part = split(episodes, first)
    assert part.support is None and part.seed is None and part.query > 0
    both = np.concatenate((first, second))
    change = split_change(episodes, both, np.array([-1.0, 1.0]))
    images, more = needed(0.01, change, 100, 100)
    assert images == pytest.approx(100 * change.query / (0.01 / 2.8016) ** 2, abs=1)
    assert more is None


def test_seed_part_is_the_spread_between_runs_beyond_that_of_the_images() -> None:
    rng = np.random.default_rng(8)
    for effect, low, high in ((0.0, 0, 0.3), (0.3, 0.6, 1)):
        found, whole = [], []
        for _ in range(30):
            pair = draw(rng, 200, runs=(12, 1), seed_effect=effect)
            found.append(split(pair.episodes, pair.first).seed)
            whole.append(np.var(scores(pair.episodes, pair.first)[:, 0], ddof=1))
        assert low <= np.mean(found) / np.mean(whole) < high


def test_one_point_needs_the_numbers_computed_by_hand() -> None:
    """(z of 0.975 + z of 0.8) squared is 7.849: a variance of 1.274e-5 for one point."""
    assert detectable(1.274e-5) == pytest.approx(0.01, rel=1e-3)
    # 2e-5 + 1e-5 on 100 images: 2.355 times as many. Images alone are above the limit.
    assert needed(0.01, Variance(2e-5, 1e-5), 100, 1000) == (236, math.inf)
    # 1e-5 of images leaves 0.274e-5 for supports: 2e-5 / 0.274e-5 = 7.3 times the episodes.
    images, episodes = needed(0.01, Variance(1e-5, 2e-5), 100, 1000)
    assert images == 236 and episodes == pytest.approx(7300, rel=0.01)


def test_planned_images_show_the_difference_in_80_percent_of_the_pairs() -> None:
    """Planned from 20 pairs of 150 images each."""
    truth, rng, plans = true_difference()[0], np.random.default_rng(2), []
    for _ in range(20):
        pair = draw(rng, 150)
        both = np.concatenate((pair.first, pair.second))
        half = compare(*pair, resamples=400).half[0]
        change = split_change(pair.episodes, both, np.array([-1.0, 1.0])).scaled_to(half)
        plans.append(needed(truth, change, 150, len(pair.episodes.query))[0])
    seen = []
    for _ in range(300):
        found = compare(*draw(rng, int(np.mean(plans))), resamples=200)
        seen.append(abs(found.value[0]) > found.half[0])
    assert 0.7 < np.mean(seen) < 0.9
