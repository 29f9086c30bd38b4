"""What the page's server refuses: foreign sites, more than it can hold, calls that are not its own.

A visitor's mistake is a message on the page; nothing that a visitor sends gives a traceback.
"""

import asyncio
import os
import socket
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qs, urlsplit

import gradio as gr
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from util.predict.pictures import SIDE, require_picture
from util.runtime.errors import UserError
from util.runtime.log import log

MAX_QUERIES = 8  # of one click
MAX_FILE = 20_000_000  # bytes
STORE = 2_000_000_000  # bytes of all files that are kept at once
FILES = 5_000  # their number; each has a folder of its own
SILENCE = 20.0  # seconds without a byte of a body that is on its way
ARRIVAL = 600.0  # seconds for all of it
SESSIONS = 32  # visitors whose supports are kept
PAINTING = 4 * SIDE**2  # pixels of a picture that the editor sends: a background, a layer
PAINTINGS = 256_000_000  # bytes of such pictures that wait for their click
MAX_LAYERS = 8

_BODIES = {"upload": MAX_QUERIES * MAX_FILE + 1_000_000, "component_server": MAX_FILE}
_BODY = 1_000_000  # bytes of any other call
_WITHOUT_BODY = ("GET", "HEAD", "OPTIONS")
_FULL = "The page holds as many files as it may: try again in an hour"


class PageError(gr.Error):
    """A visitor's mistake: a message on the page, and nothing in the terminal."""

    def __init__(self, message: str) -> None:
        # Gradio takes a message for HTML, and a file may have any name.
        super().__init__(escape(message), duration=20, print_exception=False)


@contextmanager
def errors_on_page() -> Iterator[None]:
    """Show a `UserError` of the block on the page."""
    try:
        yield
    except UserError as error:
        raise PageError(str(error)) from None


def names_of(host: str, more: list[str]) -> set[str]:
    """Return the names under which a server may be called that listens at `host`."""
    return {name.lower() for name in (host, "localhost", socket.gethostname(), *more)}


