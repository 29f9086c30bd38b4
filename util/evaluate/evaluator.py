"""The one evaluator, for train.py and test.py: episodes -> Scores (method 7)."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from model import AMFormer, Prediction
from model.resize import bilinear_ac
from util import speed
from util.config import Config
from util.data.dataset import EpisodeDataset, binary_mask
from util.data.episodes import EpisodePlan
from util.evaluate.metrics import (
    BaseTotals,
    BinaryTotals,
    ConfusionTotals,
    Score,
    ThresholdTotals,
    argmax_channels,
    ratio,
    sum_over_ranks,
)
from util.evaluate.order import EvaluationOrder, Task, evaluation_order
from util.features import EncodedBatch, FeatureStore
from util.folds import fold_of
from util.runtime import distributed
from util.runtime.distributed import Ranks
from util.runtime.progress import timed

PRIORS = ("f5", "f4")  # the prior's channels
Confusion = dict[str, dict[str, dict[str, int]]]


@dataclass
class Scores:
    """What an evaluation found, all in percent.

    Attributes:
        final: the system.
        meta: G without the ensemble.
        base_miou: the base learner on the base classes of the same queries.
        prior: the training-free prior at its best threshold, the better of its two channels;
            `prior_channel` and `prior_threshold` say which.
        episodes: how many.
        confusion: pixels by class, see `confusion`.
    """

    final: Score
    meta: Score
    base_miou: float
    prior: Score
    prior_channel: str
    prior_threshold: float
    episodes: int
    confusion: "Confusion"

    def line(self) -> str:
        """The scores in one line."""
        return (
            f"mIoU {self.final.miou:.2f}  FB-IoU {self.final.fb_iou:.2f}  "
            f"meta {self.meta.miou:.2f}  base {self.base_miou:.2f}  prior {self.prior.miou:.2f}"
        )


@dataclass
class EvaluatedEpisode:
    """One evaluated episode, for pictures.

    Attributes:
        batch, prediction: of the episodes that ran as one batch; `row` is this one's in them.
        target: 0, 1 and 255 [H,W] at the query's own size.
        iou: of the object at that size, 0..1.
    """

    plan: EpisodePlan
    batch: EncodedBatch
    prediction: Prediction
    row: int
    target: Tensor
    iou: float


class Evaluator:
    """Runs a model over the first episodes of some seeds; keeps what it encoded between runs.

    A query is encoded once and kept while its episodes run, and for the next run too where all
    queries fit in half of `Eval.cache_gb`. Supports have the rest.

    Args:
        model: on its device.
        episodes: of the validation lists.
        cfg: the whole config.
        ranks: this process's place.
    """

    def __init__(self, model: AMFormer, episodes: EpisodeDataset, cfg: Config, ranks: Ranks):
        self.model, self.episodes, self.cfg, self.ranks = model, episodes, cfg, ranks
        self.store = FeatureStore(model.encoder, episodes, cfg.Eval.cache_gb)
        self._targets: dict[str, _Target] = {}
        fold = episodes.sampler.fold
        self.classes = sorted(fold.by_class)  # those that the lists can serve
        self.names = [fold.name(c) for c in self.classes]
        learned = fold_of(cfg.Data).learned  # COCO's, for a model of COCO on PASCAL
        self.base_names = [learned.names[c - 1] for c in learned.base]

    def order(self, count: int, seeds: Sequence[int]) -> EvaluationOrder:
        """This rank's share of episodes 0..count-1 of every seed."""
        fold, size = self.episodes.sampler.fold, self.cfg.Eval.batch_size
        return evaluation_order(fold, self.cfg.Data.shot, count, seeds, self.ranks, size)

    @timed("evaluation")
    @torch.no_grad()
    def run(
        self,
        work: EvaluationOrder,
        *,
        watch: Callable[[int], None] | None = None,
        show: Callable[[EvaluatedEpisode], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> dict[int, Scores]:
        """Evaluates episodes; the scores of each seed over all ranks. Restores the model's mode.

        Every rank has to call: all take rank 0's statistics of batch norms that learn them, on
        which nothing in training depends.

        Args:
            work: see `schedule`.
            watch: called with the number of episodes done on this rank.
            show: called with each episode of this rank; see `util.evaluate.visualize.Gallery`.
            stop: asked after each episode; once it says so on any rank there are no scores: {}.
        """
        training = self.model.training
        if not self.cfg.Method.fix_bn:
            distributed.broadcast_parameters(self.model)
        self.model.eval()
        rows, device = self.cfg.num_base_classes, self.ranks.device
        totals = {seed: _Totals(len(self.classes), rows, device) for seed in work.seeds}
        try:
            with speed.autocast(self.cfg.Eval.precision, device):
                for done, (query, batch, prediction, row, task) in enumerate(self._predict(work)):
                    target, iou = query.score(prediction, row, task.plan, totals[task.seed])
                    if show:
                        show(EvaluatedEpisode(task.plan, batch, prediction, row, target, iou))
                    if watch:
                        watch(done + 1)
                    if stop and stop():
                        break
        finally:
            self.model.train(training)
        if stop and distributed.any_rank([stop()], self.ranks)[0]:
            return {}
        names, base = self.names, self.base_names
        return {seed: total.scores(names, base, work.count) for seed, total in totals.items()}

    def _predict(
        self, work: EvaluationOrder
    ) -> Iterator[tuple["_Target", EncodedBatch, Prediction, int, Task]]:
        """Every episode with its query, its batch, the batch's prediction, and its row in them."""
        count = len(self._targets.keys() | {group[0].plan.query for group in work.groups})
        for name, groups in groupby(work.groups, key=lambda group: group[0].plan.query):
            query = self._target(name, count)
            for group in groups:
                batch = self.store.of_query(query.seen, [task.plan for task in group])
                kshot = self.cfg.Eval.kshot
                prediction = self.model.match(batch.query, batch.supports, kshot=kshot)
                for row, task in enumerate(group):
                    yield query, batch, prediction, row, task

    def _target(self, name: str, count: int) -> "_Target":
        """One of `count` queries, kept where all of them fit."""
        if name not in self._targets:
            target = _Target(self, name)
            if count * target.bytes > self.cfg.Eval.cache_gb * 1e9 / 2:
                return target
            self._targets[name] = target
            self.store.budget -= target.bytes
        return self._targets[name]


class _Target:
    """One query: encoded, with what its episodes are compared with at its own size."""

    def __init__(self, evaluator: Evaluator, name: str):
        self.seen, original = evaluator.store.image(name)
        self.classes, device = evaluator.classes, evaluator.ranks.device
        self.label = original.to(device)
        self.base_label = evaluator.episodes.base_mask(original).to(device)
        novel = (self.base_label == 0) & (self.label != 0)
        self.truth = torch.where(novel, evaluator.cfg.num_base_classes + 1, self.base_label)
        self.base: Tensor | None = None  # the base learner's, the same in all episodes
        self.base_totals = BaseTotals(evaluator.cfg.num_base_classes, device)
        self.keep_annotated = evaluator.episodes.keep_annotated
        self.bytes = self.seen.bytes + 4 * self.label.numel()  # with `base` four maps of bytes

    def score(
        self, prediction: Prediction, row: int, plan: EpisodePlan, totals: "_Totals"
    ) -> tuple[Tensor, float]:
        """Adds one episode at the query's own size; returns its target and the object's IoU."""
        target = binary_mask(self.label, plan.class_id)
        index = self.classes.index(plan.class_id)

        def own(scores: Tensor) -> Tensor:
            return own_size(scores[row : row + 1], prediction.size, target)

        final = argmax_channels(own(prediction.final))
        [_, areas] = totals.final.add(final, target, index)
        totals.meta.add(argmax_channels(own(prediction.logits[-1])), target, index)
        if self.base is None:
            self.base = self.keep_annotated(argmax_channels(own(prediction.base_logits))).byte()
            self.base_totals.add(self.base, self.base_label)
        totals.base.totals += self.base_totals.totals
        totals.confusion.add(final, target, self.truth, self.base, index)
        for values, prior in zip(own(prediction.prior), totals.priors, strict=True):
            prior.add(values, target, index)
        return target, ratio(*areas).item()


def own_size(scores: Tensor, size: tuple[int, int], target: Tensor) -> Tensor:
    """Scores of one query [1,C,h,w] -> [C,H,W] of the target, by way of S x S as published."""
    return bilinear_ac(bilinear_ac(scores, size), tuple(target.shape))[0]


class _Totals:
    def __init__(self, classes: int, base_classes: int, device: torch.device):
        self.final, self.meta = BinaryTotals(classes, device), BinaryTotals(classes, device)
        self.base = BaseTotals(base_classes, device)
        self.confusion = ConfusionTotals(classes, base_classes, device)
        self.priors = [ThresholdTotals(classes, device) for _ in PRIORS]

    def scores(self, names: list[str], base_names: list[str], episodes: int) -> Scores:
        sum_over_ranks(self.final, self.meta, self.base, self.confusion, *self.priors)
        priors = [prior.best() for prior in self.priors]
        best = max(range(len(priors)), key=lambda i: priors[i][1].mean().item())
        threshold, iou, fb_iou = priors[best]
        return Scores(
            final=Score.of(self.final.class_iou(), self.final.fb_iou(), names),
            meta=Score.of(self.meta.class_iou(), self.meta.fb_iou(), names),
            base_miou=100 * self.base.miou(),
            prior=Score.of(iou, fb_iou, names),
            prior_channel=PRIORS[best],
            prior_threshold=threshold,
            episodes=episodes,
            confusion=confusion(self.confusion, names, base_names),
        )


def confusion(totals: ConfusionTotals, names: list[str], base_names: list[str]) -> Confusion:
    """Names for the counts of pixels, without those that are 0.

    Returns:
        novel class -> `predicted` (what its predicted pixels are) and `object` (what its own pixels
        were taken for: the system's hits, else the base learner's label) -> base class,
        `background`, `another novel class` or `hit` -> pixels.
    """
    columns = ["background", *base_names, "another novel class", "hit"]
    return {
        name: {
            kind: {column: n for column, n in zip(columns, counts, strict=True) if n}
            for kind, counts in zip(("predicted", "object"), rows, strict=True)
        }
        for name, rows in zip(names, totals.totals.tolist(), strict=True)
    }


def summed(parts: Iterable[Confusion]) -> Confusion:
    """The sum of the counts of several evaluations."""
    total: dict = {}
    for part in parts:
        for name, kinds in part.items():
            for kind, counts in kinds.items():
                into = total.setdefault(name, {}).setdefault(kind, Counter())
                into.update(counts)
    return {name: {k: dict(c) for k, c in kinds.items()} for name, kinds in total.items()}


def summarize(runs: list[Scores]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over seeds of every score, by name (as the table's rows)."""
    return {
        name: {"mean": statistics.fmean(values), "std": statistics.pstdev(values)}
        for name, values in _columns(runs).items()
    }


def table(runs: dict[int, Scores]) -> str:
    """A table of the scores: a row each, a column a seed, mean and standard deviation."""
    summary, columns = summarize(list(runs.values())), _columns(list(runs.values()))
    width = max(map(len, columns))
    heads = [f"{seed:>7}" for seed in runs] if len(runs) > 1 else []
    lines = ["  ".join([" " * width, "   mean", "    std", *heads])]
    for name, values in columns.items():
        cells = [summary[name]["mean"], summary[name]["std"], *(values if heads else [])]
        lines.append("  ".join([name.ljust(width), *(f"{cell:7.2f}" for cell in cells)]))
    return "\n".join(lines)


def _columns(runs: list[Scores]) -> dict[str, list[float]]:
    """Name of a score -> its value in each run."""
    columns: dict[str, list[float]] = {}
    for kind in ("final", "meta", "prior"):
        scores: list[Score] = [getattr(run, kind) for run in runs]
        columns[f"{kind} mIoU"] = [s.miou for s in scores]
        columns[f"{kind} FB-IoU"] = [s.fb_iou for s in scores]
        for name in scores[0].classes:
            columns[f"  {kind} {name}"] = [s.classes[name] for s in scores]
    columns["base mIoU"] = [run.base_miou for run in runs]
    return columns
