"""Where units run: on cores or GPUs of this machine, or as jobs of Slurm."""

import io
import shlex
import subprocess
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from threading import Thread
from typing import Protocol

from util.runtime.errors import UserError
from util.runtime.log import log
from util.sweep.plan import Unit
from util.sweep.spec import SlurmOptions
from util.sweep.work import QueuedWork, Work


class Pool(Protocol):
    """Works on units. Whether one is finished, the files of its run say."""

    period: float  # seconds between two looks at what has ended

    def free(self) -> int:
        """Return how many more units can be started."""

    def start(self, unit: Unit) -> str:
        """Start a unit; say what was done."""

    def ended(self) -> list[Unit]:
        """Return the units that have ended since the last call."""

    def stop(self) -> None:
        """Ask all units to save and end."""


class Local:
    """One unit at a time on each of the devices: a GPU by its number, or '' for a CPU core."""

    period = 0.2

    def __init__(self, devices: Sequence[str], threads: int) -> None:
        """Give each unit so many CPU threads."""
        self._devices, self._threads = list(devices), threads
        self._at_work: dict[Unit, tuple[Thread, Work, str]] = {}

    def free(self) -> int:  # noqa: D102 (as in `Pool`, also below)
        return len(self._devices)

    def start(self, unit: Unit) -> str:  # noqa: D102
        device = self._devices.pop(0)
        environment = {"OMP_NUM_THREADS": str(self._threads)}
        if device:
            environment["CUDA_VISIBLE_DEVICES"] = device
        arguments = _arguments(unit, 1 if device else 0)
        work = Work(unit.scripts, arguments, unit.log, environment)
        thread = Thread(target=work, daemon=True)
        self._at_work[unit] = (thread, work, device)
        thread.start()
        return f"starts on GPU {device}" if device else "starts"

    def ended(self) -> list[Unit]:  # noqa: D102
        gone = [unit for unit, (thread, _, _) in self._at_work.items() if not thread.is_alive()]
        for unit in gone:
            self._devices.append(self._at_work.pop(unit)[2])
        return gone

    def stop(self) -> None:  # noqa: D102
        for _, work, _ in self._at_work.values():
            work.stop()


class Slurm:
    """One job for each unit. A job that is in the queue already is not submitted again."""

    period = 5.0

    def __init__(self, options: SlurmOptions, folder: Path, at_once: int) -> None:
        """Submit at most so many jobs at once; `folder` gets the files of submitit."""
        try:
            from submitit import SlurmExecutor
            from submitit.core.utils import FailedJobError
        except ImportError:
            raise UserError(
                "--slurm needs submitit; install it: pip install submitit==1.5.4"
            ) from None
        try:
            self._executor = SlurmExecutor(folder, max_num_timeout=_TIMES)
        except RuntimeError:
            raise UserError("--slurm: there is no srun on this machine's PATH") from None
        self._refused = FailedJobError
        self._options, self._at_once = options, at_once
        self._jobs: dict[Unit, str] = {}
        self._missing: set[Unit] = set()  # at the last look
        self._queue = _queue() or {}
        given = options.model_dump(exclude_none=True, exclude={"cpus", "gpus", "save_seconds"})
        if options.gpus:
            given["gpus_per_node"] = options.gpus
        self._executor.update_parameters(
            **given, cpus_per_task=options.cpus, signal_delay_s=options.save_seconds,
            additional_parameters={"requeue": True},
        )  # fmt: skip

    def free(self) -> int:  # noqa: D102
        return self._at_once - len(self._jobs)

    def start(self, unit: Unit) -> str:  # noqa: D102
        name = str(unit.folder.resolve())
        if found := next((job for job, other in self._queue.items() if other == name), None):
            self._jobs[unit] = found
            return f"is in the queue already, job {found}"
        environment = {"OMP_NUM_THREADS": str(self._options.cpus)}
        arguments = _arguments(unit, self._options.gpus)
        self._executor.update_parameters(job_name=name)
        work = QueuedWork(unit.scripts, arguments, unit.log, environment)
        try:
            with redirect_stderr(io.StringIO()):  # submitit prints the error, too
                job = self._executor.submit(work)
        except self._refused as error:
            raise UserError(f"--slurm: {' '.join(str(error).split())}") from None
        self._jobs[unit] = job.job_id
        return f"is queued as job {job.job_id}"

    def ended(self) -> list[Unit]:  # noqa: D102
        queue = _queue()
        if queue is None:
            return []
        missing = {unit for unit, job in self._jobs.items() if job not in queue}
        gone = missing & self._missing  # twice: a shared disk shows new files a little later
        self._missing = missing - gone
        for unit in gone:
            del self._jobs[unit]
        return list(gone)

    def stop(self) -> None:  # noqa: D102
        if jobs := list(self._jobs.values()):
            # Not `scancel` alone: it kills after seconds, and a run may need longer to save.
            for how in ("--state=PENDING", "--signal=TERM"):
                subprocess.run(["scancel", "--quiet", how, *jobs], check=False)


_TIMES = 50  # a job whose time is over is queued again so often, so that none runs for ever


def _arguments(unit: Unit, gpus: int) -> tuple[str, ...]:
    return ("--config", unit.config, "--gpus", str(gpus), *unit.words)


def _queue() -> dict[str, str] | None:
    """Return job -> name of this user's jobs that wait or run; None if Slurm does not answer."""
    words = ["squeue", "--me", "--noheader", "--format=%i %j"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        log.warning("%s: %s", shlex.join(words[:2]), " ".join(done.stderr.split()))
        return None
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())
