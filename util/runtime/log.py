"""The log of a command: Python's `logging`, set up once for consoles, ranks and files.

    from util.runtime.log import log

    log.info("written: %s", path)      # stdout, as it is
    log.warning("%s: skipped", path)   # stderr, after `warning: `
    log.debug("model: %.1f s", took)   # stderr, only with -v

Of several ranks only the main one shows `info`; every rank shows its warnings. Library use
(`util.predict.Predictor` in a notebook, say) configures nothing: the host program decides.
"""

import io
import logging
import os
import re
import select
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from util.runtime.system import require_no_pipe

log = logging.getLogger("amformer")
"""The project's logger."""

FILE_ONLY = {"file_only": True}
"""`extra=FILE_ONLY` keeps a message out of the console: a progress bar shows it there."""


_CONTROL = re.compile("[\\0-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069]")

PATIENCE = 5.0
"""Seconds that a run with a log file waits for a reader of its output that has stopped."""


_PIECE = 400  # characters: a pipe that takes text takes 4096 bytes; one may be 10, as an escape


def printable(text: str) -> str:
    """Return a text whose control characters, but for tabs and line ends, are written as escapes.

    Names of files and keys may hold some, and a terminal would obey: erase lines, or turn the order
    of characters.
    """
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def takes_text(stream: TextIO, seconds: float | None = None) -> bool:
    """Return whether a short write to a stream will end; wait for that up to `PATIENCE`, or less.

    A pipe whose reader has stopped is full, and a write to it never ends.
    """
    try:
        return bool(select.select([], [stream], [], PATIENCE if seconds is None else seconds)[1])
    except (OSError, ValueError, TypeError):  # no open file; Windows asks sockets only
        return True


class _Console(logging.Handler):
    """Writes to the current stdout or stderr, above a progress bar if one is drawn.

    With a log file, a line that has no reader is left out.
    """

    _left_out = 0

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stdout if record.levelno == logging.INFO else sys.stderr
        text = printable(record.getMessage())
        if record.levelno != logging.INFO:
            name = record.name if record.levelno < logging.INFO else record.levelname.lower()
            text = f"{name}: {text}"
        if self._has_no_reader(stream):
            return
        try:
            with tqdm.external_write_mode(stream, nolock=True):
                self._print(text + "\n", stream)
        except BrokenPipeError:  # `main` ends the command
            raise
        except OSError as error:
            if not _has_log_file():
                raise
            _give_up(stream, error)

    def _print(self, text: str, stream: TextIO) -> None:
        """Write a line; with a log file, only as far as somebody reads it."""
        size = _PIECE if _has_log_file() else len(text)
        for start in range(0, len(text), size):
            if start and not takes_text(stream):
                self._left_out += 1
                return
            print(text[start : start + size], end="", file=stream, flush=True)

    def _has_no_reader(self, stream: TextIO) -> bool:
        """Return whether to leave a line out, as the log file has it; count and tell these."""
        if not _has_log_file():
            return False
        if not takes_text(stream, 0.0 if self._left_out else None):
            self._left_out += 1
            return True
        if self._left_out:
            count, self._left_out = self._left_out, 0
            log.warning("%d lines are only in the log file: nobody read the output", count)
        return False

    def filter(self, record: logging.LogRecord) -> bool:
        return not getattr(record, "file_only", False)


def _has_log_file() -> bool:
    return any(isinstance(handler, _LogFile) for handler in log.handlers)


def _give_up(stream: TextIO, error: OSError) -> None:
    """Write what a stream of a full disk or a closed terminal gets to nowhere, and say so once."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
    name = "stdout" if stream is sys.stdout else "stderr"
    log.warning("%s cannot be written (%s); the log file goes on", name, error.strerror)


class _Libraries(logging.StreamHandler):
    """Messages of libraries, on stderr. A type of its own: mmcv silences plain root handlers."""


class _Printable(logging.Formatter):
    """Lines that a terminal can show."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _LogFile(logging.FileHandler):
    """A file that gives up, with one warning, when its disk fails."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        log.removeHandler(self)
        with suppress(OSError):
            self.close()
        error = sys.exc_info()[1]
        log.warning("%s: the log is no longer written (%s)", self.baseFilename, error)


def configure(verbose: bool = False) -> None:
    """Set up the console: quiet by default, with library messages and timings if `verbose`.

    `python -W ...` keeps its own choice of warnings.
    """
    is_main = os.environ.get("RANK", "0") == "0"
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may hold any bytes
        sys.stdout.reconfigure(errors="backslashreplace")
    verbose = verbose and is_main
    for handler in [h for h in log.handlers if isinstance(h, _Console)]:
        log.removeHandler(handler)
    log.addHandler(_Console())
    log.propagate = False
    log.setLevel(logging.DEBUG if verbose else logging.INFO if is_main else logging.WARNING)
    if verbose:
        warnings.simplefilter("default")
        sys.warnoptions.append("default")  # `model` hides some warnings unless asked for
        style = "%(name)s: %(message)s"
        logging.basicConfig(level=logging.INFO, format=style, handlers=[_Libraries()])
    elif not sys.warnoptions:
        warnings.simplefilter("ignore")
        if logging.lastResort:
            logging.lastResort.setLevel(logging.ERROR)


def add_log_file(path: Path) -> None:
    """Append every message from `info` up to a file, with its time; replaces an earlier file.

    A disk that fails costs the log, not the run. Raises `UserError` if the file is a pipe.
    """
    close_log_file()
    require_no_pipe(path)
    try:
        handler = _LogFile(path, encoding="utf-8")
    except OSError as error:
        log.warning("%s: the log cannot be written (%s)", path, error.strerror)
        return
    handler.setLevel(logging.INFO)
    handler.setFormatter(_Printable("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)


def close_log_file(last: str = "") -> None:
    """Stop writing the log file, if there is one, after an error that ends the run."""
    for handler in [h for h in log.handlers if isinstance(h, _LogFile)]:
        if last:
            log.error(last, extra=FILE_ONLY)
        log.removeHandler(handler)
        with suppress(OSError):
            handler.close()
