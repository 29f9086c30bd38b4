"""A page to try a trained model: mark an object in one image, find it in others.

    python -m util.predict.app                                   # the demo's checkpoint, after `make demo`
    python -m util.predict.app --checkpoint exp/pascal/run/best.pth --port 8000

It needs no internet and answers only this machine, unless --host says otherwise: docs/app.md.
"""

import os
import signal
import socket
import tempfile
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}  # read at import

import cv2
import gradio as gr
import numpy as np
from PIL import Image

from util import ROOT
from util.data.lists import fold_list
from util.data.source import open_source
from util.data.tables import load_table
from util.evaluate.visualize import overlay
from util.folds import fold_of
from util.predict.app_page import CSS, failed_row, found_row
from util.predict.predictor import Box, Predictor, as_rgb
from util.runtime.cli import Parser, main
from util.runtime.errors import UserError

DEMO = ROOT / "exp/demo/split0_lite0/best.pth"
BYTES, PIXELS = "20mb", 50_000_000  # of an upload
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")  # others may run programs, as EPS does
SIDE = 1024  # pixels of the longer side; larger images are shrunk to it
QUERIES, MOST_EXAMPLES = 8, 5  # at once
KEPT = 3600  # seconds that uploads and a visitor's support are kept at most
PAINT = ("#ff3b30", 0.6)
OBJECT, BOX = "the object itself", "a box around it"
HINT = "<p class='hint'>The results will stand here, one row a query.</p>"
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}  # nothing to fetch


@dataclass(frozen=True)
class MarkedImage:
    """What a visitor's session holds: an image (uint8 [H,W,3]), and its mask (bool [H,W]).

    The mask is that of an example; an upload's is empty, until the visitor paints it.
    """

    image: np.ndarray
    mask: np.ndarray

    def drawn(self) -> np.ndarray:
        """The image with its mask in colour, to paint on (uint8 [H,W,3])."""
        return overlay(self.image, self.mask.astype(np.uint8))


@dataclass(frozen=True)
class PageExample:
    """A support and queries of one novel class of the checkpoint's own validation data."""

    support: MarkedImage
    queries: list[np.ndarray]  # uint8 [H,W,3] each


class Refused(gr.Error):
    """What a visitor did wrong: a message on the page, and nothing in the terminal."""

    def __init__(self, message: str):
        self.plain = message  # Gradio takes a message for HTML, and a file may be called anything
        super().__init__(escape(message), duration=20, print_exception=False)


def open_picture(path: str | Path, name: str = "") -> np.ndarray:
    """An uploaded file as RGB, upright, at most `SIDE` pixels a side (uint8 [H,W,3]).

    Raises:
        Refused: it is no image, or too large.
    """
    name = name or Path(path).name
    try:
        with Image.open(path, formats=FORMATS) as picture:
            if picture.width * picture.height > PIXELS:
                raise Image.DecompressionBombError
            image = as_rgb(picture)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = PIXELS // 1_000_000
        raise Refused(f"{name}: has more than {limit} million pixels; make it smaller") from None
    except Exception:  # a broken file can fail anywhere in its reader
        told = f"{name}: cannot be read as an image; give one of {', '.join(FORMATS)}"
        raise Refused(told) from None
    return shrunk(image, cv2.INTER_AREA)


def shrunk(picture: np.ndarray, interpolation: int) -> np.ndarray:
    """The picture, or mask, with at most `SIDE` pixels a side."""
    factor = SIDE / max(picture.shape[:2])
    if factor >= 1:
        return picture
    size = [max(1, round(side * factor)) for side in picture.shape[1::-1]]
    return cv2.resize(picture, size, interpolation=interpolation)


def painted(support: MarkedImage | None, editor: dict | None) -> np.ndarray:
    """What is marked on the support, by its example or with the brush (bool [H,W]).

    Raises:
        Refused: there is no support, or nothing is painted.
    """
    if support is None or not editor or editor["background"] is None:
        raise Refused("There is no support: upload an image, or pick an example")
    mask = support.mask.copy()
    for layer in editor["layers"]:
        if layer.shape[:2] != mask.shape:
            raise Refused("The painting does not fit its image: upload the support again")
        mask |= layer[..., 3] > 255 * PAINT[1] / 2
    if not mask.any():
        raise Refused("Nothing is painted on the support: paint over the object, or around it")
    return mask


