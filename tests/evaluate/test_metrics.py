"""Scores are what counting pixels gives."""

import numpy as np
import pytest
import torch

from util.evaluate.metrics import (
    BinaryTotals,
    ClassTotals,
    ConfusionTotals,
    Score,
    ThresholdTotals,
    argmax_channels,
    object_iou,
    sum_over_ranks,
)
from util.runtime import distributed

CPU = torch.device("cpu")
CLASSES = 4
Episode = tuple[np.ndarray, np.ndarray, int]


def random_target(rng: np.random.Generator, values: int) -> np.ndarray:
    """A map of 0..values-1 and 255; sizes differ, as those of images do."""
    target = rng.integers(0, values, size=rng.integers(5, 30, size=2))
    target[rng.random(target.shape) < 0.2] = 255
    return target


@pytest.fixture
def episodes() -> list[Episode]:
    """(values in [0, 1], target of 0, 1, 255, class): class 2 is never asked for."""
    rng = np.random.default_rng(0)
    made = []
    for index in (0, 1, 3, 1, 0, 3, 3):
        target = random_target(rng, 2)
        skill = 0.2 * (1 + index)  # a class's object is so much brighter
        values = np.clip(rng.random(target.shape) * 0.8 + skill * (target == 1) * 0.5, 0, 1)
        made.append((values, target, index))
    made.append((np.array([[0.0, 1.0, 1.0, 0.0]]), np.array([[0, 1, 0, 1]]), 0))
    return made


def brute_force(
    episodes: list[Episode], threshold: float
) -> tuple[np.ndarray, tuple[float, float]]:
    """(IoU per class, FB-IoU and pIoU) of all labelled pixels; object: value >= threshold."""
    counts = np.zeros((CLASSES, 2, 2), dtype=int)  # class, background or object, I and U
    for values, target, index in episodes:
        predicted, truth = (values >= threshold)[target != 255], target[target != 255] == 1
        for which in (False, True):
            p, t = predicted == which, truth == which
            counts[index, int(which)] += (p & t).sum(), (p | t).sum()
    iou = counts[:, 1, 0] / np.maximum(counts[:, 1, 1], 1)
    both = counts.sum(0)
    parts = both[:, 0] / both[:, 1]
    return iou, (parts.mean(), parts[1])


@pytest.mark.parametrize("channels", [2, 16])
def test_argmax_takes_the_first_of_equal_channels(channels: int) -> None:
    scores = torch.from_numpy(np.random.default_rng(2).integers(0, 4, (channels, 40, 30))).float()
    assert np.array_equal(argmax_channels(scores).numpy(), scores.numpy().argmax(0))


def test_intersection_and_union_ignore_255() -> None:
    totals = BinaryTotals(2, CPU)
    prediction = torch.tensor([[1, 1, 1, 0, 0, 0]])
    target = torch.tensor([[1, 0, 255, 1, 0, 255]])
    totals.add(prediction, target, 1)
    assert totals.totals.tolist() == [[[0, 0], [0, 0]], [[1, 3], [1, 3]]]
    assert totals.totals.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_class_iou_and_fb_iou_equal_those_of_counting_pixels(
    episodes: list[Episode], dtype: torch.dtype
) -> None:
    totals = BinaryTotals(CLASSES, CPU)
    for values, target, index in episodes:
        prediction = torch.from_numpy((values >= 0.5).astype(int))
        totals.add(prediction, torch.from_numpy(target).to(dtype), index)
    iou, fb_iou = brute_force(episodes, 0.5)
    np.testing.assert_allclose(totals.class_iou(), iou, rtol=1e-12)
    assert totals.fb_iou() == pytest.approx(fb_iou, rel=1e-12)
    assert iou[2] == 0 and (iou[[0, 1, 3]] > 0).all()


def test_best_threshold_is_the_best_of_all_thresholds(episodes: list[Episode]) -> None:
    totals = ThresholdTotals(CLASSES, CPU)
    for values, target, index in episodes:
        totals.add(torch.from_numpy(values), torch.from_numpy(target), index)
    tried = [brute_force(episodes, k / 100) for k in range(101)]
    means = [iou[[0, 1, 3]].mean() for iou, _ in tried]
    best = int(np.argmax(means))
    assert 0 < best < 100

    threshold, iou, fb_iou = totals.best()
    assert threshold == best / 100
    np.testing.assert_allclose(iou, tried[best][0], rtol=1e-12)
    assert fb_iou == pytest.approx(tried[best][1], rel=1e-12)


def test_best_threshold_without_an_episode_scores_zero() -> None:
    threshold, iou, fb_iou = ThresholdTotals(CLASSES, CPU).best()
    assert (threshold, iou.tolist(), fb_iou) == (0.0, [0.0] * CLASSES, (0.0, 0.0))


