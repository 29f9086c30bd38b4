"""Run the scripts of one unit, each as a process of its own."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from util import ROOT
from util.runtime.stop import QUEUE_AGAIN, STOPPED, hidden_from_children

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission


@dataclass
class Work:
    """Runs scripts one after the other, until one fails or is asked to stop.

    What they print is appended to `log`, with a last line if a signal ended a script. Files of the
    runs say what has been reached. A job of submitit pickles this object before the call.
    """

    scripts: tuple[str, ...]
    arguments: tuple[str, ...]
    log: Path
    environment: dict[str, str]
    stopping: bool = False
    _child: subprocess.Popen | None = field(default=None, init=False)

    def __call__(self) -> None:
        """Run the scripts."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        for script in self.scripts:
            if self.stopping or not self._has_ended(script):
                return

    def stop(self) -> None:
        """Ask the script that runs to save and end; start no further one."""
        self.stopping = True
        if self._child:
            self._child.terminate()

    def _has_ended(self, script: str) -> bool:
        """Run a script; return whether it has done all its work."""
        with open(self.log, "ab") as log:
            begin = log.tell()
            with hidden_from_children(QUEUE_AGAIN):  # `QueuedWork` answers it
                # A session of its own: Ctrl-C in a terminal is for the sweep to answer, once.
                self._child = subprocess.Popen(
                    [sys.executable, str(ROOT / script), *self.arguments],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                    env={**os.environ, **self.environment}, start_new_session=True,
                    close_fds=False,  # it inherits the lock of the sweep
                )  # fmt: skip
            if self.stopping:  # since the last look
                self._child.terminate()
            status = self._child.wait()
            stopped = STOPPED.encode() in self.log.read_bytes()[begin:]
            if status < 0:
                log.write(f"{script} was ended by {signal.Signals(-status).name}\n".encode())
            elif stopped and not self.stopping:
                log.write(b"a signal from outside has stopped this run\n")
        return status == 0 and not stopped


class QueuedWork(Work):
    """Work in a job of Slurm, which is queued again when its time is nearly over."""

    def checkpoint(self) -> "DelayedSubmission":
        """Let the script save and end; return what the job does when it runs again."""
        from submitit.helpers import DelayedSubmission

        self.stop()
        if self._child:
            with suppress(ChildProcessError):  # it has ended before
                os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(
            QueuedWork(self.scripts, self.arguments, self.log, self.environment)
        )
