"""Asking a run to stop: it ends the iteration, writes its state and leaves with status 0."""

import multiprocessing
import os
import select
import shlex
import signal
import sys
import threading
import time

ASK = (
    signal.SIGUSR1
)  # what util.runtime.launch sends on, and Slurm's --signal=USR1; never counts as second
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
APART = 1.0  # seconds between a first signal and a second one


class SignalDebouncer:
    """Tells a person's second signal from the first one that comes twice.

    As it does where it goes to a whole group, a shell in it that passes it on among them.
    """

    def __init__(self) -> None:
        self._first: float | None = None

    def insist(self) -> bool:
        """Takes note of a signal; whether it is a second one, `APART` from the first."""
        now = time.monotonic()
        if self._first is None:
            self._first = now
        return now - self._first >= APART


class Stop:
    """From `with` on, SIGINT, SIGTERM and SIGUSR1 only set `requested`.

    A second SIGINT or SIGTERM ends the process at once, also inside a long call of PyTorch, where
    Python's own handlers would have to wait: they write into a pipe that a thread reads. SIGUSR1
    sets it from the construction on; before that, while Python and PyTorch start, it ends the
    process. A rank whose launcher is gone is asked, too: nobody else could end it.

    Args:
        speaks: whether this process says that it was asked.
    """

    def __init__(self, speaks: bool = True):
        self.requested, self.speaks = False, speaks
        self._persons = SignalDebouncer()
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self._old = {ASK: signal.signal(ASK, lambda *_: setattr(self, "requested", True))}

    def __enter__(self) -> "Stop":
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._old |= {number: signal.signal(number, lambda *_: None) for number in STOP_SIGNALS}
        self._old_pipe = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._old_pipe)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        os.write(self._write, b"\0")
        self._thread.join()
        os.close(self._read)
        os.close(self._write)

    def _watch(self) -> None:
        while True:
            if not select.select([self._read], [], [], 1.0)[0]:
                if self._launcher and os.getppid() != self._launcher:
                    self.requested = True
                continue
            number = os.read(self._read, 1)[0]
            if number == 0:
                return
            if number in STOP_SIGNALS:
                self._person(signal.Signals(number))

    def _person(self, number: signal.Signals) -> None:
        if self._persons.insist():
            os._exit(128 + number)
        self.requested = True
        if self.speaks:
            self.speaks = False
            text = "this iteration is finished and the state saved; a second one leaves at once"
            print(f"\n{number.name}: {text}", file=sys.stderr, flush=True)


def guard_worker(_: int = 0) -> None:
    """In a worker of a DataLoader: it ends when its process says so or is gone, and only then.

    A signal to the whole group is the run's to answer: an iteration may still need its batch. So of
    SIGTERMs only that of `Process.terminate` counts, by which PyTorch and Python end a worker.
    """
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, ASK):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    process = multiprocessing.parent_process()

    def terminated() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != process.pid:
            pass
        os._exit(0)  # another status would have PyTorch report a fault

    def orphaned() -> None:
        process.join()
        os._exit(1)

    for wait in (terminated, orphaned):
        threading.Thread(target=wait, daemon=True).start()


def resume_command() -> str:
    """The command that goes on where this process stops."""
    words = [word for word in sys.argv if not word.startswith("Train.resume=")]
    words.append("Train.resume=auto")
    if shell := os.environ.get("AMFORMER_SH"):  # train.sh put SCRIPT --config FILE --gpus N before
        return f"{shell} {shlex.join(words[5:])}"
    return f"{os.environ.get('AMFORMER_LAUNCH', 'python')} {shlex.join(words)}"
