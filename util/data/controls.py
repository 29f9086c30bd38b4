"""Episodes beside the right ones: with a false support, or with a query without the object.

Each is a function of (seed, number); docs/protocol.md defines them. None: there is no such episode.
"""

from collections.abc import Callable
from dataclasses import replace

from util.data.episodes import (
    ABSENT_CLASS,
    OTHER_CLASS,
    RANDOM_SUPPORT,
    SHUFFLED_MASK,
    EpisodePlan,
    EpisodeSampler,
    generator,
)
from util.data.lists import FoldList

ABSENT = "absent"
"""Name of the episodes whose query does not hold the class."""


def other_class(sampler: EpisodeSampler, number: int) -> EpisodePlan | None:
    """Return the episode with supports of a class that the query does not hold."""
    plan, rng = sampler.plan(number), generator(sampler.seed, OTHER_CLASS, number)
    drawn = sampler.draw_absent(plan.query, rng)
    if drawn is None:
        return None
    class_id, supports = drawn
    return replace(plan, supports=supports, masks=tuple((name, class_id) for name in supports))


def blank_support(sampler: EpisodeSampler, number: int) -> EpisodePlan:
    """Return the episode with the right masks on images of the mean color."""
    return replace(sampler.plan(number), blank=True)


def shuffled_mask(sampler: EpisodeSampler, number: int) -> EpisodePlan | None:
    """Return the episode with the right support images and masks of other images."""
    plan, rng = sampler.plan(number), generator(sampler.seed, SHUFFLED_MASK, number)
    pairs = _pairs(sampler.within(plan.query).fold, {plan.query, *plan.supports})
    if not pairs:
        return None
    return replace(plan, masks=tuple(pairs[int(rng.integers(len(pairs)))] for _ in plan.supports))


def random_support(sampler: EpisodeSampler, number: int) -> EpisodePlan:
    """Return the episode with supports of any classes, each with its own mask."""
    plan, rng = sampler.plan(number), generator(sampler.seed, RANDOM_SUPPORT, number)
    pairs = _pairs(sampler.within(plan.query).fold, {plan.query})
    drawn: dict[str, int] = {}  # an image is taken once
    for position in rng.permutation(len(pairs)):
        drawn.setdefault(*pairs[position])
        if len(drawn) == sampler.shot:
            break
    return replace(plan, supports=tuple(drawn), masks=tuple(drawn.items()))


def absent_object(sampler: EpisodeSampler, number: int) -> EpisodePlan | None:
    """Return an episode of the same query that asks for a class which it does not hold."""
    query, rng = sampler.plan(number).query, generator(sampler.seed, ABSENT_CLASS, number)
    drawn = sampler.draw_absent(query, rng)
    return EpisodePlan(number, query, *drawn) if drawn else None


PLANS: dict[str, Callable[[EpisodeSampler, int], EpisodePlan | None]] = {
    "other_class": other_class,
    "blank_support": blank_support,
    "shuffled_mask": shuffled_mask,
    "random_support": random_support,
    ABSENT: absent_object,
}


def _pairs(fold: FoldList, without: set[str]) -> list[tuple[str, int]]:
    """Return every support of the list, image and class, but those of some images."""
    return [
        (name, class_id)
        for class_id in sorted(fold.by_class)
        for name in fold.by_class[class_id]
        if name not in without
    ]
