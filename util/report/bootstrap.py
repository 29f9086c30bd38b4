"""Intervals of scores and of their differences, by resampling query images. Arrays only, no files.

A score is a ratio of sums, I / U in pixels, or a mean of such ratios. Episodes of one query image
are not independent, so images are resampled, each with all its episodes (cluster bootstrap; Field
and Welsh, "Bootstrapping clustered data", JRSS B, 2007). Both sides get the same images (paired).

The interval is the symmetric bootstrap-t interval (Hall, "The Bootstrap and Edgeworth Expansion",
1992, section 3.6): value +- q * error, where `error` is the standard error by linearization and q
the 95 % quantile of |resampled value - value| / resampled error. Plain percentiles are too narrow
for a class with few images. tests/report/test_coverage.py measures how often it covers the truth.

Rows of a result are [mIoU, FB-IoU, class 0, class 1, ...]; values are in 0..1.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit

Array = np.ndarray

LEVEL, POWER = 0.95, 0.8  # of an interval; of a planned comparison
RESAMPLES = 2000
MEMORY = 2**22  # numbers that one part of the resamples may hold
TINY = 1e-12  # an error below this is 0, up to rounding


@dataclass(frozen=True)
class Episodes:
    """Query image, class and test seed of each episode, as indices from 0: int64 [episodes]."""

    query: Array
    class_id: Array
    seed: Array

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Numbers of query images, classes and test seeds."""
        return int(self.query.max()) + 1, int(self.class_id.max()) + 1, int(self.seed.max()) + 1


@dataclass(frozen=True)
class Difference:
    """Mean score of the second side less that of the first, [rows]."""

    value: Array
    half: Array  # half width of the interval for new query images; inf: too few images
    half_seeds: Array | None  # the same for new training seeds, too; None: one run a side


@dataclass(frozen=True)
class Variance:
    """Parts of the variance of a score, in (0..1) squared; None: these runs cannot tell."""

    query: float  # other query images
    support: float | None  # other draws of supports
    seed: float | None = None  # other training seeds

    def scaled_to(self, half: float) -> "Variance":
        """Return query and support so that a normal interval has this half width, if it is one."""
        whole = self.query + (self.support or 0)
        if not whole or math.isinf(half):
            return self
        factor = (half / ndtri((1 + LEVEL) / 2)) ** 2 / whole
        support = None if self.support is None else factor * self.support
        return Variance(factor * self.query, support, self.seed)


