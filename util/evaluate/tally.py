"""What is counted of an evaluation: the totals of each seed, and a row of each episode."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from util.evaluate.order import Task
from util.evaluate.scores import SeedTotals
from util.runtime import distributed

Row = dict[str, Any]
"""One episode; its columns are those of `records.SCHEMA`."""

Place = tuple[str, int, int]
"""Control, seed and number of an episode."""

Counts = TypeVar("Counts", bound=SeedTotals)

AREAS = [f"{kind}_{part}" for kind in ("final", "meta") for part in ("bg_i", "bg_u", "i", "u")]


def make_row(
    task: Task, class_name: str, target: Tensor, areas: Iterable[Tensor], presence: float
) -> Row:
    """Return the row of an episode: its target [H,W], `metrics.areas` of final and of meta."""
    plan, (height, width) = task.plan, target.shape
    found = torch.stack(tuple(areas)).flatten()
    *counts, pixels = torch.cat((found, (target == 1).sum()[None])).tolist()
    return {
        **{"seed": task.seed, "number": plan.index, "control": task.control},
        **{"query": plan.query, "class_id": plan.class_id, "class_name": class_name},
        **{"supports": list(plan.supports), "height": height, "width": width},
        "object_pixels": pixels,
        **dict(zip(AREAS, counts, strict=True)),
        "presence": presence,
    }


def iou_of(row: Row) -> float:
    """Return the IoU of the object in the final mask, 0..1."""
    return row["final_i"] / max(1, row["final_u"])


def iou_over(rows: Iterable[Row], kind: str = "final") -> float:
    """Return the IoU of the object in percent, over episodes; `kind`: final masks, or meta."""
    rows = list(rows)
    return (
        100 * sum(row[f"{kind}_i"] for row in rows) / max(1, sum(row[f"{kind}_u"] for row in rows))
    )


def place(row: Row) -> Place:
    """Return which episode a row is of; rows are sorted by it."""
    return row["control"], row["seed"], row["number"]


def place_of(task: Task) -> Place:
    """Return the `place` of an episode's row."""
    return task.control, task.seed, task.plan.index


@dataclass
class Tally(Generic[Counts]):
    """The counts of some groups of an evaluation; between two groups it is complete."""

    totals: dict[int, Counts]  # of each seed
    rows: list[Row] = field(default_factory=list)
    groups: set[int] = field(default_factory=set)  # numbers of those that are counted

    def state(self) -> dict[str, Any]:
        """Return the counts in types that a checkpoint holds."""
        totals = {seed: [p.totals.cpu() for p in t.parts()] for seed, t in self.totals.items()}
        return {"totals": totals, "rows": self.rows, "groups": sorted(self.groups)}

    def add(self, state: dict[str, Any]) -> None:
        """Add the counts of other groups of the same evaluation."""
        for seed, total in self.totals.items():
            for part, counts in zip(total.parts(), state["totals"][seed], strict=True):
                part.totals += counts.to(part.totals.device)
        self.rows += state["rows"]
        self.groups |= set(state["groups"])

    def gather_rows(self) -> None:
        """Replace the rows by those of all ranks, sorted; every rank has to call this."""
        self.rows = sorted(chain.from_iterable(distributed.gather(self.rows)), key=place)
