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
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from util import ROOT
from util.runtime.errors import RunStopped, Terminated, UserError

if TYPE_CHECKING:  # torch is slow to import, and this file serves scripts that do not need it
    pass

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # a disk that fails a writer
_WORKER = "in DataLoader worker process"
_log = logging.getLogger("amformer")


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
        raise UserError(f"command line: {message}; {hint}")


def _program() -> str:
    """How the running file was called, as one types it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:
        return f"python {Path(sys.argv[0]).name}"
    return f"python -m {spec.name.removesuffix('.__main__')}"


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
    ours = inside.is_relative_to(ROOT) and "site-packages" not in inside.parts
    return " ".join(text.split()), ours or isinstance(error, FileNotFoundError)
