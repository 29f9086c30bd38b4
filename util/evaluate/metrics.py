"""Intersections and unions as integers, and the scores made of them (method 7).

Totals are int64, so sums over ranks and over any order are equal to the last integer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.constants import IGNORE
from util.runtime import distributed


def ratio(intersection: Tensor, union: Tensor) -> Tensor:
    """I / U in float64; 0 where nothing was seen (U = 0)."""
    return intersection.double() / union.clamp(min=1)


def argmax_channels(scores: Tensor) -> Tensor:
    """The best channel of scores [C,H,W] at each pixel [H,W], the first of equal ones: `argmax`,
    which takes the CPU far longer."""
    if len(scores) == 2:
        return (scores[1] > scores[0]).long()
    return scores.max(0).indices


def histogram(cells: Tensor, size: int) -> Tensor:
    """How often each of 0..size - 1 is in a tensor of integers >= 0; larger ones are left out."""
    return torch.bincount(cells.flatten(), minlength=size)[:size]


def areas(prediction: Tensor, target: Tensor) -> Tensor:
    """I and U of background and object, [2 (background, object), 2 (I, U)].

    Args:
        prediction: 0 and 1.
        target: 0, 1 and 255 (left out), of the same shape.
    """
    right, false, missed, hit = histogram(2 * target.int() + prediction.int(), 4)
    wrong = false + missed
    return torch.stack((right, right + wrong, hit, hit + wrong)).view(2, 2)


class BinaryTotals:
    """I and U of object and background, per class.

    Attributes:
        totals: int64 [classes, 2 (background, object), 2 (I, U)].
    """

    def __init__(self, classes: int, device: torch.device):
        self.totals = torch.zeros(classes, 2, 2, dtype=torch.int64, device=device)

    def add(self, prediction: Tensor, target: Tensor, index: int) -> Tensor:
        """One episode of class `index`; returns its `areas`."""
        found = areas(prediction, target)
        self.totals[index] += found
        return found

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
        rows = len(self.totals)
        counts = histogram(target.int() * rows + prediction.int(), rows * rows).view(rows, rows)
        hits = counts.diagonal()
        self.totals[:, 0] += hits
        self.totals[:, 1] += counts.sum(0) + counts.sum(1) - hits

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
        self.hit = base_classes + 2
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
        there, elsewhere = target == 1, self.hit + 1
        columns = torch.where(there, self.hit, truth.int())
        missed = torch.where(predicted, self.hit, base.int())
        for row, (pixels, values) in enumerate(((predicted, columns), (there, missed))):
            found = torch.where(pixels, values, elsewhere)
            self.totals[index, row] += histogram(found, elsewhere)


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
        bins, count = (values * self.BINS).int().clamp_(0, self.BINS), self.BINS + 1
        self.totals[index] += histogram(target.int() * count + bins, 2 * count).view(2, count)

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
    return ratio(*areas(prediction, target)[1]).item()


Totals = BinaryTotals | BaseTotals | ConfusionTotals | ThresholdTotals


def sum_over_ranks(*totals: Totals) -> None:
    """Adds up the totals of all ranks, in place."""
    for each in totals:
        distributed.all_reduce_sum(each.totals)
