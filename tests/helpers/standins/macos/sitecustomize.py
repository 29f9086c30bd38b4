"""Take away what Python has on Linux and not on macOS, and start processes as macOS does.

Python reads this file at its start if its folder is in PYTHONPATH.
"""

import builtins
import io
import multiprocessing
import os
import signal

for module, names in ((os, ("sched_getaffinity", "sched_setaffinity")), (signal, ("sigwaitinfo",))):
    for name in names:
        delattr(module, name)
multiprocessing.set_start_method("spawn", force=True)
_open = io.open


def open_without_proc(file, *more, **options):  # noqa: ANN001, ANN002, ANN003, ANN201, D103
    if isinstance(file, (str, os.PathLike)) and os.fspath(file).startswith("/proc/"):
        raise FileNotFoundError(2, os.strerror(2), os.fspath(file))
    return _open(file, *more, **options)


io.open = builtins.open = open_without_proc
