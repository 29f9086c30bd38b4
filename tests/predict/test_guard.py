"""The page's server without a browser: foreign sites, limits, pictures it must not decode."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from helpers import ROOT
from PIL import EpsImagePlugin, Image

from util.predict import Predictor, guard
from util.predict.page import Page

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n%%EOF\n"
FILE = {"meta": {"_type": "gradio.FileData"}}


def png(width: int, height: int, mode: str = "1") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, "PNG")
    return file.getvalue()


def gif() -> bytes:
    file = io.BytesIO()
    Image.new("L", (60, 40)).save(file, "GIF")
    return file.getvalue()


@pytest.fixture(scope="module")
def site(loaded: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The page, served by a thread: a client, and what is needed to call its events."""
    folder = str(tmp_path_factory.mktemp("gradio"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", folder)
        names = guard.names_of("127.0.0.1", ["Lab.example.org"])
        blocks = Page(loaded, [], "a test").launch("127.0.0.1", port, names, folder)
        address = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=address, timeout=100) as client:
            config = client.get("/config").json()
            kinds = {part["id"]: part["type"] for part in config["components"]}
            events = {
                tuple(kinds[i] for i in event["inputs"]): event["id"]
                for event in config["dependencies"]
            }
            yield SimpleNamespace(
                client=client,
                address=address,
                blocks=blocks,
                editor=next(i for i, kind in kinds.items() if kind == "imageeditor"),
                upload_event=events["uploadbutton",],
                segment_event=next(i for inputs, i in events.items() if len(inputs) == 5),
            )
        blocks.close(verbose=False)


def upload(site: SimpleNamespace, name: str, content: bytes) -> str:
    return site.client.post("/gradio_api/upload", files={"files": (name, content)}).json()[0]


def call(site: SimpleNamespace, event: int, data: list, visitor: str = "visitor") -> str:
    """Call an event as a browser does; return the message that the visitor sees."""
    body = {"data": data, "fn_index": event, "session_hash": visitor}
    answer = site.client.post("/gradio_api/queue/join", json=body)
    if answer.status_code != 200:
        return answer.text
    with site.client.stream("GET", f"/gradio_api/queue/data?session_hash={visitor}") as lines:
        for line in lines.iter_lines():
            if "process_completed" in line:
                return json.loads(line.removeprefix("data: "))["output"].get("error", "done")
    return "no answer"


def segment(site: SimpleNamespace, painting: object) -> str:
    return call(site, site.segment_event, [None, painting, "the object itself", None, []])


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("{own}", None, 200),
        ("{own}", "http://{own}", 200),
        ("localhost:{port}", "http://localhost:{port}", 200),
        ("lab.example.org", "https://lab.example.org", 200),
        ("192.0.2.7", None, 200),
        ("[::1]:{port}", "http://[::1]:{port}", 200),
        ("evil.example:{port}", None, 403),
        ("127.0.0.1.evil.example", None, 403),
        ("", None, 403),
        ("[", None, 403),
        ("{own}", "http://evil.example", 403),
        ("{own}", "http://127.0.0.1:1", 403),
        ("{own}", "null", 403),
        ("localhost:{port}", "http://{own}", 403),
    ],
)
def test_only_names_of_the_server_and_its_own_site_may_call_it(
    host: str, origin: str | None, status: int, site: SimpleNamespace
) -> None:
    own = site.address.removeprefix("http://")
    words = {"own": own, "port": own.rpartition(":")[2]}
    headers = {"Host": host.format(**words)}
    if origin:
        headers["Origin"] = origin.format(**words)
    assert site.client.get("/config", headers=headers).status_code == status
    sent = site.client.post("/gradio_api/upload", files={"files": ("a.png", b"x")}, headers=headers)
    assert sent.status_code == status