def compare(
    episodes: Episodes, first: Array, second: Array, *, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """Compare two settings on the same episodes.

    `first` and `second`, [runs, episodes, 4], hold the pixels of each of their training runs:
    object I and U, background I and U. A score is that of test.py: for each run and test seed from
    sums over its episodes, then the mean over test seeds and runs. `seed` makes it repeatable.
    """
    runs = np.concatenate((first, second))
    weights = np.repeat([-1 / len(first), 1 / len(second)], [len(first), len(second)])
    blocks = sum_by_query(episodes, runs)
    images = blocks.shape[1]
    [value], influence = _rows(blocks, np.ones((1, images)), weights)
    error = np.sqrt((influence[:, 0] ** 2).sum(1))
    ratios = []
    for counts in _resampled(images, len(blocks), resamples, seed):
        values, influence = _rows(blocks, counts, weights)
        errors = np.sqrt(np.einsum("bn,kbn,kbn->bk", counts, influence, influence))
        distance = np.abs(values - value)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(errors > TINY, distance / errors, np.inf)
        ratios.append(np.where((distance < TINY) | np.isnan(distance), distance, ratio))
    # "higher" needs no mean of two values, one of which may be infinite.
    quantile = np.nanquantile(np.concatenate(ratios), LEVEL, axis=0, method="higher")
    # Without an error, the sides are equal, or one image has all pixels of a class.
    without = np.where(np.abs(value) > TINY, np.inf, 0.0)
    half = np.where(error > TINY, quantile * np.maximum(error, TINY), without)
    return Difference(value, half, _with_seeds(blocks, len(first), half))


def _with_seeds(blocks: Array, first: int, half: Array) -> Array | None:
    """Return the half width for new training seeds and new query images, [rows].

    Var(difference) = setting x query + (run x query + seed) h with h = 1/first + 1/second. The
    bracket is the variance between the runs of a setting, taken to be the same for both. The first
    part is the clustered variance of the difference less run x query. A t quantile takes the few
    runs into account (degrees of freedom of Satterthwaite, Biometrics Bulletin, 1946). The result
    is never less than `half`.
    """
    _, images, runs = blocks.shape[:3]
    second = runs - first
    if runs < 3:
        return None
    each = [_rows(blocks, np.ones((1, images)), one) for one in np.eye(runs)]
    values = np.stack([value for [value], _ in each])  # [runs, rows]
    influence = np.stack([z[:, 0] for _, z in each])  # [runs, rows, images]
    sides, freedom = (slice(0, first), slice(first, runs)), runs - 2
    h = (1 / first + 1 / second) / freedom
    between = h * sum(_squares(values[side]) for side in sides)
    run_by_query = h * sum(_squares(influence[side]).sum(-1) for side in sides)
    mean = influence[sides[1]].mean(0) - influence[sides[0]].mean(0)
    setting_by_query = ((mean**2).sum(-1) - run_by_query).clip(0)
    whole = setting_by_query + between
    parts = between**2 / freedom + setting_by_query**2 / max(1, images - 1)
    t = stdtrit(whole**2 / parts.clip(TINY**4), (1 + LEVEL) / 2)
    return np.maximum(half, np.where(whole > TINY**2, t * np.sqrt(whole), 0.0))


def scores(episodes: Episodes, runs: Array) -> Array:
    """Return the scores of runs [runs, episodes, 4], as test.py computes them: [runs, rows]."""
    blocks = sum_by_query(episodes, runs)
    once = np.ones((1, blocks.shape[1]))
    return np.concatenate([_rows(blocks, once, one)[0] for one in np.eye(len(runs))])


def split(episodes: Episodes, runs: Array) -> Variance:
    """Split the variance of a setting's mIoU; `runs` is [runs, episodes, 4], see `split_change`.

    Query and support are means over the runs. Seed is the variance between runs, less what they
    would differ on other queries: the half of the clustered variance of the difference of two.
    """
    parts = [split_change(episodes, run[None], np.ones(1)) for run in runs]
    known = [part.support for part in parts if part.support is not None]
    seed = None
    if len(runs) > 1:
        z = np.stack([_by_query(episodes, run[None], np.ones(1)) for run in runs])
        noise = (_squares(z) / (len(runs) - 1)).sum()
        between = _squares(scores(episodes, runs)[:, 0]) / (len(runs) - 1)
        seed = max(0.0, float(between - noise))
    query = float(np.mean([part.query for part in parts]))
    return Variance(query, float(np.mean(known)) if known else None, seed)


def split_change(episodes: Episodes, runs: Array, weights: Array) -> Variance:
    """Split the variance of the mIoU of runs, weighted and summed, into query and support.

    Each episode moves mIoU by its linearized share z. The sums of z of a query image give the
    whole variance; the spread of z between episodes of the same query and class, which differ in
    their supports only, gives the support's part; the rest is the query's. A query and class with
    one episode gets the mean spread of its class. `runs` is [runs, episodes, 4].
    """
    z = _by_episode(episodes, runs, weights)
    images, classes, _ = episodes.sizes
    total = np.bincount(episodes.query, z, images)
    whole = float((total**2).sum()) * images / max(1, images - 1)
    cell = episodes.query * classes + episodes.class_id
    count, mean = np.bincount(cell, minlength=images * classes), np.bincount(cell, z)
    mean = mean / count[: len(mean)].clip(1)
    squares = np.bincount(cell, (z - mean[cell]) ** 2, images * classes).reshape(images, classes)
    count = count.reshape(images, classes)
    freedom = (count - 1).clip(0)
    if not freedom.sum():
        return Variance(whole, None)
    pooled = squares.sum(0) / freedom.sum(0).clip(1)
    pooled[freedom.sum(0) == 0] = squares.sum() / freedom.sum()
    own = squares / freedom.clip(1)
    support = float((count * np.where(freedom > 0, own, pooled)).sum())
    return Variance(max(0.0, whole - support), min(support, whole))


def detectable(variance: float) -> float:
    """Return the smallest true difference that is seen with a chance of 80 % at a level of 5 %."""
    return float((ndtri((1 + LEVEL) / 2) + ndtri(POWER)) * math.sqrt(variance))


def needed(
    difference: float, variance: Variance, images: int, episodes: int
) -> tuple[int, float | None]:
    """Return how many query images, or episodes, a true `difference` (0..1) needs to be seen.

    The first is the number of images with as many episodes each as before. The second is that of
    episodes on the same images: infinite if the images are the limit, None if the support's part is
    not known. `variance` is that of the difference on `images` images in `episodes` episodes.
    """
    target = variance_for(difference)
    enough = math.ceil(images * (variance.query + (variance.support or 0)) / target)
    if variance.support is None:
        return enough, None
    left = target - variance.query
    return enough, math.inf if left <= 0 else math.ceil(episodes * variance.support / left)


def variance_for(difference: float) -> float:
    """Return the variance at which `detectable` is this difference."""
    return (difference / detectable(1.0)) ** 2


def sum_by_query(episodes: Episodes, runs: Array) -> Array:
    """Sum I and U of runs [runs, episodes, 4] by query image.

    Returns float64 [classes + 2, images, runs, seeds, 2 (I, U)]: the object in the episodes of each
    class, then object and background in all of them.
    """
    images, classes, seeds = episodes.sizes
    cell = (episodes.class_id * images + episodes.query) * seeds + episodes.seed
    shape = (classes, images, seeds)
    blocks = np.empty((classes + 2, images, len(runs), seeds, 2))
    for index, run in enumerate(runs):
        for part in range(2):
            sums = np.bincount(cell, run[:, part], math.prod(shape)).reshape(shape)
            blocks[:-2, :, index, :, part] = sums
            blocks[-2, :, index, :, part] = sums.sum(0)
            ground = np.bincount(cell, run[:, 2 + part], math.prod(shape)).reshape(shape)
            blocks[-1, :, index, :, part] = ground.sum(0)
    return blocks


def _resampled(images: int, blocks: int, resamples: int, seed: int) -> Iterator[Array]:
    """Yield how often each image is drawn: float64 [part of the resamples, images]."""
    rng, shares = np.random.default_rng(seed), np.full(images, 1 / images)
    size = max(1, MEMORY // (images * blocks))
    for begin in range(0, resamples, size):
        yield rng.multinomial(images, shares, min(size, resamples - begin)).astype(float)


def _ratios(sums: Array, weights: Array) -> tuple[Array, Array]:
    """Return sum over runs of weight x mean over seeds of I / U, and its derivatives by I and U.

    `sums` is [..., runs, seeds, 2]. A seed without pixels is left out; without any, both are NaN.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        per_union = np.where(sums[..., 1] > 0, 1 / sums[..., 1], 0.0)
        iou = sums[..., 0] * per_union
        seeds = (sums[..., 1] > 0).sum(-1, keepdims=True)
        share = weights[:, None] / seeds
        mean = iou.sum(-1) / seeds[..., 0]
        # Equal sides: exactly 0. Swapped sides: exactly the opposite.
        value = (weights.clip(0) * mean).sum(-1) - ((-weights).clip(0) * mean).sum(-1)
        slope = share * per_union
    return value, np.stack((slope, -slope * iou), -1)


def _rows(blocks: Array, counts: Array, weights: Array) -> tuple[Array, Array]:
    """Return values and influences of resamples that draw each image `counts` [b, images] times.

    Values are [b, rows], influences [rows, b, images]: the linear change of a value by one more
    copy of an image. A class without a drawn image is NaN, and mIoU the mean over the others.
    """
    values, influences = [], []
    for block in blocks:
        flat = block.reshape(len(block), -1)
        value, slope = _ratios((counts @ flat).reshape(-1, *block.shape[1:]), weights)
        values.append(value)
        influences.append(slope.reshape(len(counts), -1) @ flat.T)
    return _to_rows(np.stack(values)).T, _to_rows(np.stack(influences))


def _to_rows(blocks: Array) -> Array:
    """Turn values of blocks [classes + 2, ...] into rows [2 + classes, ...]."""
    there = ~np.isnan(blocks[:-2])
    mean = np.where(there, blocks[:-2], 0).sum(0) / there.sum(0)
    return np.concatenate((mean[None], blocks[-2:].mean(0)[None], blocks[:-2]))


def _by_episode(episodes: Episodes, runs: Array, weights: Array) -> Array:
    """Return by how much each episode moves the weighted sum of the runs' mIoU, [episodes]."""
    sums = sum_by_query(episodes, runs)[:-2].sum(1)  # [classes, runs, seeds, 2]
    _, slope = _ratios(sums, weights)
    own = slope[episodes.class_id, :, episodes.seed]  # [episodes, runs, 2]
    return np.einsum("erp,rep->e", own, runs[:, :, :2]) / len(sums)


def _by_query(episodes: Episodes, runs: Array, weights: Array) -> Array:
    """Return `_by_episode` summed by query image, [images]."""
    return np.bincount(episodes.query, _by_episode(episodes, runs, weights), episodes.sizes[0])


def _squares(values: Array) -> Array:
    """Return the sum of squares about the mean, over the first axis."""
    return ((values - values.mean(0)) ** 2).sum(0)
