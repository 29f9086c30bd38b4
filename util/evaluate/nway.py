"""N-way K-shot episodes: N novel classes in one label map, the rest is background."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from util.data import EpisodePlan, EpisodeSampler
from util.data.episodes import WAYS, generator
from util.evaluate.label_maps import LabelTotals, MapTotals
from util.evaluate.metrics import Score, ratio
from util.evaluate.scores import Confusion, score_columns
from util.runtime import UserError


def nway_plans(sampler: EpisodeSampler, way: int, number: int) -> list[EpisodePlan]:
    """Return an episode: a plan of the same query for each of its N classes, ascending.

    One is the one-way episode of this number. The other classes are drawn evenly among the other
    classes of the list, whether the query holds them or not; K supports each, none is the query.
    """
    first, rng = sampler.plan(number), generator(sampler.seed, WAYS, number)
    others = sorted(c for c in sampler.fold.by_class if c != first.class_id)
    plans = [first]
    for c in rng.choice(others, way - 1, replace=False).tolist():
        supports = sampler.draw_supports(first.query, c, rng)
        plans.append(EpisodePlan(number, first.query, c, supports))
    return sorted(plans, key=lambda plan: plan.class_id)


@dataclass
class NWayScores:
    """The scores of one seed, in percent."""

    final: Score  # of the system
    meta: Score  # of G without the ensemble
    episodes: int  # their number
    confusion: Confusion  # kind -> true label -> predicted label -> pixels

    def line(self) -> str:
        """Return the scores in one line."""
        final = f"mIoU {self.final.miou:.2f}  FB-IoU {self.final.fb_iou:.2f}"
        return f"{final}  meta {self.meta.miou:.2f}"

    def columns(self) -> dict[str, float]:
        """Return the name of each score in tables -> its value in percent."""
        return score_columns("final", self.final) | score_columns("meta", self.meta)


class NWay:
    """The protocol of `Eval.way`; see `label_maps.MapProtocol` and docs/protocol.md.

    Raises `UserError` if the list has fewer classes.
    """

    tau = 0.5

    def __init__(self, sampler: EpisodeSampler, way: int):
        classes = len(sampler.fold.by_class)
        if way > classes:
            raise UserError(
                f"Eval.way wants at most the {classes} classes of the list, given {way}"
            )
        self.sampler, self.way, self.name = sampler, way, f"{way}way"
        self.base: list[str] = []

    def count(self, wanted: int) -> int:
        """Return the number of episodes of each seed."""
        return wanted

    def episodes(self, seed: int) -> Callable[[int], list[EpisodePlan]]:
        """Return the function from number to episode of a seed."""
        return partial(nway_plans, self.sampler.with_seed(seed), self.way)

    def report(self, wanted: int) -> list[str]:
        """Return what to say before the test."""
        return [f"{self.way}-way: {self.way} of {len(self.sampler.fold.by_class)} novel classes"]

    def scores(self, totals: MapTotals, names: list[str], episodes: int) -> NWayScores:
        """Return the scores of complete totals."""
        final, meta = (score_of(totals.kinds[kind], names) for kind in ("final", "meta"))
        return NWayScores(final, meta, episodes, totals.confusion(names))


def score_of(totals: LabelTotals, names: list[str]) -> Score:
    """Return mIoU over all labels but the background, and FB-IoU: `names` are those of all labels.

    The object of FB-IoU is the sum of the I and of the U of the classes (as PANet's binary IoU).
    """
    hits, union = totals.areas()
    background, objects = ratio(hits[0], union[0]), ratio(hits[1:].sum(), union[1:].sum())
    both: Tensor = torch.stack((background, objects))
    return Score.of(totals.iou()[1:], (both.mean().item(), objects.item()), names[1:])