def enclosing(mask: np.ndarray) -> Box:
    """The smallest box around what is True in a mask (bool [H,W])."""
    ys, xs = np.nonzero(mask)
    return Box(int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)


class Page:
    """The page of one model; a visitor's support lives in their own session.

    Args:
        predictor: the model; its own supports stay empty.
        examples: to click on.
        title: which checkpoint it is.
    """

    def __init__(self, predictor: Predictor, examples: list[PageExample], title: str):
        self.predictor, self.examples, self.title = predictor, examples, title
        self.busy = threading.Lock()  # a model is not for several threads

    def load_support(self, path: str) -> tuple[MarkedImage, np.ndarray]:
        """An upload -> the session's support, and what to paint on."""
        image = open_picture(path)
        support = MarkedImage(image, np.zeros(image.shape[:2], bool))
        return support, support.drawn()

    def load_example(self, event: gr.SelectData) -> tuple[MarkedImage, np.ndarray, list]:
        """A click on an example -> the session's support, what to paint on, the queries."""
        example = self.examples[event.index]
        queries = [(image, f"example {i}") for i, image in enumerate(example.queries, 1)]
        return example.support, example.support.drawn(), queries

    def segment(
        self,
        support: MarkedImage | None,
        editor: dict | None,
        kind: str,
        queries: list[tuple[str, str | None]] | None,
    ) -> Iterator[str]:
        """Finds the painted object in each query; yields the results so far, as HTML."""
        mask = painted(support, editor)
        if not queries:
            raise Refused("There is no query: add at least one image to look into")
        if len(queries) > QUERIES:
            raise Refused(f"{len(queries)} queries are too many at once: keep at most {QUERIES}")
        label = enclosing(mask) if kind == BOX else mask
        # A predictor of this visitor's own over the one model: supports of two cannot mix.
        predictor = Predictor(self.predictor.model, self.predictor.cfg)
        with self.busy:
            try:
                predictor.set_support(support.image, label)
            except ValueError as error:  # such as an object too small for the model's size
                raise Refused(str(error)) from None
        if kind == BOX:
            mask[label.y0 : label.y1, label.x0 : label.x1] = True
        told, rows = MarkedImage(support.image, mask).drawn(), ""
        for number, (path, caption) in enumerate(queries, 1):
            name = caption or Path(path).name
            try:
                image = open_picture(path, name)
            except Refused as error:  # the other queries are not lost for one
                rows += failed_row(number, error.plain)
            else:
                with self.busy:
                    stages = predictor.explain(image)
                rows += found_row(number, name, told, image, stages)
            yield rows

    def build(self) -> gr.Blocks:
        """The page's parts and what they do."""
        with gr.Blocks(title="AMFormer", delete_cache=(KEPT // 4, KEPT)) as blocks:
            gr.Markdown(
                "# AMFormer\nMark an object in one image, the **support**; the model looks for its "
                "like in the **queries**."
            )
            kept = gr.State(None, time_to_live=KEPT)
            with gr.Row():
                with gr.Column(min_width=420):
                    editor, upload, kind = support_parts()
                with gr.Column(min_width=420):
                    queries = query_part()
                    thumbnails = example_part(self.examples) if self.examples else None
            go = gr.Button("Segment", variant="primary", elem_id="segment")
            results = gr.HTML(HINT, elem_id="results")
            gr.Markdown(
                f"Model: `{self.title}`; it sees images at {self.predictor.size} x "
                f"{self.predictor.size} pixels. Images over {SIDE} pixels a side are shrunk first.",
                elem_id="about",
            )
            private = {"api_visibility": "private", "show_progress": "minimal"}
            upload.upload(self.load_support, upload, [kept, editor], **private)
            if thumbnails:
                thumbnails.select(self.load_example, None, [kept, editor, queries], **private)
            inputs = [kept, editor, kind, queries]
            go.click(self.segment, inputs, results, **private)
        return blocks.queue(default_concurrency_limit=1, max_size=32)


def support_parts() -> tuple[gr.ImageEditor, gr.UploadButton, gr.Radio]:
    """Where one paints, and what goes with it."""
    gr.Markdown("### 1. Support: paint over the object")
    editor = gr.ImageEditor(
        label="Support",
        show_label=False,
        sources=(),
        transforms=(),
        layers=False,
        brush=gr.Brush(default_size=16, colors=[PAINT], color_mode="fixed"),
        format="png",
        buttons=[],
        height=400,
        canvas_size=(480, 360),
        elem_id="support",
    )
    with gr.Row(equal_height=True):
        upload = gr.UploadButton("Upload a support", elem_id="upload", min_width=160)
        kind = gr.Radio(
            [OBJECT, BOX], value=OBJECT, label="What I paint is", elem_id="kind", scale=2
        )
    return editor, upload, kind


def query_part() -> gr.Gallery:
    """Where queries are dropped."""
    gr.Markdown(f"### 2. Queries: up to {QUERIES} images to look into")
    return gr.Gallery(
        label="Queries",
        show_label=False,
        sources=["upload"],
        columns=4,
        fit_columns=False,
        height=200,
        format="png",
        interactive=True,
        object_fit="contain",
        allow_preview=False,
        buttons=[],
        elem_id="queries",
    )


def example_part(examples: list[PageExample]) -> gr.Gallery:
    """Examples to click on."""
    gr.Markdown("### Or pick an example of a class new to the model")
    return gr.Gallery(
        [example.support.drawn() for example in examples],
        label="Examples",
        show_label=False,
        columns=MOST_EXAMPLES,
        fit_columns=False,
        height=140,
        format="png",
        interactive=False,
        allow_preview=False,
        buttons=[],
        elem_id="examples",
    )


def find_examples(predictor: Predictor) -> list[PageExample]:
    """Of each novel class a support and two queries, from the validation data of the checkpoint.

    Raises:
        UserError: the data is there and broken.
    """
    data = predictor.cfg.Data
    if not Path(data.data_root).is_dir():
        return []
    source = open_source(data, "val")
    listed = fold_list(load_table(source, data.list_dir), fold_of(data), "val", data.min_pixels)
    examples = []
    there = source.images_on_disk()
    for class_id, names in listed.by_class.items():
        names = [name for name in names if name in there]
        if len(names) > 2 and len(examples) < MOST_EXAMPLES:
            (image, label), *queries = [source.load(name) for name in names[:3]]
            mask = shrunk(label, cv2.INTER_NEAREST) == class_id
            queries = [shrunk(query, cv2.INTER_AREA) for query, _ in queries]
            examples.append(PageExample(MarkedImage(shrunk(image, cv2.INTER_AREA), mask), queries))
    return examples


def serve(page: Page, host: str, port: int) -> None:
    """Serves the page until Ctrl-C; uploads lie in a folder that goes away with it.

    Raises:
        UserError: the address cannot be had.
    """
    check_address(host, port)
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    with tempfile.TemporaryDirectory(prefix="amformer-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        blocks = page.build()
        blocks.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            run_history=False,
            enable_monitoring=False,
            footer_links=[],
            max_file_size=BYTES,
            css=CSS,
            theme=gr.themes.Default(**FONTS),
        )
        for each in (signal.SIGINT, signal.SIGTERM):  # also where a shell has them ignored
            signal.signal(each, signal.default_int_handler)
        print(f"AMFormer's page: {blocks.local_url}  (Ctrl-C ends it)", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print()
        finally:
            blocks.close(verbose=False)


def check_address(host: str, port: int) -> None:
    """Makes sure that one can listen there.

    Raises:
        UserError: no such port or host, or it is in use.
    """
    if not 0 < port < 65536:
        raise UserError(f"--port {port}: give a port from 1 to 65535")
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port}: cannot be listened on ({error.strerror}); "
            "give another --port, or end what uses it"
        ) from None


def app() -> None:
    parser = Parser(__doc__)
    parser.add_argument(
        "--checkpoint", type=Path, default=DEMO, metavar="FILE", help="of train.py (the demo's)"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:1")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: all (127.0.0.1)")
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="(7860)")
    args = parser.parse_args()
    if args.checkpoint == DEMO and not DEMO.is_file():
        raise UserError(f"{DEMO}: no such checkpoint; run make demo, or give --checkpoint")
    check_address(args.host, args.port)  # before the model is read, which takes seconds
    predictor = Predictor.from_checkpoint(args.checkpoint, args.device)
    title = min(str(args.checkpoint), os.path.relpath(args.checkpoint), key=len)
    serve(Page(predictor, find_examples(predictor), title), args.host, args.port)


if __name__ == "__main__":
    main(app)
