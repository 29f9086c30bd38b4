"""The page in the browser: its layout, and what happens on an upload or a click."""

import base64
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}  # read by the import

import cv2
import gradio as gr
import jinja2
import numpy as np
from starlette.requests import ClientDisconnect

from util.evaluate.visualize import heatmap, overlay
from util.predict import pictures
from util.predict.example import Example
from util.predict.pictures import MarkedImage, PageExample
from util.predict.predictor import Predictor, Stages
from util.runtime.errors import UserError

UPLOAD_LIMIT, MAX_QUERIES = "20mb", 8
LIFETIME = 3600  # seconds after which uploads and a visitor's support are deleted
GALLERY: dict[str, Any] = {
    "show_label": False, "fit_columns": False, "format": "png", "allow_preview": False,
    "buttons": [],
}  # fmt: skip
OBJECT, BOX = "the object itself", "a box around it"
FILES = jinja2.FileSystemLoader(Path(__file__).parent)
RESULT = jinja2.Environment(loader=FILES, autoescape=True).get_template("result.html.j2")
PANEL_SIDE = 480  # pixels of the longer side of a picture in a row
HINT = "<p class='hint'>Results will appear here, one row per query.</p>"


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


def is_fault(record: logging.LogRecord) -> bool:
    """Tell a fault of the server from a visitor who leaves while an upload is under way."""
    return not (record.exc_info and isinstance(record.exc_info[1], ClientDisconnect))


