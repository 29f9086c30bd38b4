"""Clips: their frames in order, single frames, and a clip of overlays, by OpenCV."""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # quiet: a torn file is our one line

import cv2
import numpy as np

from util.data.image_io import UnreadableFile
from util.runtime.errors import UserError
from util.runtime.files import Outputs

SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm")
DEFAULT_FPS = 25.0  # of a clip that does not tell
_REMEDY = "convert it, for example with ffmpeg, to MP4"


def is_clip(path: str | Path) -> bool:
    """Tell by its suffix whether a file is a clip."""
    return Path(path).suffix.lower() in SUFFIXES


def split_frame(word: str | Path) -> tuple[str, int] | None:
    """Return clip and number, from 0, of `CLIP@NUMBER`; None for other words and for files."""
    clip, mark, number = str(word).rpartition("@")
    if mark and number.isdecimal() and is_clip(clip) and not os.path.lexists(word):
        return clip, int(number)
    return None


class Clip:
    """A clip, open to read its frames once, in order.

    Attributes:
        count: the number of its frames, as its header says.
        fps: frames per second.
    """

    def __init__(self, path: str | Path) -> None:
        """Open the file. Raises `UnreadableFile` if it is missing or no clip."""
        path = os.path.expanduser(path)
        if not os.path.isfile(path):
            what = (
                "is no clip; name a file"
                if os.path.exists(path)
                else "no such clip; check the path"
            )
            raise UnreadableFile(f"{path}: {what}")
        self._capture = cv2.VideoCapture(str(path))
        self.count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        if not self._capture.isOpened() or self.count <= 0:
            raise UnreadableFile(f"{path}: cannot be read as a clip; {_REMEDY}")
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if math.isfinite(fps) and fps > 0 else DEFAULT_FPS

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the frames as RGB (uint8 [H,W,3]): at most `count`, fewer if the file is torn."""
        for _ in range(self.count):
            found, frame = self._capture.read()
            if not found:
                return
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)

    def frame(self, number: int) -> np.ndarray | None:
        """Return frame `number`, from 0, of a clip that was just opened; None: it has none.

        The frames before it are decoded: seeking is inexact with many codecs.
        """
        for _ in range(number):
            if not self._capture.grab():
                return None
        return next(iter(self), None)


def read_frame(path: str | Path, number: int) -> np.ndarray:
    """Read frame `number`, from 0, of a clip as RGB (uint8 [H,W,3]).

    Raises `UnreadableFile` if the clip cannot be read or has no such frame.
    """
    clip = Clip(path)
    frame = clip.frame(number) if number < clip.count else None
    if frame is None:
        what = f"{path}@{number}: there is no such frame"
        raise UnreadableFile(f"{what}; give a number from 0 to {clip.count - 1}")
    return frame


@contextmanager
def written_clip(outputs: Outputs, name: str, fps: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield a function that adds a frame (uint8 [H,W,3], RGB) to the clip `name`, a WebM file.

    It is VP8, which browsers play. The clip gets its name at the end of the block, also if that is
    interrupted: it then holds the frames so far. An odd height or width loses its last pixel.
    Raises `UserError` if this OpenCV cannot write it.
    """
    part = outputs.folder / f".overlay.{os.getpid()}.part.webm"  # never too long
    writer: cv2.VideoWriter | None = None

    def add(frame: np.ndarray) -> None:
        nonlocal writer
        if writer is None:
            with _silent():  # OpenCV complains of a tag that WebM does not need
                size = frame.shape[1::-1]
                opened = cv2.VideoWriter(str(part), cv2.VideoWriter.fourcc(*"VP80"), fps, size)
            if not opened.isOpened():
                remedy = "install the opencv-python of requirements.txt"
                raise UserError(f"{name}: OpenCV cannot write a WebM clip of VP8; {remedy}")
            writer = opened
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    try:
        yield add
    finally:
        if writer is not None:
            writer.release()
            try:
                outputs.adopt(name, part)
            finally:
                part.unlink(missing_ok=True)


@contextmanager
def _silent() -> Iterator[None]:
    """Inside `with`, nothing that is written to the file descriptor of stderr is shown."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
