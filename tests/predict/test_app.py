"""The page in a real browser: paint, submit, read the results; mistakes are messages."""

import base64
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from helpers import ROOT
from helpers.browsers import CHROMIUM, FLAGS
from playwright.sync_api import BrowserContext, Page, sync_playwright
from pycocotools.coco import COCO

from util.data.image_io import read_label
from util.predict import app, pictures
from util.runtime.cli import main

TIMEOUT = 300  # seconds of a wait; on an idle machine the longest takes ten
BLUE = (30, 60, 200)
ALERT = "[data-testid=toast-body]"


@pytest.fixture(scope="module")
def server(
    small_run: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SimpleNamespace]:
    """The page of a small model, served by a process."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "util.predict.app", "--checkpoint", str(small_run.checkpoint)]
    words += ["--data", str(small_run.episodes.source.root)]
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*words, "--port", str(port)],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(folder)},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        until(lambda: b"\n" in log.read_bytes() or process.poll() is not None)
        address = f"http://127.0.0.1:{port}/"
        assert address in log.read_text()
        yield SimpleNamespace(process=process, log=log, address=address, folder=folder)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def browser(
    server: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BrowserContext]:
    if not CHROMIUM.is_file():
        pytest.skip(f"needs a browser, {CHROMIUM}")
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=CHROMIUM,
            headless=True,
            args=FLAGS,
            viewport={"width": 1024, "height": 900},
        )
        context.set_default_timeout(1000 * TIMEOUT)
        yield context
        context.close()


@pytest.fixture
def page(server: SimpleNamespace, browser: BrowserContext) -> Iterator[Page]:
    """A visitor's page. Afterwards: no traceback, and no request to another server."""
    opened, fetched = browser.new_page(), []
    opened.on("request", lambda request: fetched.append(request.url))
    opened.goto(server.address)
    opened.locator("#support canvas").first.wait_for()
    yield opened
    assert "Traceback" not in opened.content()
    assert len(server.log.read_text().splitlines()) == 1, server.log.read_text()
    allowed = (server.address, "data:", "blob:")
    assert fetched and [url for url in fetched if not url.startswith(allowed)] == []
    opened.close()


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that no element of the page shows."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < TIMEOUT
        time.sleep(0.1)