class Page:
    """The page of one model; a visitor's support is kept in their own session.

    `examples` are for visitors to click on; `title` names the checkpoint.
    """

    def __init__(self, predictor: Predictor, examples: list[PageExample], title: str) -> None:
        self.predictor, self.examples, self.title = predictor, examples, title
        self.lock = threading.Lock()  # a predictor is not safe for several threads

    def load_support(self, path: str) -> tuple[MarkedImage, np.ndarray]:
        """Turn an upload into the session's support and the picture to paint on."""
        with errors_on_page():
            image = pictures.open_upload(path)
        support = MarkedImage(image, np.zeros(image.shape[:2], bool))
        return support, support.drawn()

    def load_example(self, event: gr.SelectData) -> tuple[MarkedImage, np.ndarray, list]:
        """Turn a click on an example into the support, the picture to paint on, the queries."""
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
        """Find the painted object in each query (file, caption); yield the results so far, as HTML.

        `editor` is what Gradio's image editor holds; `kind`, `OBJECT` or `BOX`, is what the paint
        covers.
        """
        with errors_on_page():
            if support is None or not editor or editor["background"] is None:
                raise UserError("There is no support: upload an image, or pick an example")
            mask = pictures.painted_mask(support, editor["layers"])
            if not queries:
                raise UserError("There is no query: add at least one image to search in")
            if len(queries) > MAX_QUERIES:
                what = f"{len(queries)} queries are too many at once"
                raise UserError(f"{what}: keep at most {MAX_QUERIES}")
            if kind == BOX:
                example = Example(support.image, box=pictures.bounding_box(mask))
            else:
                example = Example(support.image, mask=mask)
            # A predictor for this visitor with the shared model: supports cannot mix.
            predictor = Predictor(self.predictor.model, self.predictor.cfg)
            with self.lock:
                predictor.add_class("object", example)
        image, label = example.load("support")
        drawn, rows = MarkedImage(image, label == 1).drawn(), ""
        for number, (path, caption) in enumerate(queries, 1):
            name = caption or Path(path).name
            try:
                image = pictures.open_upload(path, name)
            except UserError as error:  # the other queries are still segmented
                rows += error_row(number, str(error))
            else:
                with self.lock:
                    stages = predictor.explain(image)
                rows += result_row(number, name, drawn, image, stages)
            yield rows

    def build(self) -> gr.Blocks:
        """Lay the page out and connect its parts."""
        with gr.Blocks(title="AMFormer", delete_cache=(LIFETIME // 4, LIFETIME)) as blocks:
            gr.Markdown(
                "# AMFormer\nMark an object in one image, the **support**; the model finds objects "
                "of the same kind in other images, the **queries**."
            )
            session = gr.State(None, time_to_live=LIFETIME)
            with gr.Row():
                with gr.Column(min_width=420):
                    editor, upload, kind = support_parts()
                with gr.Column(min_width=420):
                    queries = query_part()
                    thumbnails = example_part(self.examples) if self.examples else None
            button = gr.Button("Segment", variant="primary", elem_id="segment")
            results = gr.HTML(HINT, elem_id="results")
            gr.Markdown(
                f"Model: `{self.title}`; input size {self.predictor.size} "
                f"pixels. Images over {pictures.SIDE} pixels a side are reduced first.",
                elem_id="about",
            )
            quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
            upload.upload(self.load_support, upload, [session, editor], **quiet)
            if thumbnails:
                thumbnails.select(self.load_example, None, [session, editor, queries], **quiet)
            button.click(self.segment, [session, editor, kind, queries], results, **quiet)
        return blocks.queue(default_concurrency_limit=1, max_size=32)

    def launch(self, host: str, port: int) -> gr.Blocks:
        """Start the server in a thread of its own. It loads nothing from the internet."""
        blocks = self.build()
        logging.getLogger("uvicorn.error").addFilter(is_fault)
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
            max_file_size=UPLOAD_LIMIT,
            css_paths=Path(__file__).with_name("page.css"),
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        )
        return blocks


def support_parts() -> tuple[gr.ImageEditor, gr.UploadButton, gr.Radio]:
    """Return where the support is painted, its upload button, and what the paint covers."""
    gr.Markdown("### 1. Support: paint over the object")
    paint = (pictures.PAINT_COLOR, pictures.PAINT_OPACITY)
    editor = gr.ImageEditor(
        label="Support",
        show_label=False,
        sources=(),
        transforms=(),
        layers=False,
        brush=gr.Brush(default_size=16, colors=[paint], color_mode="fixed"),
        format="png",
        buttons=[],
        height=400,
        canvas_size=(480, 360),
        elem_id="support",
    )
    with gr.Row(equal_height=True):
        upload = gr.UploadButton("Upload a support", elem_id="upload", min_width=160)
        kind = gr.Radio(
            [OBJECT, BOX], value=OBJECT, label="The paint covers", elem_id="kind", scale=2
        )
    return editor, upload, kind


def query_part() -> gr.Gallery:
    """Return where queries are dropped."""
    gr.Markdown(f"### 2. Queries: up to {MAX_QUERIES} images to search in")
    return gr.Gallery(
        label="Queries",
        sources=["upload"],
        columns=4,
        height=200,
        interactive=True,
        object_fit="contain",
        elem_id="queries",
        **GALLERY,
    )


def example_part(examples: list[PageExample]) -> gr.Gallery:
    """Return the examples to click on."""
    gr.Markdown("### Or pick an example of a class that is new to the model")
    return gr.Gallery(
        [example.support.drawn() for example in examples],
        label="Examples",
        columns=pictures.MAX_EXAMPLES + 1,
        height=140,
        interactive=False,
        elem_id="examples",
        **GALLERY,
    )


def result_row(
    number: int, name: str, support: np.ndarray, query: np.ndarray, stages: Stages
) -> str:
    """Return the row of query `number`, from 1, of the file `name`, as HTML.

    Its pictures: support, with its object in color, query (uint8 [H,W,3] each), prior, initial
    mask, refinements, final mask.
    """
    panels = {
        "support": support,
        "query": query,
        "prior": heatmap(stages.prior),
        "initial mask": heatmap(stages.initial),
        **{f"mask {i}": 255 * mask for i, mask in enumerate(stages.refinements, 1)},
        "final": overlay(query, stages.final),
    }
    uris = {
        title: _data_uri(pictures.reduce_size(picture, PANEL_SIDE), ".jpeg")
        for title, picture in panels.items()
    }
    mask = _data_uri(255 * stages.final, ".png")
    return RESULT.render(number=number, name=name, panels=uris, mask=mask, final=stages.final)


def error_row(number: int, message: str) -> str:
    """Return the row of a query that could not be read."""
    return RESULT.render(number=number, error=message)


def _data_uri(picture: np.ndarray, suffix: str) -> str:
    """Return a picture (uint8 [H,W,3] RGB or [H,W]) as a data URI of that format."""
    bgr = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    content = cv2.imencode(suffix, bgr)[1].tobytes()
    return f"data:image/{suffix[1:]};base64,{base64.b64encode(content).decode()}"
