"""Clips: their frames in order, single frames, and a clip of overlays, by OpenCV."""

import errno
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
from util.runtime.files import Outputs, part_name

SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm")
DEFAULT_FPS = 25.0  # of a clip that does not tell
REMEDY = "convert it, for example with ffmpeg, to MP4"


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
        count: the number of its frames, as its header says; without that, as counted.
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
        try:
            name = _for_opencv(path)
        except UnicodeEncodeError:
            what = "OpenCV reads no clip whose name is not in UTF-8"
            raise UnreadableFile(f"{os.fsencode(path)!r}: {what}; rename it") from None
        self._capture = cv2.VideoCapture(name)
        self.count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        if self._capture.isOpened() and self.count <= 0:  # as recorders and browsers write it
            self.count = _count_frames(name)
        if self.count <= 0:
            raise UnreadableFile(f"{path}: cannot be read as a clip; {REMEDY}")
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if math.isfinite(fps) and fps > 0 else DEFAULT_FPS

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the frames as RGB (uint8 [H,W,3]): at most `count`, fewer if the file is torn."""
        for _ in range(self.count):
            found, frame = self._capture.read()
            if not found:
                return
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)

    def has_more(self) -> bool:
        """Return whether a frame follows those that were read: the header named too few."""
        return bool(self._capture.grab())

    def frame(self, number: int) -> np.ndarray | None:
        """Return frame `number`, from 0, of a clip that was just opened; None: it has none.

        The frames before it are decoded: seeking is inexact with many codecs.
        """
        for _ in range(number):
            if not self._capture.grab():
                return None
        return next(iter(self), None)


def _for_opencv(path: str | Path) -> str:
    """Return a name that OpenCV takes: absolute, else `12:30.mp4` is of the protocol 12.

    Raises `UnicodeEncodeError` if the name is not in UTF-8, which would crash OpenCV.
    """
    name = os.path.abspath(path)
    name.encode()
    return name


def _count_frames(name: str) -> int:
    """Return how many frames of a clip can be decoded."""
    capture, count = cv2.VideoCapture(name), 0
    while capture.grab():
        count += 1
    return count


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
    interrupted: it then holds the frames so far, all of the size of the first. An odd height or
    width loses its last pixel. Raises `UserError` if this OpenCV cannot write it, and `OSError` if
    the disk takes less than all frames.
    """
    part = part_name(outputs.folder / "overlay", ".part.webm")
    writer: cv2.VideoWriter | None = None
    size, written = (0, 0), 0

    def add(frame: np.ndarray) -> None:
        nonlocal writer, size, written
        if writer is None:
            size = frame.shape[1], frame.shape[0]
            with _silent():  # OpenCV complains of a tag that WebM does not need
                opened = _open_writer(part, fps, size)
            if not opened.isOpened():
                remedy = "install the opencv-python of requirements.txt"
                raise UserError(f"{name}: OpenCV cannot write a WebM clip of VP8; {remedy}")
            writer = opened
        # OpenCV leaves out frames of another size without a word.
        writer.write(cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), size))
        written += 1

    try:
        yield add
    finally:
        try:
            if writer is not None:
                writer.release()
                if _count_frames(_for_opencv(part)) < written:
                    raise OSError(errno.ENOSPC, "not all frames could be written", name)
                outputs.adopt(name, part)
        finally:
            part.unlink(missing_ok=True)


def _open_writer(part: Path, fps: float, size: tuple[int, int]) -> cv2.VideoWriter:
    try:
        name = _for_opencv(part)
    except UnicodeEncodeError:
        what = f"--out {os.fsencode(part.parent)!r}: OpenCV writes no clip to a folder"
        raise UserError(f"{what} whose name is not in UTF-8; name another") from None
    return cv2.VideoWriter(name, cv2.VideoWriter.fourcc(*"VP80"), fps, size)


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
