"""Several classes in one label map: one-way predictions are merged, and each label is counted.

`nway` and `generalized` say which episodes there are and which scores follow from the counts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from model import Prediction
from model.constants import IGNORE
from util.data import EpisodePlan
from util.evaluate.evaluator import Evaluator, QueryScorer
from util.evaluate.metrics import Totals, argmax_channels, histogram, ratio, sum_over_ranks
from util.evaluate.order import EvaluationOrder, Task, share_groups
from util.evaluate.scores import Confusion, SeedScores
from util.evaluate.tally import Row, Tally
from util.runtime import UserError

KINDS = ("final", "meta")


def merge(leads: Tensor, labels: Tensor, below: Tensor, tau: float = 0.5) -> Tensor:
    """Return the label map [H,W] of C one-way predictions.

    `leads` [C,H,W] is the score of the object minus that of the background, `labels` [C] the label
    of each class. A pixel gets the class with the highest probability of the object (the softmax of
    the two scores) if that is above `tau`, else its label in `below` [H,W]. Of equal probabilities,
    one class is taken.
    """
    best, row = leads.max(0)
    return torch.where(best > math.log(tau / (1 - tau)), labels[row], below)


class LabelTotals:
    """Pixels by true and predicted label: `totals`, int64 [labels, labels]; 0 is background."""

    def __init__(self, labels: int, device: torch.device):
        self.totals = torch.zeros(labels, labels, dtype=torch.int64, device=device)

    def add(self, prediction: Tensor, target: Tensor) -> None:
        """Count an image: both [H,W] hold labels; where the target is 255, nothing counts."""
        size = len(self.totals)
        cells = target.int() * size + prediction.int()
        cells = torch.where(target == IGNORE, size * size, cells)
        self.totals += histogram(cells, size * size).view(size, size)

    def areas(self) -> tuple[Tensor, Tensor]:
        """Return I and U of each label, int64 [labels]."""
        hits = self.totals.diagonal()
        return hits, self.totals.sum(0) + self.totals.sum(1) - hits

    def iou(self) -> Tensor:
        """Return I / U of each label [labels]; 0 where U is 0."""
        return ratio(*self.areas())

    def named(self, labels: Sequence[str]) -> dict[str, dict[str, int]]:
        """Return the counts that are not 0: true label -> predicted label -> pixels."""
        rows = zip(labels, self.totals.tolist(), strict=True)
        return {name: {c: n for c, n in zip(labels, row, strict=True) if n} for name, row in rows}


class MapTotals:
    """What is counted of one seed: the label maps of the final scores and of the generator."""

    def __init__(self, labels: int, device: torch.device):
        self.kinds = {kind: LabelTotals(labels, device) for kind in KINDS}

    def parts(self) -> list[Totals]:
        """Return everything that is counted."""
        return [self.kinds[kind] for kind in KINDS]

    def confusion(self, labels: Sequence[str]) -> Confusion:
        """Return kind -> true label -> predicted label -> pixels."""
        return {kind: totals.named(labels) for kind, totals in self.kinds.items()}


class MapScores(SeedScores, Protocol):
    """The scores of one seed by a `MapProtocol`: a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    episodes: int
    confusion: Confusion

    def line(self) -> str:
        """Return the scores in one line."""
        ...


class MapProtocol(Protocol):
    """Which episodes there are, and what is scored.

    `name` becomes part of the result's file name. Labels are the background, 0, then `base` names
    of base classes, then the novel classes of the list in ascending order. Where no object of the
    episode's classes is more probable than `tau`, the base learner decides, given base names.
    """

    name: str
    base: list[str]
    tau: float

    def count(self, wanted: int) -> int:
        """Return the number of episodes of each seed, if `wanted` are asked for."""
        ...

    def episodes(self, seed: int) -> Callable[[int], list[EpisodePlan]]:
        """Return the function from number to episode of a seed.

        An episode is a plan of the same query for each of its classes, ascending.
        """
        ...

    def report(self, wanted: int) -> list[str]:
        """Return what to say before the test."""
        ...

    def scores(self, totals: MapTotals, names: list[str], episodes: int) -> MapScores:
        """Return the scores of complete totals; `names` are those of all labels."""
        ...


