"""Intervals hold the true difference as often as they say, in simulated pairs of settings.

With `-s`, the tests print the measured shares.
"""

import numpy as np
import pytest
from helpers.simulated import draw, true_difference

from util.report.bootstrap import LEVEL, compare

PAIRS, RESAMPLES = 1000, 400
ROWS = ["mIoU", "FB-IoU", *(f"class {i}" for i in range(5))]


def covered(images: int, runs: int = 1, seed_effect: float = 0.0, pairs: int = PAIRS) -> tuple:
    """Return shares of pairs whose intervals hold the truth, and of pairs with an interval.

    The first two are for the interval of new query images and that of new training seeds. A row
    without an interval, because of too few images, does not count. All are arrays [rows].
    """
    truth, rng = true_difference(seed_effect), np.random.default_rng(7)
    held: list[list[np.ndarray]] = [[], []]
    known = []
    for _ in range(pairs):
        pair = draw(rng, images, runs=(runs, runs), seed_effect=seed_effect)
        found = compare(pair.episodes, pair.first, pair.second, resamples=RESAMPLES)
        known.append(np.isfinite(found.half))
        for list_, half in zip(held, (found.half, found.half_seeds), strict=True):
            list_.append(np.abs(found.value - truth) <= (np.inf if half is None else half))
    mask = np.array(known)
    shares = [np.where(mask, hit, 0).sum(0) / mask.sum(0).clip(1) for hit in held]
    print(f"\n{images} images, {runs} runs, seed effect {seed_effect}")
    for name, *numbers in zip(ROWS, *shares, mask.mean(0), strict=True):
        print(f"  {name:8} images {numbers[0]:.3f}  seeds {numbers[1]:.3f}  has {numbers[2]:.3f}")
    return *shares, mask.mean(0)


def test_interval_holds_the_true_difference_in_93_to_97_percent_of_1000_pairs() -> None:
    shares, _, known = covered(100)
    assert ((shares >= 0.93) & (shares <= 0.97)).all()
    assert (known[:5] == 1).all()  # every row of 20 images or more


@pytest.mark.slow
def test_interval_holds_the_true_difference_of_400_images() -> None:
    shares, _, known = covered(400)
    assert ((shares >= 0.93) & (shares <= 0.97)).all() and (known == 1).all()


@pytest.mark.slow
def test_interval_of_30_images_holds_the_true_difference_or_is_left_out() -> None:
    """Classes have 3 to 12 images; the smallest ones get no interval rather than a wrong one."""
    shares, _, known = covered(30)
    assert (shares[known > 0.5] >= 0.93).all() and (known[:2] == 1).all()


@pytest.mark.slow
@pytest.mark.parametrize(("runs", "seed_effect"), [(2, 0.1), (2, 0.3), (4, 0.15)])
def test_interval_with_training_seeds_holds_the_difference_of_the_settings(
    runs: int, seed_effect: float
) -> None:
    """That of query images alone does not: it is about these runs."""
    alone, seeds, _ = covered(100, runs, seed_effect)
    assert (seeds >= 0.93).all()
    assert alone[0] < LEVEL - 0.01
