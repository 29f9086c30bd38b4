"""Which images form which episode: a pure function of (seed, index)."""

from dataclasses import dataclass, replace

import numpy as np

from util.config import Config
from util.data.lists import FoldList
from util.runtime.errors import UserError

# Independent random streams of one seed.
QUERY_ORDER, EPISODE, AUGMENTATION, BASE_AUGMENTATION = range(4)
OTHER_CLASS, SHUFFLED_MASK, RANDOM_SUPPORT, ABSENT_CLASS = range(4, 8)
WAYS, GENERALIZED, SUPPORT_SET = range(8, 11)
SAME_QUERY, IS_ABSENT, DATA_SET, OWN_VIEW = range(11, 15)


@dataclass(frozen=True)
class Draw:
    """How a sampler draws; the defaults are as published.

    Attributes:
        order: "permuted": each pass over the list has an order of its own. "list": that of the
            list, whatever the seed (as published, for validation and test). "classes": the classes
            take turns, and one of the images of the class is the query (as in Matcher and PATNet).
            Of a mix, see `EpisodeSampler`.
        balance: 0: every image is the query once per pass, and one of its classes is drawn. Above
            0, first a class of n images is drawn in proportion to n^(1 - balance), so all equally
            often at 1; then one of its images is the query. Of a mix, see `EpisodeSampler`.
        same_query: so many episodes in a row have one query, and ask for its classes in turn.
        absent: share of the episodes that ask for a class which the query does not hold.
        beside: such supports come from images that also hold a class of the query, if there are
            any.
        own_view: share of the other episodes whose supports are the query image itself, which
            augmentation makes another view of.
        weights: of the data sets of a mix, see `FoldList.parts`; (): all equal.
    """

    order: str = "permuted"
    balance: float = 0.0
    same_query: int = 1
    absent: float = 0.0
    beside: bool = False
    own_view: float = 0.0
    weights: tuple[float, ...] = ()


def draw_of(cfg: Config, subset: str) -> Draw:
    """Return how the episodes of a config are drawn."""
    data = cfg.Data
    if subset != "train":
        return Draw(cfg.Eval.order, weights=data.mix_weights)
    beside = data.absent_supports == "beside"
    asking = data.same_query, data.absent, beside, data.own_view
    return Draw("permuted", data.class_balance, *asking, data.mix_weights)


@dataclass(frozen=True)
class EpisodePlan:
    """The images and the class of an episode, by name.

    Attributes:
        index: its number; `EpisodeSampler.plan(index)` returns it again.
        query: id of the query image.
        class_id: the class to segment.
        supports: ids of the K support images: all different, and none is the query; with
            `Draw.own_view`, all may be the query.
        masks: image and class of each support's mask; (): each has its own, of `class_id`.
        blank: the support images have the mean color everywhere.
    """

    index: int
    query: str
    class_id: int
    supports: tuple[str, ...]
    masks: tuple[tuple[str, int], ...] = ()
    blank: bool = False


def generator(seed: int, stream: int, index: int) -> np.random.Generator:
    """Return the random generator of (seed, stream, index), all >= 0."""
    return np.random.default_rng(np.random.SeedSequence((seed, stream, index)))


