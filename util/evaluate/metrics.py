"""Intersections and unions in pixels, and the scores computed from them (method 7).

Counts are int64: sums over ranks, in any order, are exact. I is an intersection, U a union.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from model.constants import IGNORE
from model.device import is_accelerator
from util.runtime import distributed

COMPARED = 16  # most values that an accelerator counts by comparing: `bincount` waits for it


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
    if is_accelerator(cells) and size <= COMPARED:
        values = torch.arange(size, device=cells.device)
        return (cells.flatten() == values[:, None]).sum(1)
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

    def fb_iou(self) -> tuple[float, float]:
        """Return FB-IoU, the mean of background and object IoU, and pIoU, that of the object.

        Each is taken from sums over all classes, in 0..1.
        """
        both = self.totals.sum(0)
        background_and_object = ratio(both[:, 0], both[:, 1])
        return background_and_object.mean().item(), background_and_object[1].item()


def label_areas(prediction: Tensor, target: Tensor, labels: int) -> Tensor:
    """Return I, U and the target's pixels of each label, int64 [labels, 3].

    Prediction and target, of equal shape, hold 0..labels-1; the target also 255 (ignored, also
    if there are more labels than that).
    """
    cells = target.int() * labels + prediction.int()
    counts = histogram(cells, labels * labels).view(labels, labels)
    counts[IGNORE : IGNORE + 1] = 0  # nothing, of up to 255 labels: 255 is beyond the histogram
    hits = counts.diagonal()
    there = counts.sum(1)
    return torch.stack((hits, counts.sum(0) + there - hits, there), dim=1)


class ClassTotals:
    """I, U and the target's pixels of each label: `totals`, int64 [N + 1, 3]; row 0: background."""

    def __init__(self, classes: int, device: torch.device):
        self.totals = torch.zeros(classes + 1, 3, dtype=torch.int64, device=device)

    def copy(self) -> "ClassTotals":
        """Return a copy."""
        new = ClassTotals(len(self.totals) - 1, self.totals.device)
        new.totals += self.totals
        return new

    def add(self, prediction: Tensor, target: Tensor) -> None:
        """Count labels 0..N (target also 255, ignored), of equal shape."""
        self.totals += label_areas(prediction, target, len(self.totals))

    def class_iou(self) -> Tensor:
        """Return the IoU of each class [N] in 0..1; NaN for one that no target holds."""
        iou = ratio(self.totals[1:, 0], self.totals[1:, 1])
        return torch.where(self.totals[1:, 2] > 0, iou, torch.nan)

    def miou(self) -> float:
        """Return the mean IoU over the classes that a target holds, without background; 0..1."""
        iou = self.class_iou()
        return iou.nanmean().item() if not iou.isnan().all() else 0.0

    def mean_scores(self) -> tuple[float, float, float]:
        """Return mIoU, mean accuracy, both over labels that are there, and accuracy; 0..1.

        The background is a label, too, as in the published logs of training.
        """
        hits, union, there = self.totals[self.totals[:, 2] > 0].T
        if not len(there):
            return 0.0, 0.0, 0.0
        iou, recall = (ratio(hits, whole).mean().item() for whole in (union, there))
        return iou, recall, accuracy(self.totals).item()


def accuracy(areas: Tensor) -> Tensor:
    """Return the share of the labeled pixels that are right, of `label_areas`; 0 without any."""
    return areas[:, 0].sum() / areas[:, 2].sum().clamp(min=1)


class LossTotals:
    """Cross-entropy of images: `totals`, int64 [2 (sum, number of images)].

    The sum is in units of 1 / `UNIT`, so sums over ranks, in any order, are exact.
    """

    UNIT = 2**32

    def __init__(self, device: torch.device):
        self.totals = torch.zeros(2, dtype=torch.int64, device=device)

    def add(self, scores: Tensor, target: Tensor) -> None:
        """Count an image: the mean over its labeled pixels, 0 without any.

        The target [H,W] of scores [C,H,W] holds 0..C-1, and 255, which is left out.
        """
        scores, target = scores[None].float(), target[None].long()
        total = F.cross_entropy(scores, target, ignore_index=IGNORE, reduction="sum").double()
        self.totals[0] += (self.UNIT * total / (target != IGNORE).sum().clamp(min=1)).round().long()
        self.totals[1] += 1

    def mean(self) -> float:
        """Return the mean over the images, 0 without any."""
        total, images = self.totals.tolist()
        return total / self.UNIT / max(1, images)


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

    def best(self) -> tuple[float, Tensor, tuple[float, float]]:
        """Return the threshold with the highest mean IoU, its IoU [classes], its FB-IoU and pIoU.

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
        both = ((foreground + background) / 2).item(), foreground.item()
        return best / self.BINS, iou[:, best], both


@dataclass
class Score:
    """mIoU, FB-IoU, pIoU (its object part) and the IoU of each class by name, in percent."""

    miou: float
    fb_iou: float
    p_iou: float
    classes: dict[str, float]

    @staticmethod
    def of(iou: Tensor, both: tuple[float, float], names: list[str]) -> "Score":
        """Convert IoU [classes], FB-IoU and pIoU, all in 0..1, to percent."""
        per_class = {n: 100 * v for n, v in zip(names, iou.tolist(), strict=True)}
        return Score(100 * iou.mean().item(), 100 * both[0], 100 * both[1], per_class)


def object_iou(prediction: Tensor, target: Tensor) -> float:
    """Return the object's IoU in 0..1: prediction of 0 and 1, target of 0, 1 and 255, [H,W]."""
    return ratio(*areas(prediction, target)[1]).item()


class Totals(Protocol):
    """Counts that can be added."""

    totals: Tensor


def sum_over_ranks(*totals: Totals) -> None:
    """Sum the counts over all ranks, in place."""
    for each in totals:
        distributed.all_reduce_sum(each.totals)
