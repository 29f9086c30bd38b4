"""The order in which episodes are evaluated: few passes through the encoder, the same scores."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from util.data import EpisodePlan, EpisodeSampler
from util.runtime.distributed import Ranks


@dataclass(frozen=True)
class Task:
    """One episode of one seed."""

    seed: int
    plan: EpisodePlan


@dataclass(frozen=True)
class EvaluationOrder:
    """This rank's share of an evaluation.

    Each of the `groups` runs as one batch; its episodes share their query. Groups of the same query
    follow each other.
    """

    seeds: tuple[int, ...]  # over all ranks
    count: int  # of episodes for each seed, over all ranks
    groups: list[list[Task]]

    @property
    def episodes(self) -> int:
        """Number of episodes of this rank, over all seeds."""
        return sum(map(len, self.groups))


def evaluation_order(
    sampler: EpisodeSampler, count: int, seeds: Sequence[int], ranks: Ranks, size: int
) -> EvaluationOrder:
    """Order episodes 0..count-1 of every seed by query, and share them out over the ranks.

    They are those of the `sampler`, but for its seed.

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
    groups = []
    for query in sorted(by_query, key=lambda query: (first[query], query)):
        tasks = sorted(by_query[query], key=lambda task: task.plan.class_id)
        groups += [tasks[i : i + size] for i in range(0, len(tasks), size)]
    # Rounded up: the main rank, which draws pictures, gets a group whenever there is one.
    begin, end = (-(-len(groups) * part // ranks.world) for part in (ranks.rank, ranks.rank + 1))
    return EvaluationOrder(tuple(seeds), count, groups[begin:end])
