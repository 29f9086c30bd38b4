"""The evaluator of train.py and test.py: episodes -> `Scores` (method 7)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from model import AMFormer, Prediction
from model.resize import bilinear_ac
from util import speed
from util.config import Config
from util.data import EpisodeDataset, EpisodePlan, binary_mask
from util.evaluate.metrics import ClassTotals, argmax_channels, ratio
from util.evaluate.order import EvaluationOrder, Task, evaluation_order
from util.evaluate.scores import Scores, ScoreTotals
from util.features import FeatureStore, count_bytes
from util.folds import fold_of
from util.runtime import Ranks, distributed, timed


@dataclass
class EvaluatedEpisode:
    """One evaluated episode, for pictures."""

    plan: EpisodePlan
    prediction: Prediction  # of the episodes that ran together
    row: int  # of this episode in the prediction
    target: Tensor  # 0, 1 and 255 at the size of the comparison [H,W]
    iou: float  # of the object at that size, 0..1
    resize: Callable[[Tensor], Tensor]  # scores [1,C,h,w] to that size, [C,H,W]


class Evaluator:
    """Scores a model on the first episodes of some seeds; keeps features between runs.

    A query is encoded once and kept while its episodes run. It stays for the next run if all
    queries together need at most half of `Eval.cache_gb`. Supports have the rest.
    """

    def __init__(self, model: AMFormer, episodes: EpisodeDataset, cfg: Config, ranks: Ranks):
        self.model, self.episodes, self.cfg, self.ranks = model, episodes, cfg, ranks
        self.store = FeatureStore(model.encoder, episodes, cfg.Eval.cache_gb)
        self._queries: dict[str, QueryScorer] = {}
        fold = episodes.sampler.fold
        self.classes = sorted(fold.by_class)  # the novel classes with enough images
        self.names = [fold.name(c) for c in self.classes]
        learned = fold_of(cfg.Data).learned  # COCO's fold, for a model of COCO tested on PASCAL
        self.base_names = [learned.names[c - 1] for c in learned.base]

    def order(self, count: int, seeds: Sequence[int]) -> EvaluationOrder:
        """Return this rank's share of episodes 0..count-1 of every seed."""
        sampler, size = self.episodes.sampler, self.cfg.Eval.batch_size
        return evaluation_order(sampler, count, seeds, self.ranks, size)

    @timed("evaluation")
    @torch.no_grad()
    def run(
        self,
        order: EvaluationOrder,
        *,
        on_progress: Callable[[int], None] | None = None,
        on_episode: Callable[[EvaluatedEpisode], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> dict[int, Scores]:
        """Return the scores over all ranks by seed, {} if stopped; every rank has to call this.

        `on_progress` gets the number of episodes that are done on this rank, `on_episode` each of
        them, see `visualize.Gallery`. `stop` is asked after each episode; it stops all ranks. The
        model's mode is restored.
        """
        was_training = self.model.training
        if not self.cfg.Method.fix_bn:  # ranks have learned different batch norm statistics
            distributed.broadcast_parameters(self.model)
        self.model.eval()
        count, device = self.cfg.num_base_classes, self.ranks.device
        totals = {seed: ScoreTotals(len(self.classes), count, device) for seed in order.seeds}
        try:
            with speed.autocast(self.cfg.Eval.precision, device):
                for done, (query, prediction, row, task) in enumerate(self._predict(order)):
                    target, iou = query.score(prediction, row, task.plan, totals[task.seed])
                    if on_episode:
                        on_episode(
                            EvaluatedEpisode(task.plan, prediction, row, target, iou, query.resize)
                        )
                    if on_progress:
                        on_progress(done + 1)
                    if stop and stop():
                        break
        finally:
            self.model.train(was_training)
        if stop and distributed.any_rank([stop()], self.ranks)[0]:
            return {}
        names = self.names, self.base_names
        return {seed: total.scores(*names, order.count) for seed, total in totals.items()}

    def _predict(
        self, order: EvaluationOrder
    ) -> Iterator[tuple["QueryScorer", Prediction, int, Task]]:
        """Yield for each episode its query, the prediction of its batch, its row, its task."""
        count = len(self._queries.keys() | {group[0].plan.query for group in order.groups})
        for name, groups in groupby(order.groups, key=lambda group: group[0].plan.query):
            query = self._query(name, count)
            for group in groups:
                supports, kshot = self.store.supports([t.plan for t in group]), self.cfg.Eval.kshot
                prediction = self.model.match(query.features, supports, kshot=kshot)
                for row, task in enumerate(group):
                    yield query, prediction, row, task

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
        self.features, resized, original = evaluator.store.encode_query(name)
        self.classes, device = evaluator.classes, evaluator.ranks.device
        self.at_image_size = evaluator.cfg.Eval.ori_resize
        self.transform = evaluator.episodes.transform
        label = original if self.at_image_size else resized
        self.label = label.to(device)
        self.base_label = evaluator.episodes.base_mask(label).to(device)
        base_classes = evaluator.cfg.num_base_classes
        is_novel = (self.base_label == 0) & (self.label != 0)
        self.true_label = torch.where(is_novel, base_classes + 1, self.base_label)
        self.base_prediction: Tensor | None = None  # the same in all episodes of the query
        self.base_totals = ClassTotals(base_classes, device)
        self.keep_annotated = evaluator.episodes.keep_annotated
        # Four label maps of one byte a pixel, `base_prediction` among them.
        self.bytes = count_bytes(self.features.tensors()) + 4 * self.label.numel()

    def resize(self, scores: Tensor) -> Tensor:
        """Resize scores [1,C,h,w] to the size at which they are compared with the label [C,H,W].

        This is the size of the image, or with `Eval.ori_resize` false that of the input.
        """
        if not self.at_image_size:
            return bilinear_ac(scores, self.transform.size)[0]
        height, width = self.label.shape
        return self.transform.to_image(scores, (height, width))

    def score(
        self, prediction: Prediction, row: int, plan: EpisodePlan, totals: ScoreTotals
    ) -> tuple[Tensor, float]:
        """Count one episode, see `resize`; return target (0, 1, 255; [H,W]) and IoU (0..1)."""
        target = binary_mask(self.label, plan.class_id)
        index = self.classes.index(plan.class_id)

        def resized(scores: Tensor) -> Tensor:
            return self.resize(scores[row : row + 1])

        scores = resized(prediction.final)
        totals.loss.add(scores, target)
        final = argmax_channels(scores)
        [_, areas] = totals.final.add(final, target, index)
        totals.meta.add(argmax_channels(resized(prediction.logits[-1])), target, index)
        if self.base_prediction is None:
            base = argmax_channels(resized(prediction.base_logits))
            self.base_prediction = self.keep_annotated(base).byte()
            self.base_totals.add(self.base_prediction, self.base_label)
        totals.base.totals += self.base_totals.totals
        totals.confusion.add(final, target, self.true_label, self.base_prediction, index)
        for values, prior in zip(resized(prediction.prior), totals.priors, strict=True):
            prior.add(values, target, index)
        return target, ratio(*areas).item()
