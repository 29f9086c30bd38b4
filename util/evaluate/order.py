"""The order in which episodes are evaluated: few passes through the encoder, the same scores."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from util.data import EpisodePlan, EpisodeSampler
from util.runtime.distributed import Ranks


@dataclass(frozen=True)
class Task:
    """One episode of one seed."""

    seed: int
    plan: EpisodePlan
    control: str = ""  # "": a right episode, else what it is beside those


@dataclass(frozen=True)
class EvaluationOrder:
    """An evaluation, and this rank's share of it.

    Each group runs as one batch; its episodes share their query. Groups of the same query follow
    each other.
    """

    seeds: tuple[int, ...]
    count: int  # of right episodes for each seed
    ranks: Ranks
    every: list[list[Task]]  # the groups of all ranks
    numbers: Sequence[int]  # of this rank's groups: their positions in `every`

    @property
    def groups(self) -> list[list[Task]]:
        """This rank's groups."""
        return [self.every[number] for number in self.numbers]

    @property
    def episodes(self) -> int:
        """Number of episodes of this rank, over all seeds."""
        return sum(map(len, self.groups))

    def share(self, numbers: Sequence[int]) -> "EvaluationOrder":
        """Return the evaluation of these groups alone, shared out over the ranks."""
        # Rounded up: the main rank gets a group whenever there is one.
        rank, world = self.ranks.rank, self.ranks.world
        begin, end = (-(-len(numbers) * part // world) for part in (rank, rank + 1))
        return replace(self, numbers=numbers[begin:end])


def evaluation_order(
    sampler: EpisodeSampler,
    count: int,
    seeds: Sequence[int],
    ranks: Ranks,
    size: int,
    beside: Iterable[Task] = (),
) -> EvaluationOrder:
    """Order episodes 0..count-1 of every seed by query, and share them out over the ranks.

    They are those of the `sampler`, but for its seed. `beside` are further episodes of the same
    queries. They run in groups of their own, so they change nothing of the others.

    Queries are sorted by the class that their episodes ask for, so that a store which holds the
    supports of one class encodes each of them once. Groups, of at most `size` episodes, are made
    before they are shared out: an episode runs in the same batch on any number of ranks.
    """
    by_query: dict[str, list[Task]] = defaultdict(list)
    for seed in seeds:
        sampler = sampler.with_seed(seed)
        for index in range(count):
            plan = sampler.plan(index)
            by_query[plan.query].append(Task(seed, plan))
    first = {query: min(t.plan.class_id for t in tasks) for query, tasks in by_query.items()}
    for task in beside:
        by_query[task.plan.query].append(task)
    groups = []
    for query in sorted(by_query, key=lambda query: (first[query], query)):
        tasks = sorted(by_query[query], key=lambda t: (t.control, t.plan.class_id))
        for _, kind in groupby(tasks, key=lambda task: task.control):
            same = list(kind)
            groups += [same[i : i + size] for i in range(0, len(same), size)]
    return share_groups(groups, count, seeds, ranks)


def share_groups(
    groups: list[list[Task]], count: int, seeds: Sequence[int], ranks: Ranks
) -> EvaluationOrder:
    """Share out groups, those of a query next to each other; `count` episodes are of each seed."""
    order = EvaluationOrder(tuple(seeds), count, ranks, groups, ())
    return order.share(range(len(groups)))
