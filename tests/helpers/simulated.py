"""Pairs of settings drawn from a model of query images, supports and training seeds.

A query image holds one or two of five classes, of unequal shares. Object sizes are log-normal. The
logit of the part that is found is the sum of the class, the image, the supports (these are the same
for all runs), run x image, run x episode, and the training seed. The second setting finds more of
some classes.
"""

import functools
from dataclasses import dataclass

import numpy as np

from util.report.bootstrap import Episodes, scores

SHARES = np.array([0.35, 0.25, 0.2, 0.12, 0.08])  # of the classes
LOGIT = np.array([[0.2, 0.8, -0.4, 1.0, 0.5], [0.5, 0.7, -0.2, 1.0, 0.9]])  # of both settings


@dataclass(frozen=True)
class Pair:
    """Two settings on the same episodes: pixels [runs, episodes, 4] of each."""

    episodes: Episodes
    first: np.ndarray
    second: np.ndarray

    def __iter__(self):
        return iter((self.episodes, self.first, self.second))


def draw(
    rng: np.random.Generator,
    images: int,
    *,
    runs: tuple[int, int] = (1, 1),
    seeds: int = 2,
    times: int = 2,
    seed_effect: float = 0.0,
) -> Pair:
    """Draw a pair; each image is the query `times` times for each test seed.

    Every class has an episode.
    """
    count = len(SHARES)
    held = rng.choice(count, (images, 2), p=SHARES)
    has_two = rng.random(images) < 0.25
    area = rng.choice([60_000, 180_000, 250_000], images)
    size = np.minimum(0.8 * area[:, None], 2048 + np.exp(rng.normal(9.6, 1.1, (images, 2))))
    image_effect = rng.normal(0, 1.1, (images, 2))
    query = np.tile(np.arange(images), seeds * times)
    which = (has_two[query] & (rng.random(len(query)) < 0.5)).astype(int)
    asked, area = held[query, which], area[query]
    if len(np.unique(asked)) < count:
        return draw(rng, images, runs=runs, seeds=seeds, times=times, seed_effect=seed_effect)
    shared = image_effect[query, which] + rng.normal(0, 0.6, len(query))  # image and supports
    found = []
    for setting, number in enumerate(runs):
        for _ in range(number):
            logit = LOGIT[setting][asked] + shared + rng.normal(0, seed_effect, count)[asked]
            logit += rng.normal(0, 0.5, (images, 2))[query, which]
            logit += rng.normal(0, 0.4, len(query))
            union = np.minimum(area, size[query, which] * np.exp(rng.exponential(0.3, len(query))))
            inter = np.minimum(size[query, which], union / (1 + np.exp(-logit)))
            pixels = np.stack((inter, union, area - union, area - inter), -1)
            found.append(pixels.astype(np.int64))
    both = np.stack(found)
    episodes = Episodes(query, asked, np.repeat(np.arange(seeds), images * times))
    return Pair(episodes, both[: runs[0]], both[runs[0] :])


@functools.cache
def true_difference(seed_effect: float = 0.0) -> np.ndarray:
    """Return the difference of the population, [rows], from a million images."""
    rng = np.random.default_rng(99)
    parts, runs = (5, 1) if not seed_effect else (200, 5)
    found = []
    for _ in range(parts):
        images = 1_000_000 // parts
        pair = draw(rng, images, runs=(runs, runs), seeds=1, times=1, seed_effect=seed_effect)
        means = [scores(pair.episodes, side).mean(0) for side in (pair.first, pair.second)]
        found.append(means[1] - means[0])
    return np.mean(found, 0)
