"""Many small jobs on all cores, with one bar of progress."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from tqdm import tqdm


def bar(total: int, text: str) -> tqdm:
    """A bar on stderr; where it cannot rewrite itself, one line every ten seconds, if that long."""
    rewrites = sys.stderr.isatty()
    period, delay = (0.1, 0.0) if rewrites else (10.0, 10.0)
    return tqdm(total=total, desc=text, unit="file", mininterval=period, delay=delay)


def on_all_cores(call: Callable[[Any], Any], items: Sequence[Any], text: str) -> Iterator[Any]:
    """Yields `call` of each item, in order; `text` says on stderr what is being done."""
    # fork: a worker needs nothing but NumPy and OpenCV, and starts at once.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=context) as pool:
        with bar(len(items), text) as progress:
            for result in pool.map(call, items, chunksize=16):
                progress.update()
                yield result
