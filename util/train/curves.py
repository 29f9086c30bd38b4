"""A run's curves, in a file for TensorBoard that the training thread writes itself.

tensorboardX's `SummaryWriter` leaves the writing to a thread. When a full disk ends that thread,
the next call waits forever. Here a failing disk costs the curves, and training goes on.
"""

import itertools
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import image, scalar

_number = itertools.count()  # otherwise two files of one second would have the same name


class Curves:
    """Event files in the folder of a run, one after the other.

    The first file marks `start`, the iterations done before the run was resumed: points of earlier
    files after it are discarded by TensorBoard and by `util.report`. `warn` is called with one line
    for each file that fails.
    """

    def __init__(self, folder: Path, start: int, warn: Callable[[str], None]):
        self.folder, self.start, self.warn = folder, start, warn
        self._file: EventsWriter | None = None
        self._marked = False
        self.reopen()

    def reopen(self) -> None:
        """Start a new file, because the last one failed or is gone."""
        self.close()
        self._try(self._open)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each of these curves."""
        for name, value in values.items():
            self._try(self._write, step, summary=scalar(name, value))

    def picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """Add an RGB picture, uint8 [3,H,W]."""
        self._try(self._write, step, summary=image(name, picture))

    def flush(self) -> None:
        """Write everything to the disk; after a failure, try a new file."""
        if self._file is None:
            self.reopen()
        else:
            self._try(self._file.flush)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # Its number tells its place among the files: a clock may be wrong, and name it earlier.
        number = 1 + len(list(self.folder.glob("events.out.tfevents.*")))
        self._file = EventsWriter(str(self.folder / "events"), f".{next(_number)}")
        status = SessionLog.STATUS_UNSPECIFIED if self._marked else SessionLog.START
        mark = SessionLog(status=status, msg=f"file {number}")
        self._write(self.start + 1, session_log=mark)
        self._file.flush()
        self._marked = True

    def _write(self, step: int, **content: object) -> None:
        if self._file is not None:
            self._file.write_event(Event(step=step, wall_time=time.time(), **content))

    def _try(self, call: Callable[..., object], *given: object, **content: object) -> None:
        try:
            call(*given, **content)
        except OSError as error:
            self.warn(f"{self.folder}: no curves are written ({error.strerror})")
            self.close()
