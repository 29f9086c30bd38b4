"""Whether the object is there at all: a score of an episode, and how well it tells.

docs/protocol.md defines the scores.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from util.data.controls import ABSENT
from util.evaluate.tally import Row

SIMILAR = 0.1  # share of the positions whose similarity counts for the presence


def presence(final: Tensor, prior: Tensor) -> float:
    """Return how surely the object is there, of final scores [2,h,w] and prior [n,h,w].

    It is the largest lead of the object over the background, plus the mean similarity (the first
    map of the prior, from f5 if there is one) of the tenth of the positions that are most similar
    to the support.
    """
    background, foreground = final.float()
    similarity = prior[0].float().flatten()
    most = similarity.topk(math.ceil(SIMILAR * len(similarity))).values
    return ((foreground - background).max() + most.mean()).item()


def split_presence(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Return the presence of the right episodes and of those without the object."""
    return tuple(
        np.array([row["presence"] for row in rows if row["control"] == kind])
        for kind in ("", ABSENT)
    )  # type: ignore[return-value]


def auroc(present: np.ndarray, absent: np.ndarray) -> float:
    """Return the probability that a present one has the higher score; ties count half."""
    ordered = np.sort(absent)
    below, not_above = (np.searchsorted(ordered, present, side) for side in ("left", "right"))
    return float((below + not_above).sum()) / (2 * len(present) * len(absent))


def calibrate(present: np.ndarray, absent: np.ndarray) -> float:
    """Return the threshold of highest balanced accuracy: present is what is not below it.

    It lies in the middle between two scores; of equally good ones it is the lowest.
    """
    scores = np.unique(np.concatenate((present, absent)))
    lower = np.concatenate((scores[:1], scores[:-1]))
    missed = np.searchsorted(np.sort(present), scores, "left") / len(present)
    found = np.searchsorted(np.sort(absent), scores, "left") / len(absent)
    best = int((found - missed).argmax())
    return float((scores[best] + lower[best]) / 2)


def absent_scores(rows: Sequence[Row], left_out: int, stored: float | None) -> dict[str, Any]:
    """Return the scores over right episodes and over those without the object, of all seeds.

    Shares are in percent. `stored` is the threshold of the checkpoint; without one, it is
    calibrated on these episodes. Without an episode, there are no scores.
    """
    present, absent = split_presence(rows)
    result: dict[str, Any] = {"episodes": len(absent), "left_out": left_out}
    if not len(absent):
        return result
    without = [row for row in rows if row["control"] == ABSENT]
    # Without an object, its union is what was predicted, and the background's what is labeled.
    area = {
        kind: 100 * np.mean([r[f"{kind}_u"] / max(1, r[f"{kind}_bg_u"]) for r in without]).item()
        for kind in ("final", "meta")
    }
    threshold = calibrate(present, absent) if stored is None else stored
    return result | {
        "false_positive_area": area,
        "auroc": 100 * auroc(present, absent),
        "threshold": threshold,
        "threshold_of": "these episodes" if stored is None else "checkpoint",
        "absent_found_absent": 100 * np.mean(absent < threshold).item(),
        "present_found_present": 100 * np.mean(present >= threshold).item(),
    }


def absent_line(scores: dict[str, Any]) -> str:
    """Return the scores in one line."""
    left_out = f", {scores['left_out']} left out" if scores["left_out"] else ""
    count = f"{scores['episodes']} episodes{left_out}"
    if not scores["episodes"]:
        return f"absent: {count}"
    area, stored = scores["false_positive_area"], scores["threshold_of"] == "checkpoint"
    source = "of the checkpoint" if stored else "calibrated on these episodes, so too good"
    return (
        f"absent: AUROC {scores['auroc']:.2f}, false positive area {area['final']:.2f} % (meta "
        f"{area['meta']:.2f} %), {count}; threshold {scores['threshold']:.3f}, {source}: "
        f"{scores['absent_found_absent']:.1f} % of absent found absent, "
        f"{scores['present_found_present']:.1f} % of present found present"
    )
