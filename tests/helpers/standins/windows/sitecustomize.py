"""Take away what Python lacks on Windows, as far as Python and torch still start without it."""

import multiprocessing
import os
import signal
import sys

for module, names in (
    (os, ("sched_getaffinity", "killpg", "getpgid")),
    (signal, ("sigwaitinfo", "SIGUSR1", "SIGUSR2", "pthread_sigmask")),
):
    for name in names:
        delattr(module, name)
for name in ("fcntl", "resource"):
    sys.modules[name] = None  # importing it is an ImportError
multiprocessing.set_start_method("spawn", force=True)
