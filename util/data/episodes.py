"""Which episode comes when: a pure function of (seed, index)."""

from dataclasses import dataclass

import numpy as np

from util.data.lists import FoldList

_QUERIES, _EPISODE, _PICTURES = range(3)  # independent random streams of one seed


@dataclass(frozen=True)
class Plan:
    """One episode by name.

    Attributes:
        index: its number; `EpisodeSampler.plan(index)` gives it again.
        query: id of the query image.
        class_id: the class asked for.
        supports: ids of the K support images, all different, none the query.
    """

    index: int
    query: str
    class_id: int
    supports: tuple[str, ...]


def generator(seed: int, stream: int, index: int) -> np.random.Generator:
    """Returns the random generator that belongs to (seed, stream, index), all >= 0."""
    return np.random.default_rng(np.random.SeedSequence((seed, stream, index)))


class Passes:
    """Endless passes over `count` things, every thing once per pass, each pass in its own order.

    Args:
        count: how many there are.
        seed: of the orders.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._memo = (-1, np.empty(0, np.int64))

    def __call__(self, index: int) -> int:
        """Returns the thing at a place; a function of (seed, index) alone."""
        number, place = divmod(index, self.count)
        if self._memo[0] != number:
            order = generator(self.seed, _QUERIES, number).permutation(self.count)
            self._memo = (number, order)
        return int(self._memo[1][place])


class EpisodeSampler:
    """Names the query, class and supports of episode 0, 1, 2, ...

    Episodes depend on nothing but the list, the seed and their index: not on the number of workers
    or ranks, nor on what was asked before. So a run resumes at any episode.

    Args:
        fold: the list; `check_shots` or `available` has been over it.
        shot: supports per episode, K.
        seed: >= 0.
        balance: 0: every image is the query once per pass, and one of its classes is asked for, as
            published. Above: a class of n images is asked for in proportion to n^(1 - balance), all
            equally often at 1, then one of its images is the query.
    """

    def __init__(self, fold: FoldList, shot: int, seed: int, balance: float = 0.0) -> None:
        self.fold, self.shot, self.seed, self.balance = fold, shot, seed, balance
        self._passes = Passes(len(fold.images), seed)
        self._classes = sorted(c for c, images in fold.by_class.items() if images)
        shares = np.array([len(fold.by_class[c]) ** (1 - balance) for c in self._classes])
        self._shares = shares / shares.sum()

    def plan(self, index: int) -> Plan:
        """Returns episode `index` >= 0."""
        rng = generator(self.seed, _EPISODE, index)
        if self.balance:
            class_id = int(rng.choice(self._classes, p=self._shares))
            pool = self.fold.by_class[class_id]
            query = pool[int(rng.integers(len(pool)))]
        else:
            query = self.fold.images[self._passes(index)]
            class_id = int(rng.choice(self.fold.classes_of[query]))
            pool = self.fold.by_class[class_id]
        # One more than needed, so that the query can be struck out.
        drawn = rng.choice(len(pool), min(self.shot + 1, len(pool)), replace=False)
        supports = [pool[i] for i in drawn if pool[i] != query][: self.shot]
        assert len(supports) == self.shot, f"class {class_id} cannot serve {self.shot} supports"
        return Plan(index, query, class_id, tuple(supports))

    def rng(self, index: int) -> np.random.Generator:
        """Returns the generator for the augmentation of episode `index`."""
        return generator(self.seed, _PICTURES, index)
