"""Properties of the metrics, for any labels: they equal a confusion matrix, and they add up."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from model.constants import IGNORE
from util.evaluate.metrics import BinaryTotals, ClassTotals, ThresholdTotals

CPU = torch.device("cpu")
N = 5  # classes


@st.composite
def label_pairs(draw: st.DrawFn, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a prediction of 0..classes and a target of 0..classes and 255, of the same shape."""
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    target = st.one_of(st.integers(0, classes), st.just(IGNORE))
    return (
        draw(arrays.arrays(np.int64, shape, elements=st.integers(0, classes))),
        draw(arrays.arrays(np.int64, shape, elements=target)),
    )


def confusion(prediction: np.ndarray, target: np.ndarray, classes: int) -> np.ndarray:
    """Return the pixels by (truth, prediction), without those of 255."""
    kept = target != IGNORE
    matrix = np.zeros((classes + 1, classes + 1), np.int64)
    np.add.at(matrix, (target[kept], prediction[kept]), 1)
    return matrix


def areas(matrix: np.ndarray) -> np.ndarray:
    """Return intersection and union of each class of a confusion matrix, [classes, 2]."""
    hit = matrix.diagonal()
    return np.stack([hit, matrix.sum(0) + matrix.sum(1) - hit], axis=1)


@given(st.lists(label_pairs(N), min_size=1, max_size=4))
def test_base_totals_equal_a_confusion_matrix_and_add_up_over_shards(pairs: list) -> None:
    totals, matrix = ClassTotals(N, CPU), np.zeros((N + 1, N + 1), np.int64)
    shards = [ClassTotals(N, CPU) for _ in range(2)]
    for index, pair in enumerate(pairs):
        tensors = [torch.from_numpy(x) for x in pair]
        totals.add(*tensors)
        shards[index % 2].add(*tensors)
        matrix += confusion(*pair, N)
    there = [sum(int((target == c).sum()) for _, target in pairs) for c in range(N + 1)]
    assert totals.totals.tolist() == np.column_stack((areas(matrix), there)).tolist()
    assert torch.equal(totals.totals, shards[0].totals + shards[1].totals)
    present = [(i, u) for (i, u), n in zip(areas(matrix)[1:], there[1:], strict=True) if n]
    expected = np.mean([i / u for i, u in present]) if present else 0.0
    assert totals.miou() == pytest.approx(expected, rel=1e-12)


@given(st.lists(st.tuples(label_pairs(1), st.integers(0, N - 1)), min_size=1, max_size=5))
def test_binary_totals_equal_a_confusion_matrix_and_add_up_over_shards(episodes: list) -> None:
    totals, counts = BinaryTotals(N, CPU), np.zeros((N, 2, 2), np.int64)
    shards = [BinaryTotals(N, CPU) for _ in range(2)]
    for number, ((prediction, target), index) in enumerate(episodes):
        tensors = torch.from_numpy(prediction), torch.from_numpy(target)
        totals.add(*tensors, index)
        shards[number % 2].add(*tensors, index)
        counts[index] += areas(confusion(prediction, target, 1))
    assert totals.totals.tolist() == counts.tolist()
    assert torch.equal(totals.totals, shards[0].totals + shards[1].totals)
    iou = counts[:, 1, 0] / np.maximum(counts[:, 1, 1], 1)
    np.testing.assert_allclose(totals.class_iou().numpy(), iou, rtol=1e-12)
    both = counts.sum(0)
    parts = both[:, 0] / np.maximum(both[:, 1], 1)
    fb_iou = parts.mean(), parts[1]
    assert totals.fb_iou() == pytest.approx(fb_iou, rel=1e-12)


@given(label_pairs(1), st.integers(0, 2**32 - 1))
def test_predictions_on_ignored_pixels_do_not_count(pair: tuple, seed: int) -> None:
    prediction, target = pair
    other = prediction.copy()
    ignored = target == IGNORE
    other[ignored] = np.random.default_rng(seed).integers(0, 2, ignored.sum())
    values = [torch.from_numpy(x.astype(float)) for x in (prediction, other)]
    truth = torch.from_numpy(target)
    for kind in (BinaryTotals, ThresholdTotals):
        made = [kind(1, CPU) for _ in values]
        for totals, value in zip(made, values, strict=True):
            totals.add(value, truth, 0)
        assert torch.equal(made[0].totals, made[1].totals)