@dataclass
class MapEvaluator:
    """Scores a model by a `MapProtocol`, as `Evaluator` does in the one-way protocol.

    Raises `UserError` if the map would hold more than 254 classes.
    """

    evaluator: Evaluator
    protocol: MapProtocol

    def __post_init__(self) -> None:
        first = 1 + len(self.protocol.base)
        self.label_of = {c: first + i for i, c in enumerate(self.evaluator.classes)}
        self.labels = ["background", *self.protocol.base, *self.evaluator.names]
        if len(self.labels) > IGNORE:
            what = f"{self.protocol.name}: one map holds at most {IGNORE - 1} classes"
            raise UserError(f"{what}, and these are {len(self.labels) - 1}; use Eval.protocol fss")
        self.file_name = f"result_{self.protocol.name}.json"  # beside that of the one-way test

    def report(self, count: int) -> list[str]:
        """Return what to say before a test of `count` episodes for each seed."""
        absent = "no controls, absent objects, rows of episodes or pictures"
        return [*self.protocol.report(count), f"{self.protocol.name}: {absent}"]

    def order(self, count: int, seeds: Sequence[int]) -> EvaluationOrder:
        """Return this rank's share of the episodes, of which each seed has at most `count`.

        Each group is one episode; its tasks are its classes.
        """
        count = self.protocol.count(count)
        groups = []
        for seed in seeds:
            plans_of = self.protocol.episodes(seed)
            groups += [[Task(seed, plan) for plan in plans_of(n)] for n in range(count)]
        groups.sort(key=lambda group: group[0].plan.query)
        return share_groups(groups, count, seeds, self.evaluator.ranks)

    def tally(self, order: EvaluationOrder) -> Tally[MapTotals]:
        """Return an empty tally of an evaluation."""
        device = self.evaluator.ranks.device
        return Tally({seed: MapTotals(len(self.labels), device) for seed in order.seeds})

    def run(
        self,
        order: EvaluationOrder,
        tally: Tally[MapTotals] | None = None,
        *,
        on_progress: Callable[[int], None] | None = None,
        on_group: Callable[[], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> dict[int, MapScores]:
        """Return the scores over all ranks by seed, {} if stopped; see `Evaluator.run`."""
        tally = tally or self.tally(order)

        def score(query: QueryScorer, prediction: Prediction, group: list[Task]) -> None:
            self._score(query, prediction, group, tally)

        if not self.evaluator.fill(
            order, tally, score, on_progress=on_progress, on_group=on_group, stop=stop
        ):
            return {}
        for totals in tally.totals.values():
            sum_over_ranks(*totals.parts())
        return {
            seed: self.protocol.scores(totals, self.labels, order.count)
            for seed, totals in tally.totals.items()
        }

    def _score(
        self,
        query: QueryScorer,
        prediction: Prediction,
        group: list[Task],
        tally: Tally[MapTotals],
    ) -> None:
        """Count one episode; its classes are the rows of the prediction."""
        labels = torch.tensor([self.label_of[task.plan.class_id] for task in group])
        labels = labels.to(query.label.device)
        ignored = (query.label == IGNORE) * IGNORE
        target = (query.base_label if self.protocol.base else ignored).long()
        for task, label in zip(group, labels, strict=True):
            target = torch.where(query.label == task.plan.class_id, label, target)
        below = torch.zeros_like(target)
        if self.protocol.base:
            below = argmax_channels(query.resize(prediction.base_logits[:1]))
        kinds = tally.totals[group[0].seed].kinds
        for kind, scores in zip(KINDS, (prediction.final, prediction.meta_logits), strict=True):
            resized = [query.resize(scores[row : row + 1]) for row in range(len(group))]
            leads = torch.stack([object_ - background for background, object_ in resized])
            kinds[kind].add(merge(leads, labels, below, self.protocol.tau), target)
        tally.rows.append(row_of(group))


def row_of(group: list[Task]) -> Row:
    """Return which episode a group is, as `tally.place` wants it."""
    return {"control": "", "seed": group[0].seed, "number": group[0].plan.index}
