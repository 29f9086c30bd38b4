"""What a run says: one progress line, and one line for a mistake of the user's; `-v` says more.

Quiet is the default: no warnings of libraries. With `-v`, which every command line takes, come
these, what libraries log, how long the parts of a run took (`timed`), and in the progress line
which part of the time training waited for its batches. The progress line goes to stdout, all else
to stderr; of several ranks the main one says it.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import inspect
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeVar

if TYPE_CHECKING:  # torch is slow to import, and this file serves scripts that do not need it
    import torch

_ROOT = Path(__file__).resolve().parent.parent
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # a disk that fails a writer
_WORKER = "in DataLoader worker process"
_log = logging.getLogger("amformer")
_Batch = TypeVar("_Batch")


class _Handler(logging.StreamHandler):
    """To stderr; of a type of its own, as mmcv silences plain handlers of the root logger."""


def set_verbosity(verbose: bool) -> None:
    """Quiet or verbose, as the head of this file says; `python -W ...` keeps its warnings."""
    if verbose and os.environ.get("RANK", "0") == "0":
        warnings.simplefilter("default")
        sys.warnoptions.append("default")  # `model` hides some warnings where nobody asked for any
        logging.basicConfig(
            level=logging.INFO, format="%(name)s: %(message)s", handlers=[_Handler()]
        )
    elif not sys.warnoptions:
        warnings.simplefilter("ignore")
        logging.lastResort.setLevel(logging.ERROR)


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Says with `-v` how long a part of the run took, by the host's clock; decorates, too."""
    begin = time.monotonic()
    yield
    _log.info("%s: %.1f s", what, time.monotonic() - begin)


class Progress:
    """One line: iteration, mean losses since the last line, learning rate, speed, time to go.

    On a terminal the line rewrites itself; elsewhere it is a new line every `period` iterations.
    Only the main rank should get an active one.

    Args:
        total: iterations of the whole run.
        period: iterations between two lines (the first and the last iteration print too).
        start: iterations already done, after a resume.
        active: False says nothing (the other ranks).
        stream: where the line goes; standard output when None.
    """

    def __init__(
        self,
        total: int,
        period: int,
        start: int = 0,
        active: bool = True,
        stream: TextIO | None = None,
    ) -> None:
        self.total, self.period, self.start, self.active = total, period, start, active
        self.stream = stream or sys.stdout
        self.rewrite = self.stream.isatty()
        self.width = 0  # of the unfinished line on the terminal
        self.sums: dict[str, list] = {}  # name -> [sum, count]; tensors, not to wait for the device
        self.begin = self.last_time = time.monotonic()
        self.last_done = start
        self.waited: float | None = None  # seconds since the last line, for batches

    def waiting(self, batches: Iterable[_Batch]) -> Iterator[_Batch]:
        """Passes on batches; with `-v` the line says which part of the time they took to come.

        That is reading, and the frozen encoder, by the host's clock: a GPU may still be at work.
        """
        self.waited = 0.0 if _log.isEnabledFor(logging.INFO) else None
        source = iter(batches)
        while True:
            begin = time.monotonic()
            try:
                batch = next(source)
            except StopIteration:
                return
            if self.waited is not None:
                self.waited += time.monotonic() - begin
            yield batch

    def step(
        self, done: int, losses: Mapping[str, float | torch.Tensor], lr: float | None = None
    ) -> None:
        """Says that `done` iterations of the run are finished, the last one with these losses."""
        if not self.active:
            return
        for name, value in losses.items():
            entry = self.sums.setdefault(name, [0.0, 0])
            entry[0] = entry[0] + (value.detach() if hasattr(value, "detach") else value)
            entry[1] += 1
        if done % self.period and done not in (self.start + 1, self.total):
            return
        now = time.monotonic()
        taken = max(now - self.last_time, 1e-9)
        speed = (done - self.last_done) / taken
        to_go = (self.total - done) * (now - self.begin) / (done - self.start)
        self.last_done, self.last_time = done, now
        means = [f"{name} {float(sum_) / count:.4f}" for name, (sum_, count) in self.sums.items()]
        self.sums.clear()
        rate = [] if lr is None else [f"lr {lr:.2e}"]
        pace = [f"{speed:.2f} it/s  ETA {clock(to_go)}"]
        if self.waited is not None:
            pace.append(f"batches {self.waited / taken:.0%}")
            self.waited = 0.0
        self._write("  ".join([f"{done}/{self.total}", *means, *rate, *pace]))

    def note(self, text: str) -> None:
        """Prints a line of its own, such as a validation's scores."""
        if self.active:
            self.close()
            print(text, file=self.stream, flush=True)

    def close(self) -> None:
        """Ends the unfinished line of a terminal."""
        if self.width:
            print(file=self.stream, flush=True)
            self.width = 0

    def _write(self, line: str) -> None:
        if self.rewrite:
            print("\r" + line.ljust(self.width), end="", file=self.stream, flush=True)
            self.width = len(line)
        else:
            print(line, file=self.stream, flush=True)


