"""Episodes beside the right ones: which of them run, and their scores (docs/protocol.md).

They share the queries of the right episodes and count in no other score.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from util.data import EpisodeSampler
from util.data.controls import PLANS
from util.evaluate.order import Task
from util.evaluate.tally import Row, iou_over


@dataclass
class Beside:
    """The episodes beside those of an evaluation, and how many could not be made, by kind."""

    tasks: list[Task] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)


def episodes_beside(
    sampler: EpisodeSampler, count: int, seeds: Sequence[int], shares: Mapping[str, float]
) -> Beside:
    """Return the episodes beside episodes 0..count-1 of every seed; `shares`: kind -> share."""
    made = Beside()
    for kind, share in shares.items():
        made.left_out[kind] = 0
        for seed in seeds:
            of_seed = sampler.with_seed(seed)
            for number in spread(count, share):
                plan = PLANS[kind](of_seed, number)
                if plan:
                    made.tasks.append(Task(seed, plan, kind))
                else:
                    made.left_out[kind] += 1
    return made


def spread(count: int, share: float) -> list[int]:
    """Return evenly spread numbers of 0..count-1: this share of them, rounded up."""
    chosen = math.ceil(round(count * share, 6))  # 0.1 * 30 is a little more than 3
    return [count * i // chosen for i in range(chosen)]


def control_scores(rows: Iterable[Row], kind: str, left_out: int) -> dict[str, Any]:
    """Return the scores with right and with false supports, on the same episodes of all seeds.

    `right`, `false` and their `difference` are mIoU or IoU in percent, `kept` is false / right in
    percent, None without an IoU that could be lost. Classes without an episode are left out.
    """
    found: dict[str, dict[tuple[int, int], Row]] = {"": {}, kind: {}}
    for row in rows:
        if row["control"] in found:
            found[row["control"]][row["seed"], row["number"]] = row
    pairs = [(found[""][at], row) for at, row in found[kind].items()]
    classes: dict[str, dict[str, Any]] = {}
    for name in sorted({row["class_name"] for _, row in pairs}):
        of_class = [pair for pair in pairs if pair[1]["class_name"] == name]
        iou = [iou_over(part) for part in zip(*of_class, strict=True)]
        classes[name] = {"episodes": len(of_class), **_compare(*iou)}
    sides = ([scores[side] for scores in classes.values()] for side in ("right", "false"))
    mean = [sum(iou) / max(1, len(iou)) for iou in sides]
    return {"episodes": len(pairs), "left_out": left_out, **_compare(*mean), "classes": classes}


def _compare(right: float, false: float) -> dict[str, float | None]:
    kept = 100 * false / right if right else None
    return {"right": right, "false": false, "difference": false - right, "kept": kept}


def control_line(kind: str, scores: Mapping[str, Any]) -> str:
    """Return the scores of a control in one line."""
    left_out = f", {scores['left_out']} left out" if scores["left_out"] else ""
    kept = "-" if scores["kept"] is None else f"{scores['kept']:.0f} %"
    return (
        f"control {kind}: mIoU {scores['right']:.2f} with the right support, {scores['false']:.2f} "
        f"with the false one ({scores['difference']:+.2f}, {kept} kept), "
        f"{scores['episodes']} episodes{left_out}"
    )


def control_table(controls: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table: for each control and class, IoU with right and with false supports."""
    lines = []
    for kind, scores in controls.items():
        parts = {f"{kind} mIoU": scores} | {f"  {n}": c for n, c in scores["classes"].items()}
        width = max(20, *map(len, parts))
        lines.append(f"{'':{width}}    right    false     diff     kept  episodes")
        for name, part in parts.items():
            kept = "        -" if part["kept"] is None else f"{part['kept']:7.0f} %"
            values = f"{part['right']:7.2f}  {part['false']:7.2f}  {part['difference']:+7.2f}"
            lines.append(f"{name:{width}}  {values}{kept}  {part['episodes']:8}")
    return "\n".join(lines)
