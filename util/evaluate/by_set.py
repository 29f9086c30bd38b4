"""Scores of a mix, for each of its data sets alone."""

from collections import defaultdict
from collections.abc import Iterable
from statistics import mean

from util.evaluate.tally import Row, iou_over


def scores_by_set(rows: Iterable[Row]) -> dict[str, dict[str, float]]:
    """Return the right episodes' number and mIoU in percent of every data set, over all seeds.

    The mIoU is the mean over the classes asked for in that set; the intersections and unions of a
    class are summed over its episodes. `miou` is that of the final masks, `meta_miou` that of G.
    """
    found: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if not row["control"]:
            found[row["query"].partition("/")[0]][row["class_name"]].append(row)
    return {
        name: {
            "episodes": sum(map(len, classes.values())),
            "miou": mean(iou_over(rows) for rows in classes.values()),
            "meta_miou": mean(iou_over(rows, "meta") for rows in classes.values()),
        }
        for name, classes in found.items()
    }


def set_lines(scores: dict[str, dict[str, float]]) -> list[str]:
    """Return the scores of each data set in one line."""
    return [
        f"{name}: mIoU {s['miou']:.2f} (meta {s['meta_miou']:.2f}), {s['episodes']} episodes"
        for name, s in scores.items()
    ]
