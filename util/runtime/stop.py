"""Stop requests: a run finishes its iteration, saves its state and exits with status 0."""

import argparse
import multiprocessing
import os
import select
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from util.runtime.log import takes_text

ASK: Any = getattr(signal, "SIGUSR1", None)  # Windows has none
"""What `util.runtime.launch` and Slurm's `--signal=USR1` send; never counts as a second signal."""

QUEUE_AGAIN: Any = getattr(signal, "SIGUSR2", None)
"""Submitit's signal to a job of Slurm whose time is nearly over: all its processes get it."""

HANGUP: Any = getattr(signal, "SIGHUP", None)
"""The terminal is closed; never counts as a second signal. `nohup` makes processes ignore it."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

STOPPED = "stopped at iteration"
"""What a run that was asked to stop prints, as it ends with status 0 then, too."""

APART = 1.0  # seconds from which on another signal counts as a second one


def hangup() -> tuple[Any, ...]:
    """Return SIGHUP, unless this process is to ignore it or the system has none."""
    return () if HANGUP is None or signal.getsignal(HANGUP) == signal.SIG_IGN else (HANGUP,)


class SignalDebouncer:
    """Debounces signals: one Ctrl-C may arrive twice, via the process group and via the shell."""

    _first: float | None = None

    def is_second(self) -> bool:
        """Record a signal; return whether it is a second one, `APART` seconds after the first."""
        now = time.monotonic()
        self._first = self._first or now
        return now - self._first >= APART


_active: list["Stop"] = []
"""The `Stop` whose block this process is in."""


def stop_requested() -> bool:
    """Return whether this process is in the block of a `Stop` that was asked to stop."""
    return any(stop.requested for stop in _active)


class Stop:
    """Inside `with`, SIGINT, SIGTERM, SIGHUP and SIGUSR1 only set `requested`.

    A second SIGINT or SIGTERM ends the process at once, even inside a long call of PyTorch.
    Python's own handlers would wait for that call, so signals go through a pipe to a thread.
    SIGUSR1 is handled from construction on; before that, while Python and PyTorch start, it ends
    the process. A rank whose launcher is gone gets a stop request too: nobody else could end it.
    Only a process that `speaks` (the main rank) announces the request.
    """

    def __init__(self, speaks: bool = True):
        self.requested, self.speaks = False, speaks
        self._debouncer = SignalDebouncer()
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self._old_handlers = {ASK: signal.signal(ASK, self._request)} if ASK else {}

    def __enter__(self) -> "Stop":
        self._read, self._write = socket.socketpair()  # Windows waits for sockets only
        self._write.setblocking(False)
        for number in (*STOP_SIGNALS, *hangup()):
            self._old_handlers[number] = signal.signal(number, lambda *_: None)
        self._old_pipe = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        _active.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _active.remove(self)
        signal.set_wakeup_fd(self._old_pipe)
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._write.send(b"\0")
        self._thread.join()
        self._read.close()
        self._write.close()

    def _request(self, *_: object) -> None:
        self.requested = True

    def _watch(self) -> None:
        while True:
            if not select.select([self._read], [], [], 1.0)[0]:
                if self._launcher and os.getppid() != self._launcher:
                    self._request()
                continue
            number = self._read.recv(1)[0]
            if number == 0:
                return
            if number not in (*STOP_SIGNALS, HANGUP):
                continue
            if number in STOP_SIGNALS and self._debouncer.is_second():
                os._exit(128 + number)
            self._request()
            if self.speaks:
                self.speaks = False
                # print, not log: this is a thread, and the log's console may be busy.
                text = "finishing this iteration and saving; send the signal again to exit at once"
                if not takes_text(sys.stderr, 0.0):  # nobody reads it, and printing may never end
                    continue
                with suppress(OSError):  # the terminal may be gone
                    print(f"\n{signal.Signals(number).name}: {text}", file=sys.stderr, flush=True)


@contextmanager
def hidden_from_children(number: Any) -> Iterator[None]:
    """Inside `with`, processes are started that never get this signal; None: of another system."""
    if number is None:
        yield
        return
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {number})  # a mask is inherited
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def guard_worker(_: int = 0) -> None:
    """Initialize a worker process: it exits only when its parent terminates it or dies.

    A signal to the whole process group is for the run to answer: an iteration may still need this
    worker's batch. So SIGTERM counts only when the parent sends it: PyTorch and Python end their
    workers that way. Only Linux tells who sent a signal; elsewhere any SIGTERM ends the worker.
    """
    signal.set_wakeup_fd(-1)
    for number in filter(None, (signal.SIGINT, ASK, HANGUP)):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "guard_worker runs in a worker process"

    def exit_when_terminated() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
            pass
        os._exit(0)  # PyTorch would report any other status as a fault

    def exit_with_parent() -> None:
        parent.join()
        os._exit(1)

    threads = [exit_with_parent]
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threads.append(exit_when_terminated)
    else:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for wait in threads:
        threading.Thread(target=wait, daemon=True).start()


@contextmanager
def unchanged_child_handler() -> Iterator[None]:
    """Inside `with`, whatever handles the end of a child process is only set for that time."""
    number = getattr(signal, "SIGCHLD", None)  # Windows has none
    if number is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(number)
    yield
    signal.signal(number, handler)


def resume_command() -> str:
    """Return the command that resumes this process's run."""
    return started_by("Train.resume=auto")


def started_by(*more: str) -> str:
    """Return the command that started this process, with `more` overrides at its end."""
    keys = [f"{word.partition('=')[0]}=" for word in more]
    words = [word for word in sys.argv[1:] if not word.startswith(tuple(keys))]
    words += more
    if shell := os.environ.get("AMFORMER_SH"):  # train.sh or test.sh chose --config and --gpus
        chosen = argparse.ArgumentParser(add_help=False)
        chosen.add_argument("--config")
        chosen.add_argument("--gpus")
        words = chosen.parse_known_args(words)[1]
        return f"{shell} {shlex.join(words)}".rstrip()
    start = os.environ.get("AMFORMER_LAUNCH", "python")
    return f"{start} {shlex.join([sys.argv[0], *words])}"