def warn(text: str) -> None:
    """Prints a line on stderr about something that went wrong and does not end the run."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"


class Parser(argparse.ArgumentParser):
    """A command line in the one style of this repository.

    Its text is shown as written, every argument says what it is, `-v` is one of them, and a mistake
    is a `ValueError`, for `main` to tell.

    Args:
        text: what `--help` says, the docstring of the file.
        **options: of `argparse.ArgumentParser`.
    """

    def __init__(self, text: str | None = None, **options: Any) -> None:
        options = {"description": inspect.cleandoc(text or ""), "prog": _program(), **options}
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self.add_argument(
            "-v", "--verbose", action="store_true", default=argparse.SUPPRESS,
            help="say more: times of the parts of a run, what libraries log and warn of",
        )  # fmt: skip

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple:
        known, rest = super().parse_known_args(args, namespace)
        set_verbosity(getattr(known, "verbose", False))
        return known, rest

    def error(self, message: str) -> NoReturn:
        hint = f"{self.prog} --help lists what there is"
        unknown = message.partition("unrecognized arguments: ")[2].partition(" ")[0]
        option, equals, _ = unknown.partition("=")
        close = difflib.get_close_matches(option, self._option_string_actions, n=1)
        if equals and "." in option:
            hint = f"a key of the config has no dashes: {unknown.lstrip('-')}"
        elif close:
            hint = f"did you mean {close[0]}?"
        raise ValueError(f"command line: {message}; {hint}")


def _program() -> str:
    """How the running file was called, as one types it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:
        return f"python {Path(sys.argv[0]).name}"
    return f"python -m {spec.name.removesuffix('.__main__')}"


class RunStopped(RuntimeError):
    """A run cannot go on, through no mistake in its arguments; the message says where."""

    status = 1


class Terminated(KeyboardInterrupt):
    """SIGTERM, where a run does not take it for a request to stop (`util.stop`)."""


def main(entry: Callable[[], None]) -> None:
    """Runs an entry point; a user's mistake becomes `error: ...` on stderr and exit status 2.

    Such a mistake is a `ValueError` raised in this repository, or a missing file. A `ValueError`
    out of a library is a fault of ours and keeps its traceback. `RunStopped` and a disk that cannot
    be written to end with one line and status 1, SIGINT with status 130, SIGTERM with 143. Of the
    ranks that a launcher started on one machine, the first to fail speaks.
    """
    # A background job of a script inherits an ignored SIGINT; someone who sends one means it.
    old = {signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler)}
    old[signal.SIGTERM] = signal.signal(signal.SIGTERM, _terminate)
    try:
        entry()
    except KeyboardInterrupt as error:
        _say("\ninterrupted")
        sys.exit(143 if isinstance(error, Terminated) else 130)
    except RunStopped as error:
        _say(f"stopped: {error}")
        sys.exit(error.status)
    except (ValueError, FileNotFoundError) as error:
        text, ours = _told(error)
        if not ours:
            raise
        _say(f"error: {text}")
        sys.exit(2)
    except OSError as error:
        if error.errno not in _DISK:
            raise
        _say(f"stopped: {error.filename}: cannot be written ({error.strerror}); make room there")
        sys.exit(1)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _terminate(*_: object) -> None:
    raise Terminated


def _say(text: str) -> None:
    """Prints the last line of a process, unless another rank has said its own."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):  # in a folder for each rank
        try:
            Path(file).parent.with_name("told").touch(exist_ok=False)
        except OSError:  # told, or the launcher is ending and has removed the folder
            return
    print(text, file=sys.stderr, flush=True)


def _told(error: Exception) -> tuple[str, bool]:
    """The message on one line, and whether code of this repository raised it."""
    text = str(error).strip()
    if _WORKER in text.partition("\n")[0]:  # torch puts the worker's traceback into the message
        raised_in = text.rpartition('File "')[2].partition('"')[0]
        text = text.rpartition("\n")[2].partition(": ")[2]
    else:
        trace = error.__traceback__
        while trace.tb_next:
            trace = trace.tb_next
        raised_in = trace.tb_frame.f_code.co_filename
    inside = Path(raised_in).resolve()
    ours = inside.is_relative_to(_ROOT) and "site-packages" not in inside.parts
    return " ".join(text.split()), ours or isinstance(error, FileNotFoundError)
