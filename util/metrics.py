"""Intersections and unions as integers, and the scores made of them (method 7).

Totals are int64, so sums over ranks and over any order are equal to the last integer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from util import distributed

IGNORE = 255


def ratio(intersection: Tensor, union: Tensor) -> Tensor:
    """I / U in float64; 0 where nothing was seen (U = 0)."""
    return intersection.double() / union.clamp(min=1)


def labels(scores: Tensor) -> Tensor:
    """The best channel of scores [C,H,W] at each pixel [H,W]; on the CPU far faster than argmax."""
    return scores.max(0).indices


class BinaryTotals:
    """I and U of object and background, per class.

    Attributes:
        totals: int64 [classes, 2 (background, object), 2 (I, U)].
    """

    def __init__(self, classes: int, device: torch.device):
        self.totals = torch.zeros(classes, 2, 2, dtype=torch.int64, device=device)

    def add(self, prediction: Tensor, target: Tensor, index: int) -> None:
        """One episode of class `index`: prediction of 0 and 1, target of 0, 1, 255, both [H,W]."""
        valid = target != IGNORE
        for value in (0, 1):
            p, t = (prediction == value) & valid, target == value
            intersection, union = (p & t).sum(), (p | t).sum()
            self.totals[index, value] += torch.stack((intersection, union))

    def class_iou(self) -> Tensor:
        """Sum I / sum U of the object, per class."""
        return ratio(self.totals[:, 1, 0], self.totals[:, 1, 1])

    def fb_iou(self) -> float:
        """Mean of foreground and background IoU over all classes' sums."""
        both = self.totals.sum(0)
        return ratio(both[:, 0], both[:, 1]).mean().item()


class BaseTotals:
    """I and U of each base class.

    Attributes:
        totals: int64 [N + 1, 2 (I, U)], row 0 the background.
    """

    def __init__(self, classes: int, device: torch.device):
        self.totals = torch.zeros(classes + 1, 2, dtype=torch.int64, device=device)

    def add(self, prediction: Tensor, target: Tensor) -> None:
        """Maps of 0..N (target also 255), any equal shape."""
        valid = target != IGNORE
        p, t = prediction[valid].long(), target[valid].long()
        rows = len(self.totals)
        areas = [torch.bincount(x, minlength=rows) for x in (p[p == t], p, t)]
        self.totals[:, 0] += areas[0]
        self.totals[:, 1] += areas[1] + areas[2] - areas[0]

    def miou(self) -> float:
        """Mean IoU over the base classes that were seen (predicted or there); no background."""
        seen = self.totals[1:, 1] > 0
        iou = ratio(self.totals[1:, 0], self.totals[1:, 1])
        return iou[seen].mean().item() if seen.any() else 0.0


class ConfusionTotals:
    """Where the pixels of each novel class went, counted by base class.

    Column 0 is background, 1..N are the base classes, N + 1 is another novel class, N + 2 a hit.

    Attributes:
        totals: int64 [classes, 2, N + 3]. Row 0: the pixels predicted as the object, by what they
            are; row 1: the object's pixels, the missed ones by what the base learner says there.
    """

    def __init__(self, classes: int, base_classes: int, device: torch.device):
        self.novel, self.hit = base_classes + 1, base_classes + 2
        size = (classes, 2, base_classes + 3)
        self.totals = torch.zeros(size, dtype=torch.int64, device=device)

    def add(
        self, prediction: Tensor, target: Tensor, truth: Tensor, base: Tensor, index: int
    ) -> None:
        """One episode of class `index`, all [H,W].

        Args:
            prediction: 0 and 1.
            target: 0, 1, 255.
            truth: 0..N + 1, anything where the target is not 0.
            base: the base learner's labels, 0..N.
            index: of the class.
        """
        predicted = (prediction == 1) & (target != IGNORE)
        there = target == 1
        columns = torch.where(there, self.hit, truth.long())[predicted]
        missed = torch.where(predicted, self.hit, base.long())[there]
        for row, found in enumerate((columns, missed)):
            self.totals[index, row] += torch.bincount(found, minlength=self.hit + 1)


class ThresholdTotals:
    """What every threshold of a map in [0, 1] would score, from histograms of its values.

    Attributes:
        totals: int64 [classes, 2 (background, object), bins + 1].
    """

    BINS = 100

    def __init__(self, classes: int, device: torch.device):
        self.totals = torch.zeros(classes, 2, self.BINS + 1, dtype=torch.int64, device=device)

    def add(self, values: Tensor, target: Tensor, index: int) -> None:
        """One episode: values [H,W], target of 0, 1, 255 [H,W]."""
        bins = (values * self.BINS).long().clamp(0, self.BINS)
        for value in (0, 1):
            counts = torch.bincount(bins[target == value], minlength=self.BINS + 1)
            self.totals[index, value] += counts

    def best(self) -> tuple[float, Tensor, float]:
        """(threshold, class IoU, FB-IoU) where the mean over classes is highest.

        Object is where value >= threshold; the mean is over the classes that were seen.
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
    """mIoU, FB-IoU and IoU per class name, in percent."""

    miou: float
    fb_iou: float
    classes: dict[str, float]

    @staticmethod
    def of(iou: Tensor, fb_iou: float, names: list[str]) -> "Score":
        """Percentages of the IoU per class [classes] (in 0..1) and the FB-IoU."""
        per_class = {n: 100 * v for n, v in zip(names, iou.tolist(), strict=True)}
        return Score(100 * iou.mean().item(), 100 * fb_iou, per_class)


def object_iou(prediction: Tensor, target: Tensor) -> float:
    """IoU of the object in 0..1; prediction of 0 and 1, target of 0, 1, 255, both [H,W]."""
    hit = ((prediction == 1) & (target == 1)).sum()
    union = ((prediction == 1) & (target != IGNORE) | (target == 1)).sum()
    return ratio(hit, union).item()


Totals = BinaryTotals | BaseTotals | ConfusionTotals | ThresholdTotals


def sum_over_ranks(*totals: Totals) -> None:
    """Adds up the totals of all ranks, in place."""
    for each in totals:
        distributed.all_reduce_sum(each.totals)
