"""Presence: AUROC, threshold and shares equal their literal definitions, ties included."""

from itertools import product

import numpy as np
import pytest
import torch

from util.evaluate.presence import (
    absent_line,
    absent_scores,
    auroc,
    calibrate,
    presence,
)


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties; the present ones are higher on average."""
    rng = np.random.default_rng(seed)
    return rng.integers(2, 9, rng.integers(1, 30)) / 8, rng.integers(0, 7, rng.integers(1, 30)) / 8


def test_presence_is_the_largest_lead_and_the_similarity_of_a_tenth_of_the_positions() -> None:
    final = torch.zeros(2, 3, 5)
    final[0], final[1, 1, 2], final[1, 0, 0] = 0.5, 0.75, 0.625
    prior = torch.zeros(2, 3, 5)
    prior[1] = 9.0  # from f4: not used
    assert presence(final, prior) == 0.25
    prior[0, 0, 1], prior[0, 2, 2], prior[0, 1, 1] = 0.5, 0.75, 0.25
    assert presence(final, prior) == 0.25 + (0.75 + 0.5) / 2  # 2 of 15 positions
    assert presence(final.flip(0), prior * 0) == 0.5


@pytest.mark.parametrize("seed", range(20))
def test_auroc_is_the_share_of_pairs_in_the_right_order(seed: int) -> None:
    present, absent = drawn(seed)
    pairs = [(p > a) + (p == a) / 2 for p, a in product(present, absent)]
    assert auroc(present, absent) == pytest.approx(np.mean(pairs), abs=1e-15)


def test_auroc_of_known_cases() -> None:
    low, high = np.array([0.1, 0.2]), np.array([0.3, 0.4])
    assert auroc(high, low) == 1.0 and auroc(low, high) == 0.0 and auroc(low, low) == 0.5


def balanced(threshold: float, present: np.ndarray, absent: np.ndarray) -> float:
    return ((present >= threshold).mean() + (absent < threshold).mean()) / 2


@pytest.mark.parametrize("seed", range(20))
def test_calibrated_threshold_has_the_best_balanced_accuracy(seed: int) -> None:
    present, absent = drawn(seed)
    every = np.linspace(-0.1, 1.2, 2000)
    best = max(balanced(t, present, absent) for t in every)
    threshold = calibrate(present, absent)
    assert balanced(threshold, present, absent) == pytest.approx(best, abs=1e-12)


def test_calibrated_threshold_lies_between_two_scores() -> None:
    assert calibrate(np.array([0.5, 0.75]), np.array([0.0, 0.25])) == 0.375
    assert calibrate(np.array([0.5]), np.array([0.5])) == 0.5


def row(control: str, score: float, wrong: int = 0) -> dict:
    areas = {"final_u": wrong, "final_bg_u": 200, "meta_u": 2 * wrong, "meta_bg_u": 200}
    return {"control": control, "presence": score, **areas}


ROWS = [
    *(row("", score) for score in (0.9, 0.8, 0.3)),
    *(row("absent", score, wrong) for score, wrong in ((0.1, 0), (0.2, 20), (0.85, 40))),
    row("other_class", 5.0),
]


def test_scores_of_absent_objects_by_hand() -> None:
    stored = absent_scores(ROWS, 2, 0.5)
    assert stored["auroc"] == pytest.approx(100 * 7 / 9)
    assert stored["false_positive_area"] == {"final": pytest.approx(10), "meta": pytest.approx(20)}
    assert stored["absent_found_absent"] == pytest.approx(200 / 3)
    assert stored["present_found_present"] == pytest.approx(200 / 3)
    assert (stored["threshold"], stored["threshold_of"]) == (0.5, "checkpoint")
    assert (stored["episodes"], stored["left_out"]) == (3, 2)
    own = absent_scores(ROWS, 0, None)
    assert (own["threshold"], own["threshold_of"]) == (0.25, "these episodes")
    assert own["present_found_present"] == 100.0
    assert "calibrated on these episodes" in absent_line(own)
    assert "of the checkpoint" in absent_line(stored) and "2 left out" in absent_line(stored)


def test_without_an_absent_episode_there_are_no_scores() -> None:
    none = absent_scores(ROWS[:3], 4, None)
    assert none == {"episodes": 0, "left_out": 4}
    assert absent_line(none) == "absent: 0 episodes, 4 left out"
