"""One call for each of many items, on several processes."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, TypeVar

from util.runtime.errors import RunStopped
from util.runtime.progress import bar
from util.runtime.stop import guard_worker
from util.runtime.system import can_fork, cores

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_CHUNK = 16  # items a worker takes at a time
_AHEAD = 2  # chunks per worker that are handed out before the oldest result is awaited


def on_all_cores(
    call: Callable[[_Item], _Result], items: Sequence[_Item], text: str
) -> Iterator[_Result]:
    """Yield `call(item)` as `on_processes` does, with a progress bar on stderr that says `text`.

    Raises `RunStopped` if a worker was killed.
    """
    with bar(len(items), text) as progress:
        for result in on_processes(call, items, cores()):
            progress.update()
            yield result


def on_processes(
    call: Callable[[_Item], _Result],
    items: Sequence[_Item],
    workers: int,
    remedy: str = "free some memory and run the same command again",
) -> Iterator[_Result]:
    """Yield `call(item)` for every item, in order.

    `call` runs in a worker process; with one worker, or few items, in this process; where there is
    no fork, in a thread. Neither it nor the items are pickled, only its results. The first
    exception, in the order of the items, reaches the caller unchanged. Workers ignore Ctrl-C, which
    is for this process to answer, and end when it does, even if it was killed. Raises `RunStopped`
    if a worker was killed; the message ends with `remedy`.
    """
    workers = min(workers, -(-len(items) // _CHUNK))
    if workers <= 1:
        yield from map(call, items)
        return
    pool: Executor
    if can_fork():  # workers start at once and find `call` and the items in their memory
        pool, call_chunk = _fork_workers(workers, call, items), _call_chunk_of_worker
    else:  # reading and writing pictures lets other threads run
        pool, call_chunk = ThreadPoolExecutor(workers), partial(_call_chunk, call, items)
    started: deque[Future[list[_Result]]] = deque()
    try:
        for start in range(0, len(items), _CHUNK):
            started.append(pool.submit(call_chunk, start))
            if len(started) == _AHEAD * workers:  # few: a caller who stops early need not wait
                yield from started.popleft().result()
        while started:
            yield from started.popleft().result()
    except BrokenProcessPool:
        what = "a worker process was killed, probably because memory ran out"
        raise RunStopped(f"{what}; {remedy}") from None
    finally:
        pool.shutdown(cancel_futures=True)


_work: tuple[Callable[[Any], Any], Sequence[Any]]
"""What a worker calls, and the items; only set in workers."""


def _fork_workers(
    workers: int, call: Callable[[Any], Any], items: Sequence[Any]
) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (call, items))
    # The workers start with blocked signals, until `guard_worker` is in charge of them.
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        pool.submit(os.getpid)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
    return pool


def _start_worker(call: Callable[[Any], Any], items: Sequence[Any]) -> None:
    global _work
    _work = call, items
    guard_worker()


def _call_chunk_of_worker(start: int) -> list[Any]:
    return _call_chunk(*_work, start)


def _call_chunk(call: Callable[[Any], Any], items: Sequence[Any], start: int) -> list[Any]:
    return [call(item) for item in items[start : start + _CHUNK]]
