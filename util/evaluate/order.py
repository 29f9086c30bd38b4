"""The order in which episodes are evaluated: cheap for the encoder, the same scores."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from util.data.episodes import EpisodePlan, EpisodeSampler
from util.data.lists import FoldList
from util.runtime.distributed import Ranks


@dataclass(frozen=True)
class Task:
    """One episode of one seed."""

    seed: int
    plan: EpisodePlan


@dataclass(frozen=True)
class EvaluationOrder:
    """This rank's share of an evaluation.

    Attributes:
        seeds: of all ranks' episodes.
        count: episodes a seed, over all ranks.
        groups: batches of episodes with one query each; groups of one query follow each other.
    """

    seeds: tuple[int, ...]
    count: int
    groups: list[list[Task]]

    @property
    def episodes(self) -> int:
        """Episodes of this rank, over all seeds."""
        return sum(map(len, self.groups))


def evaluation_order(
    fold: FoldList, shot: int, count: int, seeds: Sequence[int], ranks: Ranks, size: int
) -> EvaluationOrder:
    """Episodes 0..count-1 of every seed, ordered by query and shared out over the ranks.

    Queries are in the order of the classes that are asked for in them, so that the supports of one
    class are wanted one after the other: a store that holds a class's supports loses none that it
    needs again. Groups are made before they are shared out, so that every episode meets the same
    others whatever the number of ranks.

    Args:
        fold: the list.
        shot: K.
        count: episodes a seed.
        seeds: of the episodes.
        ranks: this process's place.
        size: the most episodes of a group.
    """
    by_query: dict[str, list[Task]] = defaultdict(list)
    for seed in seeds:
        sampler = EpisodeSampler(fold, shot, seed)
        for index in range(count):
            plan = sampler.plan(index)
            by_query[plan.query].append(Task(seed, plan))
    first = {query: min(t.plan.class_id for t in tasks) for query, tasks in by_query.items()}
    groups = []
    for query in sorted(by_query, key=lambda query: (first[query], query)):
        tasks = sorted(by_query[query], key=lambda task: task.plan.class_id)
        groups += [tasks[i : i + size] for i in range(0, len(tasks), size)]
    # Rounded up, so that the main rank, which draws pictures, has a group whenever there is one.
    begin, end = (-(-len(groups) * part // ranks.world) for part in (ranks.rank, ranks.rank + 1))
    return EvaluationOrder(tuple(seeds), count, groups[begin:end])
