"""How much containers stand for: a short file can name one value in another 2^26 times."""

from collections.abc import Mapping
from typing import Any


def holds_more_than(limit: int, value: Any) -> bool:
    """Return whether containers hold more values than that, each counted as often as it is named.

    It is also true of a container within itself, and of hundreds within each other.
    """
    counts: dict[int, int] = {}

    def count(value: Any) -> int:
        if not isinstance(value, Mapping | list | tuple):
            return 1
        if id(value) not in counts:
            counts[id(value)] = limit  # of a value within itself
            parts = value.values() if isinstance(value, Mapping) else value
            counts[id(value)] = 1 + sum(map(count, parts))
        return counts[id(value)]

    try:
        return count(value) > limit
    except RecursionError:
        return True
