"""Clips: every frame is segmented as a photograph would be, and an interruption loses nothing."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from helpers.pictures import write_clip

from util.data.image_io import UnreadableFile, read_image, read_label
from util.evaluate.visualize import overlay
from util.predict import Example, Predictor, clip
from util.predict.example import as_rgb
from util.runtime.errors import UserError
from util.runtime.files import Outputs

FRAMES, FPS, SIZE = 6, 5.0, (96, 80)  # width and height
BOX = "box=20,15,70,60"


def frames(path: Path) -> list[np.ndarray]:
    """The frames of a clip as OpenCV reads them (RGB)."""
    capture, read = cv2.VideoCapture(str(path)), []
    while (answer := capture.read())[0]:
        read.append(cv2.cvtColor(answer[1], cv2.COLOR_BGR2RGB))
    return read


@pytest.fixture
def film(small_run: SimpleNamespace, tmp_path: Path) -> Path:
    """A clip of six photographs."""
    source, names = small_run.episodes.source, small_run.episodes.sampler.fold.images[:FRAMES]
    pictures = [cv2.resize(read_image(source.image_path(name)), SIZE) for name in names]
    return write_clip(tmp_path / "film.mp4", pictures, FPS)


def lines_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def test_frames_are_those_of_opencv_whether_read_in_order_or_alone(film: Path) -> None:
    wanted = frames(film)
    assert len(wanted) == FRAMES
    opened = clip.Clip(film)
    assert (opened.count, opened.fps) == (FRAMES, FPS)
    assert all(np.array_equal(a, b) for a, b in zip(opened, wanted, strict=True))
    for number in (0, 3, FRAMES - 1):
        assert np.array_equal(as_rgb(f"{film}@{number}"), wanted[number])


def test_each_frame_gets_the_mask_of_the_predictor_and_the_overlays_are_a_clip(
    predict: Callable, predictor: Predictor, film: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert predict("--support", f"{film}@0:{BOX}", "--query", film, "--out", out)[0] == 0
    predictor.add_class("object", Example(f"{film}@0", box=(20, 15, 70, 60)))
    shown = frames(out / "overlays/film.webm")
    lines = lines_of(out)
    assert [line["image"] for line in lines] == [f"{film}@{i}" for i in range(FRAMES)]
    for line, frame, drawn in zip(lines, frames(film), shown, strict=True):
        mask = predictor.predict(frame).mask
        assert np.array_equal(read_label(out / line["mask"]), mask)
        assert (out / line["preview"]).is_file() and line["overlay"] == "overlays/film.webm"
        assert np.abs(drawn.astype(float) - overlay(frame, mask)).mean() < 12  # VP8 loses some
        assert mask.any()
    assert clip.Clip(out / "overlays/film.webm").fps == pytest.approx(FPS)
    assert not [path for path in out.rglob("*.part*")]


def test_frames_become_images_that_the_coco_file_names(
    predict: Callable, film: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["--support", f"{film}@0:{BOX}", "--query", film, "--out", out, "--format", "coco"]
    assert predict(*words)[0] == 0
    content = json.loads((out / "coco.json").read_text())
    assert content["info"]["images"] == str(out / "frames/film")
    for number, (image, frame) in enumerate(zip(content["images"], frames(film), strict=True)):
        assert image["file_name"] == f"film_{number:06}.jpg"
        written = read_image(out / "frames/film" / image["file_name"])
        assert np.abs(written.astype(float) - frame).mean() < 5
    assert predict(*words)[0] == 0  # the second time, it replaces its own


def test_interrupt_keeps_all_frames_so_far_in_whole_files(
    predict: Callable, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, answer, calls = tmp_path / "out", Predictor.predict, []

    def interrupted(*args: object, **options: object) -> object:
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return answer(*args, **options)

    words = ["--support", f"{film}@0:{BOX}", "--query", film, "--out", out, "--format", "coco"]
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict", interrupted)
        status, error = predict(*words)
    assert status == 130 and error.endswith("\ninterrupted\n")
    assert len(lines_of(out)) == len(frames(out / "overlays/film.webm")) == 3
    assert len(json.loads((out / "coco.json").read_text())["images"]) == 3
    assert (out / "review.html").read_text().count("<section") == 3
    assert predict(*words)[0] == 0 and len(lines_of(out)) == FRAMES  # nothing is in the way


@pytest.mark.parametrize(
    ("claimed", "done", "words"),
    [
        (FRAMES + 2, FRAMES, f"only {FRAMES} of {FRAMES + 2} frames can be read"),
        (FRAMES - 1, FRAMES - 1, f"holds more frames than the {FRAMES - 1}"),
    ],
)
def test_clip_whose_header_names_another_number_of_frames_keeps_those_read_and_is_an_error(
    predict: Callable, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    claimed: int, done: int, words: str,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    opened = clip.Clip.__init__

    def claims(self: clip.Clip, path: Path) -> None:
        opened(self, path)
        self.count = claimed

    monkeypatch.setattr(clip.Clip, "__init__", claims)
    status, error = predict("--support", f"{film}@0:{BOX}", "--query", film, "--out", out)
    assert status == 2 and words in error
    *lines, last = lines_of(out)
    assert len(lines) == len(frames(out / "overlays/film.webm")) == done
    assert words in last["error"]


def test_clip_without_a_number_of_frames_is_counted(
    film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorders and browsers write WebM without a duration."""
    real = cv2.VideoCapture

    class WithoutCount:
        def __init__(self, name: str) -> None:
            self.capture = real(name)

        def get(self, key: int) -> float:
            return -1.0 if key == cv2.CAP_PROP_FRAME_COUNT else self.capture.get(key)

        def __getattr__(self, name: str) -> object:
            return getattr(self.capture, name)

    monkeypatch.setattr(cv2, "VideoCapture", WithoutCount)
    opened = clip.Clip(film)
    assert opened.count == FRAMES == len(list(opened)) and not opened.has_more()