class Guard:
    """A layer around the page's web application (ASGI) that answers what must not reach it.

    - 403: a `Host` that is neither an address nor one of `names`, so that no foreign name can be
      made to point here; an `Origin` other than that host, so that no other site can send files.
    - 411, 413, 507: a call without a length, or in chunks, whose length nobody checks; one that is
      too long; an upload that would fill `folder` with more than `STORE` bytes or `FILES` files.
    - 400: a call that the page itself never makes; one that does not arrive in time, or no longer
      fits when it does. So a visitor who tells a length and sends nothing keeps no room.
    """

    def __init__(self, app: ASGIApp, names: set[str], folder: str) -> None:
        self.app, self.names, self.folder = app, names, folder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers, started = Headers(scope=scope), False
        length = headers.get("content-length", "")
        size = int(length) if length.isdecimal() else 0
        refusal = (
            self._foreign(headers) or self._too_large(scope, headers, size) or _nameless(scope)
        )
        if refusal:
            return await PlainTextResponse(refusal[1], refusal[0])(scope, receive, send)

        async def answer(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        if scope["method"] not in _WITHOUT_BODY:
            receive = self._bounded(receive)
        try:
            await self.app(scope, receive, answer)
        except (ClientDisconnect, MultiPartException):  # of other calls than uploads
            if not started:
                await PlainTextResponse("the call has not arrived", 400)(scope, receive, send)
        except Exception as error:
            report(error, scope["path"])
            if not started:
                await PlainTextResponse("no call of this page", 400)(scope, receive, send)

    def _bounded(self, receive: Receive) -> Receive:
        """Return a `receive` that raises `MultiPartException` if a body does not arrive, or fit.

        Gradio then deletes what has arrived of an upload. It would keep that of a visitor who
        leaves.
        """
        begin, arrived, checked, whole = time.monotonic(), 0, 0, False

        async def bounded() -> Message:
            nonlocal arrived, checked, whole
            if whole:  # what comes now is the end of the visit
                return await receive()
            left = begin + ARRIVAL - time.monotonic()
            try:
                message = await asyncio.wait_for(receive(), max(0, min(SILENCE, left)))
            except TimeoutError:
                raise MultiPartException("The call took too long") from None
            if message["type"] == "http.disconnect":
                raise MultiPartException("The visitor has left")
            arrived += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if arrived - checked > _BODY:
                checked = arrived
                if stored(self.folder)[0] > STORE:
                    raise MultiPartException(_FULL)
            return message

        return bounded

    def _foreign(self, headers: Headers) -> tuple[int, str] | None:
        host, origin = headers.get("host", "").lower(), headers.get("origin", "").lower()
        if not self._is_ours(host):
            what = f"this server is not called {host!r}"
            return 403, f"{what}; start it with --name NAME to allow a name"
        if origin and origin.partition("://")[2] != host:
            return 403, f"another site, {origin!r}, may not use this page"
        return None

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return name in self.names or bool(ip_address(name))
        except ValueError:
            return False

    def _too_large(self, scope: Scope, headers: Headers, size: int) -> tuple[int, str] | None:
        if scope["method"] in _WITHOUT_BODY:
            return None
        if "content-length" not in headers or "transfer-encoding" in headers:
            return 411, "a call must tell its length, and come in one piece"
        call = scope["path"].rstrip("/").rpartition("/")[2]
        if size > (most := _BODIES.get(call, _BODY)):
            return 413, f"{size} bytes are too many at once; send at most {most}"
        if call == "upload":
            held, files = stored(self.folder)
            if held + size > STORE or files >= FILES:
                return 507, _FULL
        return None


def _nameless(scope: Scope) -> tuple[int, str] | None:
    """Refuse to wait for the results of a visitor without a name: they would be anyone's."""
    path = scope["path"].rstrip("/")
    wanted = parse_qs(scope["query_string"].decode("latin1")).get("session_hash", [""])[0]
    if path.endswith("/queue/data") and not wanted.strip():
        return 400, "session_hash is empty"
    return None


def stored(folder: str) -> tuple[int, int]:
    """Return the bytes and the number of the files in a folder and those below it."""
    size = files = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                size += os.lstat(os.path.join(place, name)).st_size
                files += 1
            except FileNotFoundError:  # deleted meanwhile
                continue
    return size, files


def report(error: Exception, where: str) -> None:
    """Tell the terminal in a line of a call that went wrong; with -v, all of it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{os.path.basename(last.filename)}:{last.lineno}"
    text = f"{where}: {type(error).__name__} at {place}: {error}"
    log.warning("%s", " ".join(text[:300].split()))
    log.debug("%s", "".join(traceback.format_exception(error)))


class GuardedBlocks(gr.Blocks):
    """Blocks that check what they are sent before a picture is decoded or a file is opened.

    `folder` is where Gradio keeps uploads and results.
    """

    folder = ""

    async def process_api(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Run an event; whatever goes wrong is a message on the page."""
        try:
            if stored(self.folder)[0] > STORE:
                raise PageError(_FULL)
            if not options.get("session_hash"):
                raise PageError("The visitor has no name: load the page again")
            return await super().process_api(*arguments, **options)
        except PageError:
            raise
        except Exception as error:
            report(error, "event")
            raise PageError("That went wrong: load the page again") from None

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], *arguments: Any, **options: Any
    ) -> list[Any]:
        """Check the values of the event's components, then let Gradio read them."""
        for block, value in zip(block_fn.inputs, inputs, strict=True):
            with errors_on_page():
                for path in paths_in(value):
                    require_stored(path, self.folder)
                    if isinstance(block, gr.ImageEditor):
                        require_picture(path, "the painting", PAINTING)
                if isinstance(block, gr.ImageEditor) and value and value.get("id"):
                    for content in sent_pictures(block, value["id"]):
                        require_picture(content, "the painting", PAINTING)
        return await super().preprocess_data(block_fn, inputs, *arguments, **options)


def paths_in(value: Any) -> Iterator[str]:
    """Yield the files that the value of a component names."""
    if isinstance(value, dict) and "path" in value:
        yield value["path"]
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from paths_in(part)


def require_stored(path: Any, folder: str) -> None:
    """Raise `UserError` if a path is no file of the page's folder, but another one or a URL."""
    real, folder = os.path.realpath(str(path)), os.path.realpath(folder)
    if os.path.commonpath([real, folder]) != folder or not os.path.isfile(real):
        raise UserError("A file is no longer there: upload it again")


def sent_pictures(editor: gr.ImageEditor, number: str) -> list[bytes]:
    """Return the pictures that a browser has sent for an editor under a number of its own."""
    sent = editor.blob_storage.get(number)
    every = [sent.background, sent.composite, *sent.layers] if sent else []
    return [content for content in every if content is not None]


def bound_paintings(editor: gr.ImageEditor) -> gr.ImageEditor:
    """Keep an editor from holding more than `PAINTINGS` bytes; the oldest pictures give way."""
    accept = editor.accept_blobs

    def accept_bounded(data: Any) -> None:
        index = data.data.get("index") or "0"
        if index != "null" and int(index) not in range(MAX_LAYERS):
            raise HTTPException(400, f"layer {index}: there are at most {MAX_LAYERS}")
        accept(data)
        kept = editor.blob_storage
        while sum(len(c) for key in kept for c in sent_pictures(editor, key)) > PAINTINGS:
            kept.pop(next(iter(kept)))

    accept_bounded._is_server_fn = True  # type: ignore[attr-defined]  # Gradio calls no others
    editor.accept_blobs = accept_bounded
    return editor
