"""Intersections and unions in pixels, and the scores computed from them (method 7).

Counts are int64: sums over ranks, in any order, are exact. I is an intersection, U a union.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.constants import IGNORE
from util.runtime import distributed


def ratio(intersection: Tensor, union: Tensor) -> Tensor:
    """Return I / U in float64; 0 where U is 0."""
    return intersection.double() / union.clamp(min=1)


def argmax_channels(scores: Tensor) -> Tensor:
    """Return scores [C,H,W].argmax(0), [H,W]: the first of equal channels, faster on a CPU."""
    if len(scores) == 2:
        return (scores[1] > scores[0]).long()
    return scores.max(0).indices


def histogram(cells: Tensor, size: int) -> Tensor:
    """Count each of 0..size - 1 in a tensor of integers >= 0; larger values are ignored."""
    return torch.bincount(cells.flatten(), minlength=size)[:size]


def areas(prediction: Tensor, target: Tensor) -> Tensor:
    """Return I and U of background and object, [2 (background, object), 2 (I, U)].

    The prediction is 0 and 1; the target, of the same shape, 0, 1 and 255 (ignored).
    """
    right, false, missed, hit = histogram(2 * target.int() + prediction.int(), 4)
    wrong = false + missed
    return torch.stack((right, right + wrong, hit, hit + wrong)).view(2, 2)


class BinaryTotals:
    """I and U for each class: `totals`, int64 [classes, 2 (background, object), 2 (I, U)]."""

    def __init__(self, classes: int, device: torch.device):
        self.totals = torch.zeros(classes, 2, 2, dtype=torch.int64, device=device)

    def add(self, prediction: Tensor, target: Tensor, index: int) -> Tensor:
        """Count one episode of class `index`; return its `areas`."""
        found = areas(prediction, target)
        self.totals[index] += found
        return found

    def class_iou(self) -> Tensor:
        """Return sum of I / sum of U of the object, for each class [classes]."""
        return ratio(self.totals[:, 1, 0], self.totals[:, 1, 1])

    def fb_iou(self) -> float:
        """Return the mean of background and foreground IoU, each from sums over all classes."""
        both = self.totals.sum(0)
        return ratio(both[:, 0], both[:, 1]).mean().item()


class BaseTotals:
    """I and U of each base class: `totals`, int64 [N + 1, 2 (I, U)], row 0 the background."""

    def __init__(self, classes: int, device: torch.device):
        self.totals = torch.zeros(classes + 1, 2, dtype=torch.int64, device=device)

    def add(self, prediction: Tensor, target: Tensor) -> None:
        """Count labels 0..N (target also 255, ignored), of equal shape."""
        rows = len(self.totals)
        counts = histogram(target.int() * rows + prediction.int(), rows * rows).view(rows, rows)
        hits = counts.diagonal()
        self.totals[:, 0] += hits
        self.totals[:, 1] += counts.sum(0) + counts.sum(1) - hits

    def miou(self) -> float:
        """Return the mean IoU of the base classes with U > 0, without background."""
        seen = self.totals[1:, 1] > 0
        iou = ratio(self.totals[1:, 0], self.totals[1:, 1])
        return iou[seen].mean().item() if seen.any() else 0.0


class ConfusionTotals:
    """Confusion of each novel class with the base classes: `totals`, int64 [classes, 2, N + 3].

    Row 0 counts the pixels predicted as the object, by their true label; row 1 the object's pixels,
    missed ones by the base learner's label. Column 0 is background, 1..N base classes, N + 1
    another novel class, N + 2 a hit.
    """

    def __init__(self, classes: int, base_classes: int, device: torch.device):
        self.hit = base_classes + 2
        size = (classes, 2, base_classes + 3)
        self.totals = torch.zeros(size, dtype=torch.int64, device=device)

    def add(
        self, prediction: Tensor, target: Tensor, truth: Tensor, base: Tensor, index: int
    ) -> None:
        """Count one episode of novel class `index`; all maps are [H,W].

        `prediction` is 0 and 1, `target` 0, 1 and 255, `base` the base learner's prediction, 0..N.
        `truth`, true labels 0..N + 1, counts only where the target is 0.
        """
        predicted = (prediction == 1) & (target != IGNORE)
        is_object, ignored = target == 1, self.hit + 1
        true_label = torch.where(is_object, self.hit, truth.int())
        taken_for = torch.where(predicted, self.hit, base.int())
        for row, (pixels, values) in enumerate(((predicted, true_label), (is_object, taken_for))):
            counted = torch.where(pixels, values, ignored)
            self.totals[index, row] += histogram(counted, ignored)


class ThresholdTotals:
    """Histograms of a map in 0..1, from which the scores at every threshold follow.

    They are `totals`, int64 [classes, 2 (background, object), bins + 1].
    """

    BINS = 100

    def __init__(self, classes: int, device: torch.device):
        self.totals = torch.zeros(classes, 2, self.BINS + 1, dtype=torch.int64, device=device)

    def add(self, values: Tensor, target: Tensor, index: int) -> None:
        """Count one episode of class `index`: values [H,W], target of 0, 1 and 255 [H,W]."""
        bins, count = (values * self.BINS).int().clamp_(0, self.BINS), self.BINS + 1
        self.totals[index] += histogram(target.int() * count + bins, 2 * count).view(2, count)

    def best(self) -> tuple[float, Tensor, float]:
        """Return the threshold with the highest mean IoU, its IoU [classes] and its FB-IoU.

        The object is where value >= threshold; the mean is over classes with object pixels.
        """
        above = self.totals.flip(-1).cumsum(-1).flip(-1)  # pixels at or above each threshold
        total = self.totals.sum(-1, keepdim=True)
        union = total[:, 1] + above[:, 0]
        iou = ratio(above[:, 1], union)  # [classes, bins + 1]
        seen = total[:, 1, 0] > 0
        best = int(iou[seen].mean(0).argmax()) if seen.any() else 0
        below = (total - above)[..., best].sum(0)
        foreground = ratio(above[:, 1, best].sum(), union[:, best].sum())
        background = ratio(below[0], total[:, 0].sum() + below[1])
        return best / self.BINS, iou[:, best], ((foreground + background) / 2).item()


@dataclass
class Score:
    """mIoU, FB-IoU and the IoU of each class by name, in percent."""

    miou: float
    fb_iou: float
    classes: dict[str, float]

    @staticmethod
    def of(iou: Tensor, fb_iou: float, names: list[str]) -> "Score":
        """Convert IoU [classes] and FB-IoU, both in 0..1, to percent."""
        per_class = {n: 100 * v for n, v in zip(names, iou.tolist(), strict=True)}
        return Score(100 * iou.mean().item(), 100 * fb_iou, per_class)


def object_iou(prediction: Tensor, target: Tensor) -> float:
    """Return the object's IoU in 0..1: prediction of 0 and 1, target of 0, 1 and 255, [H,W]."""
    return ratio(*areas(prediction, target)[1]).item()


def sum_over_ranks(*totals: BinaryTotals | BaseTotals | ConfusionTotals | ThresholdTotals) -> None:
    """Sum the counts over all ranks, in place."""
    for each in totals:
        distributed.all_reduce_sum(each.totals)
