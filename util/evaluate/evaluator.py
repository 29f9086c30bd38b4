"""The evaluator of train.py and test.py: episodes -> `Scores` (method 7)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from model import Prediction, System
from model.resize import bilinear_ac
from util import speed
from util.config import Config
from util.data import EpisodeDataset, EpisodePlan, binary_mask
from util.evaluate.finite import require_finite
from util.evaluate.metrics import ClassTotals, areas, argmax_channels
from util.evaluate.order import EvaluationOrder, Task, evaluation_order
from util.evaluate.presence import presence
from util.evaluate.scores import Scores, ScoreTotals
from util.evaluate.tally import Row, Tally, iou_of, make_row
from util.features import FeatureStore, count_bytes
from util.folds import fold_of
from util.runtime import Ranks, distributed, timed


@dataclass
class EvaluatedEpisode:
    """One evaluated episode, for pictures."""

    task: Task
    prediction: Prediction  # of the episodes that ran together
    row: int  # of this episode in the prediction
    target: Tensor  # 0, 1 and 255 at the size of the comparison [H,W]
    iou: float  # of the object at that size, 0..1
    resize: Callable[[Tensor], Tensor]  # scores [1,C,h,w] to that size, [C,H,W]

    @property
    def plan(self) -> EpisodePlan:
        """Its images and its class."""
        return self.task.plan


class Evaluator:
    """Scores a model on the first episodes of some seeds; keeps features between runs.

    A query is encoded once and kept while its episodes run. It stays for the next run if all
    queries together need at most half of `Eval.cache_gb`. Supports have the rest.
    """

    file_name = "result.json"  # of a test

    def __init__(self, model: System, episodes: EpisodeDataset, cfg: Config, ranks: Ranks):
        self.model, self.episodes, self.cfg, self.ranks = model, episodes, cfg, ranks
        self.store = FeatureStore(model.encoder, episodes, cfg.Eval.cache_gb)
        self._queries: dict[str, QueryScorer] = {}
        fold = episodes.sampler.fold
        self.classes = sorted(fold.by_class)  # the novel classes with enough images
        self.names = [fold.name(c) for c in self.classes]
        self.base_names = list(fold_of(cfg.Data).learned.base_names)

    def order(
        self, count: int, seeds: Sequence[int], beside: Iterable[Task] = ()
    ) -> EvaluationOrder:
        """Return this rank's share of episodes 0..count-1 of every seed, and of those `beside`."""
        sampler, size = self.episodes.sampler, self.cfg.Eval.batch_size
        return evaluation_order(sampler, count, seeds, self.ranks, size, beside)

    def tally(self, order: EvaluationOrder) -> Tally:
        """Return an empty tally of an evaluation."""
        size = len(self.classes), self.cfg.num_base_classes, self.ranks.device
        scored = self.model.PRIORS, self.model.has_base_learner
        return Tally({seed: ScoreTotals(*size, *scored) for seed in order.seeds})

    def run(
        self,
        order: EvaluationOrder,
        tally: Tally | None = None,
        *,
        on_progress: Callable[[int], None] | None = None,
        on_episode: Callable[[EvaluatedEpisode], None] | None = None,
        on_group: Callable[[], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> dict[int, Scores]:
        """Return the scores over all ranks by seed, {} if stopped; every rank has to call this.

        `tally` holds what this rank has counted before. In the end it holds the counts and the rows
        of all ranks; if stopped, those of this rank.

        `on_episode` gets each episode of this rank; the others are those of `fill`.
        """
        tally = tally or self.tally(order)

        def score(query: QueryScorer, prediction: Prediction, group: list[Task]) -> None:
            for row, task in enumerate(group):
                target, record = query.score(prediction, row, task, tally)
                if on_episode:
                    iou = iou_of(record)
                    on_episode(EvaluatedEpisode(task, prediction, row, target, iou, query.resize))

        if not self.fill(
            order, tally, score, on_progress=on_progress, on_group=on_group, stop=stop
        ):
            return {}
        names = self.names, self.base_names
        return {seed: total.scores(*names, order.count) for seed, total in tally.totals.items()}

    @timed("evaluation")
    @torch.no_grad()
    def fill(
        self,
        order: EvaluationOrder,
        tally: Tally,
        score: Callable[["QueryScorer", Prediction, list[Task]], None],
        *,
        on_progress: Callable[[int], None] | None = None,
        on_group: Callable[[], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> bool:
        """Predict this rank's groups, and gather the rows of all ranks; return False if stopped.

        `score` adds a group, with its query and its prediction, to the tally. `on_progress` gets
        the number of tasks that are done on this rank. `on_group` is called after each group, when
        the tally is complete, and then `stop` is asked; it stops all ranks. The model's mode is
        restored. Raises `UserError` if scores are not finite.
        """
        was_training = self.model.training
        # Ranks may have learned different batch norm statistics.
        if self.model.encoder.train_norms or not self.cfg.Method.fix_bn:
            distributed.broadcast_parameters(self.model)
        self.model.eval()
        done = 0
        try:
            with speed.autocast(self.cfg.Eval.precision, self.ranks.device):
                for number, query, prediction in self._predict(order):
                    score(query, prediction, order.every[number])
                    tally.groups.add(number)
                    done += len(order.every[number])
                    if on_progress:
                        on_progress(done)
                    if on_group:
                        on_group()
                    if stop and stop():
                        break
        finally:
            self.model.train(was_training)
        if stop and distributed.any_rank([stop()], self.ranks)[0]:
            return False
        tally.gather_rows()
        return True

    def _predict(self, order: EvaluationOrder) -> Iterator[tuple[int, "QueryScorer", Prediction]]:
        """Yield for each of this rank's groups its number, its query and its prediction."""
        count = len(self._queries.keys() | {group[0].plan.query for group in order.groups})
        of_query = groupby(order.numbers, key=lambda number: order.every[number][0].plan.query)
        for name, numbers in of_query:
            query = self._query(name, count)
            for number in numbers:
                supports = self.store.supports([task.plan for task in order.every[number]])
                kshot = self.cfg.Eval.kshot
                prediction = self.model.match(query.features, supports, kshot=kshot)
                require_finite(prediction, f"image {name}")
                yield number, query, prediction

    def _query(self, name: str, count: int) -> "QueryScorer":
        """Return a query, one of `count`; keep it if all of them fit."""
        if name not in self._queries:
            query = QueryScorer(self, name)
            if count * query.bytes > self.cfg.Eval.cache_gb * 1e9 / 2:
                return query
            self._queries[name] = query
            self.store.reserve(query.bytes)
        return self._queries[name]


class QueryScorer:
    """One query: encoded, and with the labels that its predictions are compared with.

    All of it takes `bytes` of memory.
    """

    def __init__(self, evaluator: Evaluator, name: str):
        self.name, self.episodes = name, evaluator.episodes
        self.features, resized, original = evaluator.store.encode_query(name)
        self.classes, device = evaluator.classes, evaluator.ranks.device
        self.class_name = evaluator.episodes.sampler.fold.name
        self.at_image_size = evaluator.cfg.Eval.ori_resize
        self.transform = evaluator.episodes.transform
        label = original if self.at_image_size else resized
        self.label = label.to(device)
        self.base_label = evaluator.episodes.base_mask(label).to(device)
        base_classes = evaluator.cfg.num_base_classes
        is_novel = (self.base_label == 0) & (self.label != 0)
        self.true_label = torch.where(is_novel, base_classes + 1, self.base_label)
        self.base_prediction: Tensor | None = None  # the same in all episodes of the query
        if not evaluator.model.has_base_learner:
            self.base_prediction = torch.zeros_like(self.base_label)  # background everywhere
        self.base_totals = ClassTotals(base_classes, device)
        self.keep_annotated = evaluator.episodes.keep_annotated
        # Four label maps, `base_prediction` among them: of one byte a pixel, or two.
        self.bytes = count_bytes(self.features.tensors()) + 4 * self.label.nbytes

    def resize(self, scores: Tensor) -> Tensor:
        """Resize scores [1,C,h,w] to the size at which they are compared with the label [C,H,W].

        This is the size of the image, or with `Eval.ori_resize` false that of the input.
        """
        if not self.at_image_size:
            return bilinear_ac(scores, self.transform.size)[0]
        height, width = self.label.shape
        return self.transform.to_image(scores, (height, width))

    def _target(self, class_id: int) -> Tensor:
        """Return 0, 1 and 255 for a class [H,W]; it has all its pixels where classes overlap."""
        label = self.label
        if self.episodes.source.has_layers(self.name):
            _, resized, original = self.episodes.load_pair(self.name, None, query_of=class_id)
            label = (original if self.at_image_size else resized).to(label.device)
        return binary_mask(label, class_id)

    def score(
        self, prediction: Prediction, row: int, task: Task, tally: Tally
    ) -> tuple[Tensor, Row]:
        """Count one episode, see `resize`; return target (0, 1, 255; [H,W]) and row.

        Only a right episode counts for the scores.
        """
        plan = task.plan
        target = self._target(plan.class_id)

        def resized(scores: Tensor) -> Tensor:
            return self.resize(scores[row : row + 1])

        scores = resized(prediction.final)
        final, meta = argmax_channels(scores), argmax_channels(resized(prediction.meta_logits))
        totals, index = tally.totals[task.seed], self.classes.index(plan.class_id)
        if task.control:
            found = [areas(final, target), areas(meta, target)]
        else:
            found = [
                totals.final.add(final, target, index),
                totals.meta.add(meta, target, index),
            ]
        there = presence(prediction.final[row], prediction.prior[row])
        record = make_row(task, self.class_name(plan.class_id), target, found, there)
        tally.rows.append(record)
        if task.control:
            return target, record
        totals.loss.add(scores, target)
        if self.base_prediction is None:
            base = argmax_channels(resized(prediction.base_logits))
            self.base_prediction = self.keep_annotated(base).to(self.base_label.dtype)
            self.base_totals.add(self.base_prediction, self.base_label)
        totals.base.totals += self.base_totals.totals
        totals.confusion.add(final, target, self.true_label, self.base_prediction, index)
        for values, prior in zip(resized(prediction.prior), totals.priors, strict=True):
            prior.add(values, target, index)
        return target, record
