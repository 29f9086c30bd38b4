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
    args = parser.parse_args()
    check_address(args.host, args.port)
    check_model_arguments(args)
    # Imported only now: gradio and torch take seconds to load.
    from util.predict.page import Page
    from util.predict.pictures import find_examples
    from util.predict.predictor import Predictor

    predictor = Predictor.from_checkpoint(args.checkpoint, args.device)
    title = min(str(args.checkpoint), os.path.relpath(args.checkpoint), key=len)
    serve(Page(predictor, find_examples(predictor), title), args.host, args.port)


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


def serve(page: "Page", host: str, port: int) -> None:
    """Serve the page until Ctrl-C; uploads are in a temporary folder, which is then deleted.

    Raises `UserError` if the address cannot be used.
    """
    check_address(host, port)
    with tempfile.TemporaryDirectory(prefix="amformer-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = f"{folder}/gradio"  # it copies what lies outside of it
        tempfile.tempdir = folder
        blocks = page.launch(host, port)
        for each in (signal.SIGINT, signal.SIGTERM):  # gradio and shells may have changed these
            signal.signal(each, signal.default_int_handler)
        log.info(f"AMFormer's page: {blocks.local_url}  (Ctrl-C ends it)")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            log.info("")
        finally:
            blocks.close(verbose=False)


if __name__ == "__main__":
    main(app)