def test_calls_that_are_too_long_or_fill_the_disk_are_refused_before_they_are_read(
    site: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    post, files = site.client.post, {"files": ("a.png", bytes(200_000))}
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    assert post("/gradio_api/queue/join", content=bytes(1_000_001)).status_code == 413
    assert post("/gradio_api/upload", content=iter([b"x"]), headers=kind).status_code == 411
    monkeypatch.setattr(guard, "STORE", guard.stored(site.blocks.folder)[0] + 300_000)
    assert post("/gradio_api/upload", files=files).status_code == 200
    refused = post("/gradio_api/upload", files=files)
    assert refused.status_code == 507 and "try again in an hour" in refused.text
    monkeypatch.setattr(guard, "STORE", 1000)
    assert "try again in an hour" in segment(site, None)


def raw(site: SimpleNamespace, headers: str, *parts: bytes, wait: float = 0) -> bytes:
    """Send an upload by hand, its parts `wait` seconds apart; return the answer."""
    host, _, port = site.address.removeprefix("http://").partition(":")
    lines = f"Host: {host}:{port}\r\nContent-Type: multipart/form-data; boundary=XX\r\n{headers}"
    with socket.create_connection((host, int(port)), timeout=100) as connection:
        connection.sendall(f"POST /gradio_api/upload HTTP/1.1\r\n{lines}\r\n\r\n".encode())
        for part in parts:
            time.sleep(wait)
            connection.sendall(part)
        return connection.recv(1000)


def part(number: int, content: bytes) -> bytes:
    head = f'--XX\r\nContent-Disposition: form-data; name="files"; filename="{number}.png"\r\n\r\n'
    return head.encode() + content + b"\r\n"


def kept(site: SimpleNamespace) -> tuple[int, int]:
    return guard.stored(site.blocks.folder)


def test_body_in_chunks_is_refused_also_with_a_length(site: SimpleNamespace) -> None:
    body, before = part(0, bytes(5_000_000)) + b"--XX--\r\n", kept(site)
    chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    for headers in ("Content-Length: 10\r\n", ""):
        answer = raw(
            site, f"{headers}Transfer-Encoding: chunked\r\nConnection: close", chunk[:9000]
        )
        assert re.match(rb"HTTP/1.1 4(00|11) ", answer)
    assert kept(site) == before


def test_visitors_who_tell_a_length_and_send_nothing_keep_no_room(
    site: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = kept(site)
    monkeypatch.setattr(guard, "STORE", before[0] + 1_000_000)
    monkeypatch.setattr(guard, "SILENCE", 2.0)
    with ThreadPoolExecutor(5) as pool:
        begin = part(0, b"begin")[:-2]
        silent = [
            pool.submit(raw, site, "Content-Length: 900000", begin, wait=0.5) for _ in range(4)
        ]
        time.sleep(1)
        whole = part(1, b"hello" * 1000) + b"--XX--\r\n"
        assert raw(site, f"Content-Length: {len(whole)}", whole).startswith(b"HTTP/1.1 200 ")
        for answer in silent:
            assert answer.result(60).startswith(b"HTTP/1.1 400 ")
    assert kept(site) == (before[0] + 5000, before[1] + 1)  # what had arrived is deleted


def test_upload_that_drips_or_is_left_is_ended_and_deleted(
    site: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = kept(site)
    monkeypatch.setattr(guard, "ARRIVAL", 2.0)
    drops = [part(0, b"x")[:-2], *9 * [b"x"]]
    assert raw(site, "Content-Length: 900000", *drops, wait=0.3).startswith(b"HTTP/1.1 400 ")
    host, _, port = site.address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 900000"
        kind = "Content-Type: multipart/form-data; boundary=XX"
        connection.sendall(f"{head}\r\n{kind}\r\n\r\n".encode() + part(0, bytes(90_000)))
        time.sleep(0.5)
    for _ in range(50):
        if kept(site) == before:
            break
        time.sleep(0.1)
    assert kept(site) == before


def test_number_of_files_that_are_kept_is_bounded(
    site: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "FILES", kept(site)[1] + 3)
    post = site.client.post
    files = [("files", (f"{number}.png", f"own {number}".encode())) for number in range(3)]
    assert post("/gradio_api/upload", files=files).status_code == 200
    refused = post("/gradio_api/upload", files=files)
    assert refused.status_code == 507 and "try again in an hour" in refused.text


def test_visitor_without_a_name_is_refused(site: SimpleNamespace) -> None:
    for words in ("", "?session_hash=", "?session_hash=%20", "?other=1"):
        answer = site.client.get(f"/gradio_api/queue/data{words}", timeout=10)
        assert answer.status_code == 400 and "session_hash is empty" in answer.text


BAD = {
    "EPS": (EPS, "cannot be read as an image"),
    "63 megapixels": (png(7900, 7900), "has 7900x7900, more than 4 million pixels"),
    "GIF": (gif(), "is a GIF; save it as PNG"),
    "no picture": (b"hello", "cannot be read as an image"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("place", ["background", "layers", "composite"])
def test_no_picture_of_the_editor_is_decoded_before_its_format_and_size_are_known(
    place: str, kind: str, site: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, told = BAD[kind]
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("decoded"))
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("ran"))
    good, bad = upload(site, "good.png", png(60, 40)), upload(site, "bad.png", content)
    named = {"background": good, "layers": good, "composite": good} | {place: bad}
    painting = {name: FILE | {"path": path} for name, path in named.items()}
    assert told in segment(site, painting | {"layers": [painting["layers"]], "id": None})
    # The browser's way: the pictures come first, under a number.
    sent = site.client.post(
        "/gradio_api/component_server",
        data={
            "type": place.removesuffix("s"), "index": "0", "id": f"{place} {kind}",
            "component_id": str(site.editor), "session_hash": "v", "fn_name": "accept_blobs",
        },
        files={"file": ("f", content)},
    )  # fmt: skip
    assert sent.status_code == 200
    empty = {"background": None, "layers": [], "composite": None}
    assert told in segment(site, empty | {"id": f"{place} {kind}"})


@pytest.mark.parametrize("kind", ["EPS", "GIF", "no picture"])
def test_support_of_another_format_is_refused_without_a_traceback(
    kind: str, site: SimpleNamespace, capfd: pytest.CaptureFixture
) -> None:
    path = upload(site, "photo.png", BAD[kind][0])
    assert BAD[kind][1] in call(site, site.upload_event, [FILE | {"path": path}])
    printed = capfd.readouterr()
    assert printed.err == printed.out == ""


def test_wrong_calls_get_a_message_and_the_terminal_no_traceback(
    site: SimpleNamespace, capfd: pytest.CaptureFixture
) -> None:
    for path in ("/etc/passwd", "http://127.0.0.1:1/a.png", "gone.png", 5):
        told = call(site, site.upload_event, [FILE | {"path": path}])
        assert told == "A file is no longer there: upload it again"
    for data in ([], [1, 2], ["/etc/passwd"], [{}], [None]):
        assert call(site, site.upload_event, data) == "That went wrong: load the page again"
    for event in range(-1, 9):
        for body in ({"data": []}, {"data": [], "event_data": {"index": 99, "value": 1}}):
            call(site, event, **body) if len(body) == 1 else site.client.post(
                "/gradio_api/queue/join", json=body | {"fn_index": event, "session_hash": "w"}
            )
    for painting in (5, {"background": 3}, {"id": []}, {"layers": [[{"path": {}}]]}):
        assert segment(site, painting)
    for body in ({"data": 1}, {"data": {}, "component_id": 10**9}, {}):
        words = {"component_id": site.editor, "session_hash": "v", "fn_name": "accept_blobs"}
        assert site.client.post("/gradio_api/component_server", json=words | body).is_client_error
    assert site.client.get("/gradio_api/file=/etc/passwd").status_code == 403
    assert site.client.get("/config").status_code == 200
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err + printed.out


def test_paintings_and_sessions_that_are_kept_are_bounded(
    site: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "PAINTINGS", 250_000)
    editor = site.blocks.blocks[site.editor]

    def send(number: int, index: str) -> int:
        words = {"component_id": str(site.editor), "session_hash": "v", "fn_name": "accept_blobs"}
        return site.client.post(
            "/gradio_api/component_server",
            data=words | {"type": "layer", "index": index, "id": f"n{number}"},
            files={"file": ("f", bytes(100_000))},
        ).status_code

    for number in range(5):
        assert send(number, "0") == 200
    assert list(editor.blob_storage) == ["n3", "n4"]
    for index in ("8", "1000000000", "-1", "x"):
        assert send(9, index) == 400
    for visitor in range(guard.SESSIONS + 5):
        call(site, site.upload_event, [None], visitor=f"v{visitor}")
    assert len(site.blocks.app.state_holder.session_data) == guard.SESSIONS


SERVER = """
import sys, signal
from util.predict import app
class Blocks:
    local_url = "here"
    def close(self, verbose): print("closed")
class Page:
    def launch(self, host, port, names, folder):
        open(folder + "/upload", "w").write("x")
        return Blocks()
app.serve(Page(), "127.0.0.1", int(sys.argv[1]), [])
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGHUP under nohup"])
def test_uploads_are_deleted_however_the_server_is_ended(name: str, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["nohup"] if "nohup" in name else []
    process = subprocess.Popen(
        [*words, sys.executable, "-c", SERVER, str(port)],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        while not list(tmp_path.glob("amformer-app-*/upload")):
            assert process.poll() is None
            time.sleep(0.1)
        time.sleep(1)  # it waits for a signal
        process.send_signal(getattr(signal, name.split()[0]))
        if "nohup" in name:
            time.sleep(1)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
        assert process.wait(100) == 0
        assert process.stdout.read().endswith("closed\n")
    finally:
        process.kill()
        process.wait()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_size_of_a_folder_counts_all_files_below_it(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    for number, place in enumerate((tmp_path, tmp_path / "a", tmp_path / "a/b"), 1):
        (place / "f").write_bytes(np.zeros(1000 * number, np.uint8).tobytes())
    assert guard.stored(str(tmp_path)) == (6000, 3)