def test_name_that_is_not_utf8_is_refused_and_never_passed_to_opencv(
    film: Path, tmp_path: Path
) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    os.mkdir(odd)
    shutil.copy(film, f"{odd}/film.mp4")
    with pytest.raises(UnreadableFile, match="whose name is not in UTF-8; rename it"):
        clip.Clip(f"{odd}/film.mp4")
    with (
        pytest.raises(UserError, match="not in UTF-8; name another"),
        clip.written_clip(Outputs(Path(odd), "test"), "film.webm", 10.0) as add,
    ):
        add(np.zeros((8, 8, 3), np.uint8))


def test_relative_name_with_a_colon_is_a_file(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(film, "12:30.mp4")
    assert clip.Clip("12:30.mp4").count == FRAMES


def test_frames_of_another_size_and_lost_frames_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = ((16, 24), (32, 48), (16, 24))
    with clip.written_clip(Outputs(tmp_path, "test"), "sizes.webm", 10.0) as add:
        for height, width in sizes:
            add(np.full((height, width, 3), 90, np.uint8))
    assert [frame.shape[:2] for frame in frames(tmp_path / "sizes.webm")] == 3 * [(16, 24)]
    monkeypatch.setattr(clip, "_count_frames", lambda name: 2)  # a disk that is full
    with (
        pytest.raises(OSError, match="not all frames could be written"),
        clip.written_clip(Outputs(tmp_path, "test"), "full.webm", 10.0) as add,
    ):
        for _ in range(3):
            add(np.zeros((16, 24, 3), np.uint8))
    assert [path.name for path in tmp_path.glob("*.webm")] == ["sizes.webm"]


def test_clips_of_any_size_are_written(tmp_path: Path) -> None:
    for height, width in ((33, 51), (8, 8), (64, 16)):
        frame = np.full((height, width, 3), (200, 40, 90), np.uint8)
        with clip.written_clip(Outputs(tmp_path, "test"), f"{width}.webm", 10.0) as add:
            for _ in range(3):
                add(frame)
        read = frames(tmp_path / f"{width}.webm")
        assert len(read) == 3 and read[0].shape[:2] == (height // 2 * 2, width // 2 * 2)
        assert np.abs(read[0].astype(float) - (200, 40, 90)).mean() < 12


@pytest.mark.parametrize(
    ("support", "query", "told"),
    [
        ("film.mp4@6:box=1,1,9,9", "film.mp4", "film.mp4@6: there is no such frame; give a number"),
        ("gone.mp4@0:box=1,1,9,9", "film.mp4", "gone.mp4: no such clip; check the path"),
        ("torn.mp4@0:box=1,1,9,9", "film.mp4", "torn.mp4: cannot be read as a clip; convert it"),
        ("film.mp4:box=1,1,9,9", "film.mp4", "film.mp4: cannot be read as an image"),
        ("film.mp4@0:box=1,1,9,9", "film.mp4 film.png", "would be written to the same film"),
    ],
)
def test_unusable_clip_is_refused_in_one_line_before_the_model_is_read(
    support: str,
    query: str,
    told: str,
    predict: Callable,
    film: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Predictor, "from_checkpoint", lambda *_: pytest.fail("read the model"))
    monkeypatch.chdir(film.parent)
    Path("torn.mp4").write_bytes(film.read_bytes()[:2000])
    cv2.imwrite("film.png", np.zeros((9, 9, 3), np.uint8))
    status, error = predict("--support", support, "--query", *query.split(), "--out", "out")
    assert status == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert told in error, error


def test_file_whose_name_looks_like_a_frame_is_that_file(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4@0"
    cv2.imwrite(str(tmp_path / "a.png"), np.full((9, 8, 3), 7, np.uint8))
    (tmp_path / "a.png").rename(path)
    assert as_rgb(str(path)).shape == (9, 8, 3)
    with pytest.raises(UnreadableFile, match=r"film.mp4: no such clip"):
        as_rgb(str(tmp_path / "film.mp4@1"))