def choose(page: Page, button: str, *files: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.locator(button).click()
    chooser.value.set_files(files)


def center(page: Page) -> tuple[float, float]:
    """The middle of the support on the screen."""
    canvas = page.locator("#support canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def is_blue(page: Page) -> bool:
    """Whether the middle of the support on the screen is unpainted."""
    x, y = center(page)
    clip = {"x": x - 4, "y": y - 4, "width": 8, "height": 8}
    return bool(np.abs(pixels(page.screenshot(clip=clip)).mean((0, 1)) - BLUE).max() < 20)


def pixels(content: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB).astype(float)


def paint(page: Page) -> None:
    """Draw a short diagonal stroke through the middle of the support."""
    x, y = center(page)
    page.mouse.move(x - 40, y - 30)
    page.mouse.down()
    page.mouse.move(x + 40, y + 30, steps=4)
    page.mouse.up()
    page.locator("#support button[aria-label='Undo']:enabled").wait_for()  # the stroke is stored


def segment(page: Page) -> None:
    """Submit, and wait for the row of the second query. A message instead is a failure."""
    page.locator("#segment").click()
    page.locator(f"{ALERT}, [aria-label='query 2']").first.wait_for()
    assert page.locator(ALERT).all_inner_texts() == []


def result_picture(page: Page, alt: str) -> np.ndarray:
    """A picture of the results."""
    source = page.get_by_alt_text(alt).get_attribute("src")
    return pixels(base64.b64decode(source.partition(",")[2]))


def object_pixels(page: Page) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the support's pixels that are drawn as the object."""
    return np.nonzero(np.abs(result_picture(page, "support of query 1") - BLUE).max(axis=2) > 40)


def read_message(page: Page) -> str:
    """The message on the page; closes it."""
    message = page.locator(ALERT)
    message.wait_for()
    text = message.inner_text()
    message.get_by_test_id("toast-close").click()
    message.wait_for(state="detached")
    return text


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("files")
    blue = np.full((200, 300, 3), BLUE[::-1], np.uint8)
    query = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    paths = {n: folder / f"{n}.png" for n in ("blue", "first", "second")}
    for path, picture in zip(paths.values(), (blue, query, query[::-1]), strict=True):
        cv2.imwrite(str(path), picture)
    broken = folder / "broken.png"
    broken.write_text("no picture")
    huge = folder / "huge.png"
    huge.write_bytes(empty_png(20_000))
    return SimpleNamespace(**paths, broken=broken, huge=huge)


def empty_png(side: int) -> bytes:
    """A square PNG of black pixels, small as a file."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((side // 8 + 1) * side))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_painted_object_is_segmented_in_two_queries(page: Page, files: SimpleNamespace) -> None:
    choose(page, "#upload", files.blue)
    until(lambda: is_blue(page))
    choose(page, "#queries button[aria-label*='upload' i]", files.first, files.second)
    page.get_by_label("Thumbnail 2 of 2").wait_for()
    page.locator("#segment").click()
    assert "Nothing is painted" in read_message(page)
    paint(page)
    until(lambda: not is_blue(page))
    segment(page)
    assert page.get_by_alt_text(re.compile("^final of query [12]$")).count() == 2
    titles = ["support", "query", "prior", "initial mask", "mask 1", "mask 2", "mask 3", "final"]
    assert page.locator(".result figcaption").all_inner_texts() == 2 * titles
    assert result_picture(page, "final of query 2").shape == (90, 120, 3)
    ys, xs = object_pixels(page)
    assert 0.01 < len(xs) / (200 * 300) < 0.3
    assert abs(xs.mean() - 150) < 5 and abs(ys.mean() - 100) < 5
    assert len(xs) < 0.8 * np.ptp(xs) * np.ptp(ys)
    page.get_by_label(pictures.BOX).check()
    page.locator("#segment").click()
    until(lambda: len(object_pixels(page)[0]) > 0.98 * np.ptp(xs) * np.ptp(ys))


def test_mistakes_are_messages_and_the_other_queries_are_segmented(
    page: Page, files: SimpleNamespace
) -> None:
    page.locator("#segment").click()
    assert "There is no support" in read_message(page)
    choose(page, "#upload", files.broken)
    assert "broken.png: cannot be read as an image" in read_message(page)
    choose(page, "#upload", files.huge)
    assert "huge.png: has 20000x20000, more than 50 million pixels" in read_message(page)
    page.get_by_label("Thumbnail 1 of 6").click()  # an example, with its mask and two queries
    page.get_by_label("Thumbnail 2 of 2").wait_for()
    page.locator("#queries button[aria-label='Clear']").click()
    choose(page, "#queries button[aria-label*='upload' i]", files.broken, files.first)
    page.get_by_label("Thumbnail 2 of 2").wait_for()
    segment(page)
    assert page.get_by_alt_text("final of query 2").is_visible()
    alert = page.get_by_label("query 1", exact=True).get_by_role("alert")
    assert "broken.png: cannot be read" in alert.inner_text()


def test_supports_are_kept_by_mask_box_and_points_until_they_are_removed(
    page: Page, files: SimpleNamespace
) -> None:
    kept = page.locator("#kept img")
    for number, kind in enumerate(pictures.KINDS):
        choose(page, "#upload", files.blue)
        until(lambda: is_blue(page))
        page.get_by_label(kind).check()
        paint(page)
        page.locator("#keep").click()
        kept.nth(number).wait_for()
        until(lambda: not is_blue(page))  # the editor is empty
    choose(page, "#queries button[aria-label*='upload' i]", files.first, files.second)
    page.get_by_label("Thumbnail 2 of 2").wait_for()
    segment(page)  # with the kept ones alone
    assert kept.count() == 3
    page.locator("#clear").click()
    kept.first.wait_for(state="detached")
    page.locator("#segment").click()
    assert "There is no support" in read_message(page)


@pytest.mark.filterwarnings("ignore:__array__")  # pycocotools, about NumPy
def test_all_results_are_downloaded_at_the_size_of_the_uploads(
    page: Page, files: SimpleNamespace, tmp_path: Path
) -> None:
    wide = tmp_path / "wide.png"
    cv2.imwrite(str(wide), cv2.resize(cv2.imread(str(files.first)), (1600, 1200)))
    choose(page, "#upload", files.blue)
    until(lambda: is_blue(page))
    paint(page)
    choose(page, "#queries button[aria-label*='upload' i]", wide, files.second)
    page.get_by_label("Thumbnail 2 of 2").wait_for()
    segment(page)
    saved = {}
    for label, name in (("zip", "amformer_results.zip"), ("COCO", "coco.json")):
        with page.expect_download() as download:
            page.locator("button:enabled", has_text=label).click()
        assert download.value.suggested_filename == name
        saved[label] = tmp_path / name
        download.value.save_as(saved[label])
    with zipfile.ZipFile(saved["zip"]) as packed:
        packed.extractall(tmp_path / "all")
    assert (tmp_path / "all/coco.json").read_bytes() == saved["COCO"].read_bytes()
    assert (tmp_path / "all/review.html").read_text().count("<section") == 2
    coco = COCO(saved["COCO"])
    for image, shape in zip(coco.loadImgs([1, 2]), ((1200, 1600), (90, 120)), strict=True):
        mask = read_label(tmp_path / "all/masks" / image["file_name"])
        read = np.zeros(shape, np.uint8)
        for annotation in coco.loadAnns(coco.getAnnIds(image["id"])):
            read[coco.annToMask(annotation) == 1] = 1
        assert np.array_equal(read, mask)


def test_visitors_do_not_see_the_support_of_others(
    page: Page, server: SimpleNamespace, browser: BrowserContext
) -> None:
    page.get_by_label("Thumbnail 1 of 6").click()
    page.get_by_label("Thumbnail 2 of 2").wait_for()
    other = browser.new_page()
    other.goto(server.address)
    other.locator("#segment").click()
    assert "There is no support" in read_message(other)
    other.close()


def test_visitor_who_leaves_during_an_upload_causes_no_traceback(server: SimpleNamespace) -> None:
    head = "POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n"
    kind = "Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
    port = int(server.address.rstrip("/").rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as visitor:
        visitor.sendall((head + kind).encode())
        time.sleep(1)  # the server waits for the rest
    time.sleep(1)
    assert len(server.log.read_text().splitlines()) == 1, server.log.read_text()


def test_interrupt_ends_the_server_quietly_and_deletes_uploads(server: SimpleNamespace) -> None:
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(TIMEOUT) == 0
    lines = [line for line in server.log.read_text().splitlines() if line]
    assert len(lines) == 1 and server.address in lines[0]
    assert [path.name for path in server.folder.rglob("*") if path.is_file()] == ["log"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--checkpoint", "gone.pth", "--port", "0"], ["--port 0", "1 to 65535"]),
        (["--checkpoint", "gone.pth", "--port", "{used}"], ["{used}", "give another --port"]),
        (["--checkpoint", "gone.pth", "--port", "{free}"], ["gone.pth: no such checkpoint"]),
        (["--prot", "1"], ["--prot", "did you mean --port?"]),
    ],
)
def test_unusable_argument_is_refused_in_one_line_with_status_2(
    words: list[str],
    parts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            free = other.getsockname()[1]
        ports = {"used": used.getsockname()[1], "free": free}
        monkeypatch.setattr(sys, "argv", ["app", *(word.format(**ports) for word in words)])
        with pytest.raises(SystemExit) as stopped:
            main(app.app)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(part.format(**ports) in error for part in parts)
