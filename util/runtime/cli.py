"""Command lines: one style of parser, one way to end, one line for a mistake of the user.

Quiet is the default. `-v`, which every command accepts, also shows warnings of libraries, how long
the parts of a run took, and which part of the time training waited for its batches.
"""

import argparse
import difflib
import errno
import inspect
import os
import re
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from util.runtime.errors import RunStopped, Terminated, UserError
from util.runtime.log import close_log_file, configure, printable, takes_text
from util.runtime.system import release

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # a disk that fails a writer
_PATH = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EEXIST,
         errno.ELOOP, errno.ENAMETOOLONG)  # a path that is wrong, or not ours  # fmt: skip
_READER_GONE = 128 + 13  # what a shell reports of a program that SIGPIPE ends


class Parser(argparse.ArgumentParser):
    """A command line in the one style of this repository; `options` are argparse's.

    `--help` shows `text`, the docstring of the file, as written. `-v` is always there, and a
    mistake is a `UserError`, which `main` prints.
    """

    def __init__(self, text: str | None = None, **options: Any) -> None:
        options = {"description": inspect.cleandoc(text or ""), "prog": _program(), **options}
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        # A shell leaves ~ as it is after `--out=`.
        self.register("type", Path, lambda word: Path(os.path.expanduser(word)))
        self.add_argument(
            "-v", "--verbose", action="store_true", default=argparse.SUPPRESS,
            help="say more: times of the parts of a run, what libraries log and warn of",
        )  # fmt: skip

    def add_overrides(self) -> None:
        """Add the overrides, which every command line with a config takes."""
        self.add_argument(
            "overrides", nargs="*", default=[], metavar="Section.key=value",
            help="keys to set, over the file; docs/config.md lists them",
        )  # fmt: skip

    def add_overwrite(self) -> None:
        """Add `--overwrite`, for commands that write where something else may be."""
        self.add_argument(
            "--overwrite", action="store_true",
            help="replace files that this command did not make, but no input of it",
        )  # fmt: skip

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple:
        """Parse, and set up the log as `-v` says.

        An empty word is refused: as a path it would be the current folder, and it comes from a
        variable of the shell that is not set.
        """
        words = sys.argv[1:] if args is None else list(args)
        for before, word in zip([self.prog, *words], words, strict=False):
            if not word.strip() or re.fullmatch(r"--[a-z-]+=\s*", word):
                place = word.rstrip("= ") or before
                self.error(f"nothing stands after {place}; is a variable of the shell not set?")
        known, rest = super().parse_known_args(args, namespace)
        configure(getattr(known, "verbose", False))
        return known, rest

    def error(self, message: str) -> NoReturn:
        """Raise `UserError` with a hint at the nearest option."""
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
    """The command that runs this file, as one types it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:
        return f"python {Path(sys.argv[0]).name}"
    return f"python -m {spec.name.removesuffix('.__main__')}"


def main(entry: Callable[[], object]) -> None:
    """Run an entry point and turn the ways in which it may end into exit statuses.

    - `UserError`, or a path that is missing or not accessible: `error: ...` on stderr, status 2.
    - `RunStopped`, or a disk that cannot be written to: `stopped: ...`, status 1.
    - SIGINT: status 130; SIGTERM: status 143.
    - The reader of the output has gone, as with `| head`: no message, status 141.
    - Anything else is a fault of ours and keeps its traceback.

    Of the ranks that a launcher started on one machine, only the first to fail prints its line.
    """
    # A background job of a script inherits an ignored SIGINT; someone who sends one means it.
    _open_standard_files()
    old = {signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler)}
    old[signal.SIGTERM] = signal.signal(signal.SIGTERM, _terminate)
    try:
        try:
            entry()
        finally:  # what `--help` and `print` have left in the buffer: not at Python's own end
            if sys.stdout:
                sys.stdout.flush()
    except KeyboardInterrupt as error:
        _exit("\ninterrupted", 143 if isinstance(error, Terminated) else 130)
    except RunStopped as error:
        _exit(f"stopped: {error}", error.status)
    except UserError as error:
        _exit(f"error: {' '.join(str(error).split())}", 2)
    except BrokenPipeError:
        if not _reader_is_gone():  # it is about a pipe of our own
            raise
        _exit("", _READER_GONE)
    except MemoryError as error:
        _exit(_out_of_memory(error), 1)
    except RuntimeError as error:  # PyTorch has no type for it on the CPU
        if not re.search("can't allocate memory|out of memory|not enough memory", str(error)):
            raise
        _exit(_out_of_memory(error), 1)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            remedy = "allow more (ulimit -n 4096), or set Data.workers lower"
            _exit(f"error: this process may open no more files; {remedy}", 2)
        if error.errno in _PATH and error.filename is not None:
            remedy, what = "check the path and its permissions", error.strerror
            if error.errno == errno.ENOENT and os.path.islink(error.filename):
                what = f"is a link to {os.readlink(error.filename)}, which is not there"
            _exit(f"error: {error.filename}: {what}; {remedy}", 2)
        if error.errno not in _DISK:
            raise
        what = f"cannot be written ({error.strerror}); make room there"
        _exit(f"stopped: {error.filename or 'the output'}: {what}", 1)
    finally:
        close_log_file()
        release()
        for number, handler in old.items():
            signal.signal(number, handler)


def _out_of_memory(error: Exception) -> str:
    """Return the message about what did not fit into memory."""
    what = " ".join(str(error).partition("\n")[0].split()) or "of Python"
    remedy = "use a smaller size or batch, fewer workers, or a machine with more"
    return f"stopped: memory ran out ({what}); {remedy}"


def _open_standard_files() -> None:
    """Open what this process was started without (`>&-`): another file would take its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            with suppress(OSError):
                os.fstat(number)
                continue
            mode = "w" if number else "r"
            setattr(sys, name, open(os.devnull, mode))  # takes the lowest free number


def _terminate(*_: object) -> None:
    raise Terminated


def _reader_is_gone() -> bool:
    """Return whether nobody reads what this process writes to stdout or stderr."""
    if not hasattr(select, "poll"):  # Windows
        return True
    outputs = select.poll()
    for number in (1, 2):
        outputs.register(number, 0)  # an error is reported in any case
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in outputs.poll(0))


def _exit(text: str, status: int) -> NoReturn:
    """Print the last line of this process, unless another rank has printed its own, and exit.

    Without `text`, the output has no reader: what is left in the buffers goes nowhere.
    """
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):  # in a folder for each rank
        try:
            Path(file).parent.with_name("told").touch(exist_ok=False)
        except OSError:  # printed, or the launcher is ending and has removed the folder
            sys.exit(status)
    with suppress(BrokenPipeError):
        if text and takes_text(sys.stderr):
            print(printable(text), file=sys.stderr, flush=True)
    if _reader_is_gone():  # else Python complains at its end
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):  # one of a test, or none
                os.dup2(nowhere, stream.fileno())
    close_log_file(text.strip())
    sys.exit(status)
