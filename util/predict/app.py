"""Serve a page to try a trained model: mark an object in one image, find it in others.

    python -m util.predict.app         # the weights for photographs, docs/photographs.md
    python -m util.predict.app --checkpoint exp/pascal/run/best.pth --port 8000

The page needs no internet access. Only this machine can open it unless --host says otherwise.
docs/app.md describes it.
"""

import os
import signal
import socket
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from util.predict.command import add_model_arguments, check_model_arguments
from util.runtime.cli import Parser, main
from util.runtime.errors import UserError
from util.runtime.log import log

if TYPE_CHECKING:  # gradio and torch take seconds to import, `--help` needs neither
    from util.predict.page import Page


def app() -> None:
    """Read the command line, load the model and serve the page."""
    parser = Parser(__doc__)
    add_model_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: all (127.0.0.1)")
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="(7860)")
    parser.add_argument(
        "--name", action="append", default=[],
        help="a further name of this server, such as one of a proxy; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--data", type=Path, metavar="DIR",
        help="data set of the checkpoint, as Data.data_root: shows examples of its novel classes",
    )  # fmt: skip
    args = parser.parse_args()
    check_address(args.host, args.port)
    check_model_arguments(args)
    # Imported only now: gradio and torch take seconds to load.
    from util.predict.page import Page
    from util.predict.pictures import find_examples
    from util.predict.predictor import Predictor

    predictor = Predictor.from_checkpoint(args.checkpoint, args.device)
    title = min(str(args.checkpoint), os.path.relpath(args.checkpoint), key=len)
    page = Page(predictor, find_examples(predictor, args.data), title)
    serve(page, args.host, args.port, args.name)


def check_address(host: str, port: int) -> None:
    """Make sure that a server can listen at the address.

    Raises `UserError` if there is no such host or port, or it is in use.
    """
    if not 0 < port < 65536:
        raise UserError(f"--port {port}: give a port from 1 to 65535")
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        what = f"--host {host} --port {port}: cannot listen there ({error.strerror})"
        raise UserError(f"{what}; give another --port, or end the program that uses it") from None


def serve(page: "Page", host: str, port: int, names: list[str]) -> None:
    """Serve the page until Ctrl-C; uploads are in a temporary folder, which is then deleted.

    SIGTERM and the end of the terminal (SIGHUP) count as Ctrl-C. `names` are further names of this
    server. Raises `UserError` if the address cannot be used.
    """
    from util.predict.guard import names_of

    check_address(host, port)
    end_on_signals()
    with tempfile.TemporaryDirectory(prefix="amformer-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = f"{folder}/gradio"  # it copies what lies outside of it
        tempfile.tempdir = folder
        blocks = page.launch(host, port, names_of(host, names), folder)
        end_on_signals()  # gradio may have changed this
        log.info(f"AMFormer's page: {blocks.local_url}  (Ctrl-C ends it)")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            with suppress(OSError):  # the terminal may be gone
                log.info("")
        finally:
            blocks.close(verbose=False)


def end_on_signals() -> None:
    """Let SIGINT, SIGTERM and, but for `nohup`, SIGHUP raise `KeyboardInterrupt`."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number and (name != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN):
            signal.signal(number, signal.default_int_handler)


if __name__ == "__main__":
    main(app)