class ShuffledPasses:
    """Endless passes over `count` items; each pass takes every item once, in a new order."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._last = (-1, np.empty(0, np.int64))  # number and order of the pass used last

    def __call__(self, index: int) -> int:
        """Return the item at position `index` >= 0; it depends on (seed, index) only."""
        number, position = divmod(index, self.count)
        if self._last[0] != number:
            order = generator(self.seed, QUERY_ORDER, number).permutation(self.count)
            self._last = (number, order)
        return int(self._last[1][position])


class EpisodeSampler:
    """Draws the query, the class and the supports of episode 0, 1, 2, ...

    An episode depends only on the list, the seed and its index. It does not depend on the number of
    workers or ranks, nor on earlier calls, so a run can resume at any episode. Every class of the
    list needs more than K (`shot`) images, see `lists.check_shots`; the seed is >= 0.

    Of a mix, an episode lies within one of its data sets. The seed and the index draw this set by
    its weight; the episode is the one that the set alone has at this index. So each set leaves out
    the queries at the indices of the others: a pass takes images of it more than once, or never,
    and even with the order "list", the queries depend on the seed. The shares of the sets are
    their weights.
    """

    def __init__(self, fold: FoldList, shot: int, seed: int, draw: Draw = Draw()) -> None:
        self.fold, self.shot, self.seed, self.draw = fold, shot, seed, draw
        given = draw.weights if fold.parts else ()  # a mix of one data set needs none
        weighted = zip(fold.parts, given or [1.0] * len(fold.parts), strict=True)
        used = [(part, weight) for part, weight in weighted if part.images and weight]
        if fold.parts and not used:
            what = "no data set of the mix that is drawn from has an image for this"
            raise UserError(f"Data.mix_weights: {what}; change the weights, or add images")
        within = replace(draw, weights=())
        self._parts = [EpisodeSampler(part, shot, seed, within) for part, _ in used]
        weights = np.array([weight for _, weight in used])
        self._weights = weights / weights.sum() if used else weights
        self._passes = ShuffledPasses(len(fold.images), seed)
        self._classes = sorted(c for c, images in fold.by_class.items() if images)
        shares = np.array([len(fold.by_class[c]) ** (1 - draw.balance) for c in self._classes])
        self._shares = shares / shares.sum()

    def with_seed(self, seed: int) -> "EpisodeSampler":
        """Return the sampler of another seed."""
        return EpisodeSampler(self.fold, self.shot, seed, self.draw)

    def plan(self, index: int) -> EpisodePlan:
        """Return the plan of episode `index` >= 0."""
        turn, place = divmod(index, self.draw.same_query)
        if self._parts:
            rng = generator(self.seed, DATA_SET, turn)
            return self._parts[rng.choice(len(self._parts), p=self._weights)].plan(index)
        rng = generator(self.seed, EPISODE, turn)
        query, class_id = self._draw_query(turn, rng)
        if self.draw.same_query > 1:
            others = [c for c in self.fold.classes_of[query] if c != class_id]
            classes = [class_id, *map(int, rng.permutation(others))]
            class_id, rng = classes[place % len(classes)], generator(self.seed, SAME_QUERY, index)
        if self.draw.absent and self._happens(IS_ABSENT, index, self.draw.absent):
            drawn = self.draw_absent(query, generator(self.seed, ABSENT_CLASS, index))
            if drawn:
                return EpisodePlan(index, query, *drawn)
        if self.draw.own_view and self._happens(OWN_VIEW, index, self.draw.own_view):
            return EpisodePlan(index, query, class_id, (query,) * self.shot)
        return EpisodePlan(index, query, class_id, self.draw_supports(query, class_id, rng))

    def within(self, query: str) -> "EpisodeSampler":
        """Return the sampler of the data set that an image is of; without a mix, this one."""
        return next((part for part in self._parts if query in part.fold.classes_of), self)

    def _draw_query(self, turn: int, rng: np.random.Generator) -> tuple[str, int]:
        """Draw a query and one of its classes."""
        if self.draw.balance or self.draw.order == "classes":
            class_id = self._classes[turn % len(self._classes)]
            if self.draw.balance:
                class_id = int(rng.choice(self._classes, p=self._shares))
            candidates = self.fold.by_class[class_id]
            return candidates[int(rng.integers(len(candidates)))], class_id
        in_list = self.draw.order == "list"
        query = self.fold.images[turn % len(self.fold.images) if in_list else self._passes(turn)]
        return query, int(rng.choice(self.fold.classes_of[query]))

    def _happens(self, stream: int, index: int, share: float) -> bool:
        return bool(generator(self.seed, stream, index).random() < share)

    def draw_absent(
        self, query: str, rng: np.random.Generator
    ) -> tuple[int, tuple[str, ...]] | None:
        """Draw a class of the list that the query does not hold, and its supports; None: no such.

        Every such class is equally likely. With `Draw.beside`, it is one of which enough images
        also hold a class of the query, if there is one.
        """
        if self._parts:
            return self.within(query).draw_absent(query, rng)
        there = set(self.fold.classes_of[query])
        classes = sorted(c for c in self.fold.by_class if c not in there)
        if not classes:
            return None
        if self.draw.beside:
            for class_id in map(int, rng.permutation(classes)):
                images = [
                    i
                    for i in self.fold.by_class[class_id]
                    if not there.isdisjoint(self.fold.classes_of[i])
                ]
                if len(images) >= self.shot:
                    return class_id, self._choose(images, rng)
        class_id = int(rng.choice(classes))
        return class_id, self._choose(self.fold.by_class[class_id], rng)

    def _choose(self, images: list[str], rng: np.random.Generator) -> tuple[str, ...]:
        drawn = rng.choice(len(images), self.shot, replace=False)
        return tuple(images[i] for i in drawn)

    def draw_supports(self, query: str, class_id: int, rng: np.random.Generator) -> tuple[str, ...]:
        """Draw K images of a class, all different; none is the query."""
        candidates = self.fold.by_class[class_id]
        # One more than needed, because the query may be among them.
        drawn = rng.choice(len(candidates), min(self.shot + 1, len(candidates)), replace=False)
        supports = [candidates[i] for i in drawn if candidates[i] != query][: self.shot]
        assert len(supports) == self.shot, f"class {class_id} has too few images for {self.shot}"
        return tuple(supports)

    def rng(self, index: int) -> np.random.Generator:
        """Return the random generator for the augmentation of episode `index`."""
        return generator(self.seed, AUGMENTATION, index)