def test_base_miou_leaves_out_background_and_absent_classes() -> None:
    rng = np.random.default_rng(1)
    totals, areas = ClassTotals(5, CPU), np.zeros((6, 3), dtype=int)
    for _ in range(4):
        target = random_target(rng, 4)  # classes 4 and 5 are nowhere ...
        prediction = np.where(rng.random(target.shape) < 0.5, target, 0)
        prediction[0, 0], target[0, 0] = 4, 1  # ... and 4 is predicted
        prediction[prediction == 255] = 2
        totals.add(torch.from_numpy(prediction), torch.from_numpy(target))
        for c in range(6):
            p, t, valid = prediction == c, target == c, target != 255
            areas[c] += (p & t & valid).sum(), ((p | t) & valid).sum(), (t & valid).sum()
    assert totals.totals.tolist() == areas.tolist()
    expected = areas[1:4, 0] / areas[1:4, 1]
    assert areas[4].tolist() == [0, 4, 0] and areas[5].tolist() == [0, 0, 0]
    assert totals.miou() == pytest.approx(expected.mean(), rel=1e-12)
    np.testing.assert_allclose(totals.class_iou(), [*expected, np.nan, np.nan], rtol=1e-12)
    iou, accuracy = (areas[:4, 0] / areas[:4, column] for column in (1, 2))
    wanted = iou.mean(), accuracy.mean(), areas[:, 0].sum() / areas[:, 2].sum()
    assert totals.mean_scores() == pytest.approx(wanted, rel=1e-6)


def test_base_miou_without_an_image_is_zero() -> None:
    assert ClassTotals(5, CPU).miou() == 0.0
    assert ClassTotals(5, CPU).mean_scores() == (0.0, 0.0, 0.0)


def test_confusion_equals_that_of_counting_pixels() -> None:
    rng = np.random.default_rng(3)
    base_classes, totals = 4, ConfusionTotals(CLASSES, 4, CPU)
    counted = np.zeros((CLASSES, 2, base_classes + 3), dtype=int)
    sums = np.zeros((CLASSES, 2), dtype=int)
    for index in (0, 2, 2, 1):
        target = random_target(rng, 2)
        shape = target.shape
        prediction, base = rng.integers(0, 2, shape), rng.integers(0, base_classes + 1, shape)
        truth = np.where(target == 0, rng.integers(0, base_classes + 2, shape), target)
        maps = (torch.from_numpy(x) for x in (prediction, target, truth.astype(np.uint8), base))
        totals.add(*maps, index)
        flat = (x.flat for x in (prediction, target, truth, base))
        for p, t, true, seen in zip(*flat, strict=True):
            if t == 255:
                continue
            if p:
                counted[index, 0, base_classes + 2 if t else true] += 1
            if t:
                counted[index, 1, base_classes + 2 if p else seen] += 1
        valid = target != 255
        sums[index] += ((prediction == 1) & valid).sum(), (target == 1).sum()
    assert totals.totals.tolist() == counted.tolist()
    assert counted.sum(-1).tolist() == sums.tolist()
    assert (counted[0] > 0).sum() > 8 and not counted[3].any()


def test_iou_of_an_episode_counts_labeled_pixels_only() -> None:
    prediction, target = torch.tensor([[1, 1, 1, 0, 0]]), torch.tensor([[1, 0, 255, 1, 0]])
    assert object_iou(prediction, target) == pytest.approx(1 / 3)
    assert object_iou(torch.zeros(1, 2), torch.tensor([[0, 255]])) == 0.0


def test_score_is_in_percent_by_class_name() -> None:
    score = Score.of(torch.tensor([0.5, 0.25]).double(), (0.75, 0.5), ["cat", "sofa"])
    assert score == Score(37.5, 75.0, 50.0, {"cat": 50.0, "sofa": 25.0})


def test_totals_of_one_process_stay_unchanged_by_the_sum_over_ranks(
    episodes: list[Episode],
) -> None:
    totals = BinaryTotals(CLASSES, CPU)
    values, target, index = episodes[0]
    totals.add(torch.from_numpy(values > 0.5), torch.from_numpy(target), index)
    before = totals.totals.clone()
    sum_over_ranks(totals, ClassTotals(3, CPU))
    assert torch.equal(totals.totals, before)


def test_totals_are_summed_over_the_ranks(
    episodes: list[Episode], monkeypatch: pytest.MonkeyPatch
) -> None:
    totals, base = BinaryTotals(CLASSES, CPU), ClassTotals(3, CPU)
    values, target, index = episodes[0]
    prediction = torch.from_numpy(values > 0.5)
    totals.add(prediction, torch.from_numpy(target), index)
    base.add(prediction, torch.from_numpy(target))
    before = [each.totals.clone() for each in (totals, base)]
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda tensor: tensor.mul_(3))
    sum_over_ranks(totals, base)
    for each, own in zip((totals, base), before, strict=True):
        assert own.any() and torch.equal(each.totals, 3 * own)
