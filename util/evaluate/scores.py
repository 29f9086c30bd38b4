"""Scores of an evaluation, and the table that shows them."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from util.evaluate.metrics import (
    BinaryTotals,
    ClassTotals,
    ConfusionTotals,
    LossTotals,
    Score,
    ThresholdTotals,
    Totals,
    sum_over_ranks,
)

# Novel class -> "predicted" or "object" -> label -> pixels; see `name_confusion`.
Confusion = dict[str, dict[str, dict[str, int]]]


class SeedTotals(Protocol):
    """Everything that is counted of one seed."""

    def parts(self) -> list[Totals]:
        """Return it, in a fixed order."""
        ...


class SeedScores(Protocol):
    """The scores of one seed, by any protocol."""

    def columns(self) -> dict[str, float]:
        """Return the name of each score in tables -> its value in percent."""
        ...


@dataclass
class BaseScores:
    """The scores of the base learner on images, in percent."""

    miou: float  # over the base classes that the labels hold, without background
    loss: float  # mean cross-entropy of the images
    images: int  # their number
    classes: dict[str, float]  # IoU of each base class that is there


@dataclass
class Scores:
    """The scores of an evaluation, in percent."""

    final: Score  # of the system
    meta: Score  # of G without the ensemble
    base_miou: float | None  # of the base learner, on base classes in the queries; None: no such
    base_classes: dict[str, float]  # IoU of each of them
    loss: float  # mean cross-entropy of the final scores over the episodes
    prior: Score  # of the better channel of the training-free prior, at its best threshold
    prior_channel: str  # that channel, one of `System.PRIORS`
    prior_threshold: float  # that threshold, 0..1
    episodes: int  # their number
    confusion: Confusion

    def line(self) -> str:
        """Return the scores in one line."""
        base = "" if self.base_miou is None else f"base {self.base_miou:.2f}  "
        return (
            f"mIoU {self.final.miou:.2f}  FB-IoU {self.final.fb_iou:.2f}  "
            f"meta {self.meta.miou:.2f}  {base}prior {self.prior.miou:.2f}"
        )

    def columns(self) -> dict[str, float]:
        """Return the name of each score in tables -> its value in percent."""
        columns: dict[str, float] = {}
        for kind in ("final", "meta", "prior"):
            columns |= score_columns(kind, getattr(self, kind))
        if self.base_miou is not None:
            columns["base mIoU"] = self.base_miou
        return columns | {f"  base {name}": iou for name, iou in self.base_classes.items()}


def score_columns(kind: str, score: Score) -> dict[str, float]:
    """Return the name of each part of a score in tables -> its value in percent."""
    whole = {"mIoU": score.miou, "FB-IoU": score.fb_iou, "pIoU": score.p_iou}
    columns = {f"{kind} {name}": value for name, value in whole.items()}
    return columns | {f"  {kind} {name}": iou for name, iou in score.classes.items()}


class ScoreTotals:
    """Pixel counts of the episodes of one seed, for the numbers of novel and of base classes.

    `prior_channels` are `System.PRIORS`. Without a `base_learner`, none is scored.
    """

    def __init__(
        self, classes: int, base_classes: int, device: torch.device,
        prior_channels: tuple[str, ...], base_learner: bool,
    ) -> None:  # fmt: skip
        self.prior_channels, self.base_learner = prior_channels, base_learner
        self.final, self.meta = BinaryTotals(classes, device), BinaryTotals(classes, device)
        self.base = ClassTotals(base_classes, device)
        self.loss = LossTotals(device)
        self.confusion = ConfusionTotals(classes, base_classes, device)
        self.priors = [ThresholdTotals(classes, device) for _ in prior_channels]

    def parts(self) -> list[Totals]:
        """Return everything that is counted."""
        return [self.final, self.meta, self.base, self.loss, self.confusion, *self.priors]

    def scores(self, names: list[str], base_names: list[str], episodes: int) -> Scores:
        """Sum the counts over all ranks, in place, and return the scores of `episodes` episodes.

        `names` are those of the novel classes, in the order of their counts.
        """
        sum_over_ranks(*self.parts())
        priors = [prior.best() for prior in self.priors]
        best = max(range(len(priors)), key=lambda i: priors[i][1].mean().item())
        threshold, iou, both = priors[best]
        return Scores(
            final=Score.of(self.final.class_iou(), self.final.fb_iou(), names),
            meta=Score.of(self.meta.class_iou(), self.meta.fb_iou(), names),
            base_miou=100 * self.base.miou() if self.base_learner else None,
            base_classes=percent_by_name(self.base, base_names),
            loss=self.loss.mean(),
            prior=Score.of(iou, both, names),
            prior_channel=self.prior_channels[best],
            prior_threshold=threshold,
            episodes=episodes,
            confusion=name_confusion(self.confusion, names, base_names),
        )


def percent_by_name(totals: ClassTotals, names: list[str]) -> dict[str, float]:
    """Return the IoU in percent of each class that is there, by its name."""
    iou = zip(names, totals.class_iou().tolist(), strict=True)
    return {name: 100 * value for name, value in iou if not math.isnan(value)}


def name_confusion(totals: ConfusionTotals, names: list[str], base_names: list[str]) -> Confusion:
    """Name the nonzero counts of confused pixels of each novel class.

    `predicted` are the true labels of the pixels that were predicted as the object; `object` is
    what the object's pixels were taken for, that is a hit, or the label of the base learner. Labels
    are base classes, `background`, `another novel class`, `hit`.
    """
    columns = ["background", *base_names, "another novel class", "hit"]
    return {
        name: {
            kind: {column: n for column, n in zip(columns, counts, strict=True) if n}
            for kind, counts in zip(("predicted", "object"), rows, strict=True)
        }
        for name, rows in zip(names, totals.totals.tolist(), strict=True)
    }


def add_confusions(parts: Iterable[Confusion]) -> Confusion:
    """Return the sum of the counts of several evaluations."""
    total: dict[str, dict[str, Counter[str]]] = {}
    for part in parts:
        for name, kinds in part.items():
            for kind, counts in kinds.items():
                total.setdefault(name, {}).setdefault(kind, Counter()).update(counts)
    return {name: {k: dict(c) for k, c in kinds.items()} for name, kinds in total.items()}


def summarize(runs: Sequence[SeedScores]) -> dict[str, dict[str, float]]:
    """Return mean, standard deviation and best value of every score over the seeds.

    The names are those of the table.
    """
    return {
        name: {
            **{"mean": statistics.fmean(values), "std": statistics.pstdev(values)},
            "best": max(values),
        }
        for name, values in _columns(runs).items()
    }


def format_table(runs: Mapping[int, SeedScores]) -> str:
    """Return a table: for each score its mean, deviation, best value and value in each seed."""
    columns, summary = _columns(list(runs.values())), summarize(list(runs.values()))
    width = max(map(len, columns))
    seeds = [f"{seed:>7}" for seed in runs] if len(runs) > 1 else []
    best = ["   best"] * bool(seeds)
    lines = ["  ".join([" " * width, "   mean", "    std", *best, *seeds])]
    for name, values in columns.items():
        cells = [summary[name]["mean"], summary[name]["std"]]
        cells += [summary[name]["best"], *values] if seeds else []
        lines.append("  ".join([name.ljust(width), *(f"{cell:7.2f}" for cell in cells)]))
    return "\n".join(lines)


def _columns(runs: Sequence[SeedScores]) -> dict[str, list[float]]:
    """Return the name of each score that all runs have -> its value in each run."""
    each = [run.columns() for run in runs]
    common = [name for name in each[0] if all(name in columns for columns in each)]
    return {name: [columns[name] for columns in each] for name in common}
