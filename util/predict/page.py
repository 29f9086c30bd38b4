"""The page in the browser: its layout, and what happens on an upload or a click."""

import base64
import os
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path
from typing import Any

os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}  # read by the import

import gradio as gr
import jinja2
import numpy as np
from starlette.middleware import Middleware

from util.evaluate.visualize import heatmap, overlay
from util.predict import pictures
from util.predict.command import COCO, Query
from util.predict.example import Example
from util.predict.guard import (
    MAX_FILE,
    MAX_QUERIES,
    SESSIONS,
    Guard,
    GuardedBlocks,
    bound_paintings,
    errors_on_page,
)
from util.predict.output import Line, encode_jpeg, reduce_size, summed_up, write_result
from util.predict.pictures import MarkedImage, PageExample
from util.predict.predictor import Predictor, Stages
from util.runtime.errors import UserError
from util.runtime.files import Outputs

MAX_SUPPORTS = 5
LIFETIME = 3600  # seconds after which uploads and a visitor's support are deleted
GALLERY: dict[str, Any] = {
    "show_label": False, "fit_columns": False, "format": "png", "allow_preview": False,
    "buttons": [],
}  # fmt: skip
FILES = jinja2.FileSystemLoader(Path(__file__).parent)
RESULT = jinja2.Environment(loader=FILES, autoescape=True).get_template("result.html.j2")
PANEL_SIDE, QUALITY = 480, 95  # of a picture in a row: pixels of its longer side, as a JPEG
THUMBNAIL_SIDE = 160
HINT = "<p class='hint'>Results will appear here, one row per query.</p>"


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
            image = reduce_size(pictures.open_upload(path), pictures.SIDE)
        support = MarkedImage(image, np.zeros(image.shape[:2], bool))
        return support, support.drawn()

    def load_example(self, event: gr.SelectData) -> tuple:
        """Turn a click on an example into the support, the picture to paint on, the queries.

        The kept supports are removed: they may be of another class.
        """
        example = self.examples[event.index]
        queries = [(image, f"example {i}") for i, image in enumerate(example.queries, 1)]
        return example.support, example.support.drawn(), queries, *show_kept([])

    def keep(
        self, support: MarkedImage | None, editor: dict | None, kind: str, kept: list[Example]
    ) -> tuple:
        """Add the painted support to the kept ones, and clear the editor for another one.

        Arguments as `gather_supports`.
        """
        with errors_on_page():
            kept = gather_supports(support, editor, kind, kept)
        return *show_kept(kept), None, None

    def segment(
        self,
        support: MarkedImage | None,
        editor: dict | None,
        kind: str,
        kept: list[Example],
        queries: list[tuple[str, str | None]] | None,
    ) -> Iterator[tuple]:
        """Find the marked object in each query (file, caption).

        Other arguments as `gather_supports`. Yields the results so far as HTML, and the states of
        the buttons that download them all.
        """
        with errors_on_page():
            examples = gather_supports(support, editor, kind, kept)
            if not queries:
                raise UserError("There is no query: add at least one image to search in")
            if len(queries) > MAX_QUERIES:
                what = f"{len(queries)} queries are too many at once"
                raise UserError(f"{what}: keep at most {MAX_QUERIES}")
            # A predictor for this visitor with the shared model: supports cannot mix.
            shared = self.predictor
            predictor = Predictor(shared.model, shared.cfg, shared.threshold)
            with self.lock:
                predictor.add_class("object", examples)
        drawn, rows, stems = draw_example(examples[0]), "", set[str]()
        waiting = gr.update(interactive=False)
        with tempfile.TemporaryDirectory() as folder:
            outputs = Outputs(Path(folder, "results"), "page")
            with summed_up(outputs, ()) as add:
                for number, (path, caption) in enumerate(queries, 1):
                    name = caption or Path(path).name
                    stem = free_stem(Path(name).stem, stems)
                    query = Query(name, stem, f"{stem}{Path(name).suffix}")
                    try:
                        image = pictures.open_upload(path, name)
                        stages, line = self._segment_query(predictor, query, image, outputs)
                    except UserError as error:  # the other queries are still segmented
                        add({"image": name, "error": str(error)})
                        rows += error_row(number, str(error))
                    else:
                        add(line)
                        rows += result_row(number, name, drawn, image, stages)
                    yield rows, waiting, waiting
            if (coco := outputs.folder / COCO).exists():  # else no query could be read
                packed = pack(outputs.folder, Path(folder, "amformer_results.zip"))
                # Gradio copies both files before it goes on.
                yield rows, *(gr.update(value=file, interactive=True) for file in (packed, coco))

    def _segment_query(
        self, predictor: Predictor, query: Query, image: np.ndarray, outputs: Outputs
    ) -> tuple[Stages, Line]:
        """Segment an upload, reduced to `SIDE`; write its results at the upload's own size."""
        small = reduce_size(image, pictures.SIDE)
        with self.lock:
            stages = predictor.explain(small)
        shape, result, names = image.shape[:2], stages.result, predictor.names
        return stages, write_result(outputs, query, small, shape, result, names, "coco")

    def build(self) -> GuardedBlocks:
        """Lay the page out and connect its parts."""
        with GuardedBlocks(title="AMFormer", delete_cache=(LIFETIME // 4, LIFETIME)) as blocks:
            gr.Markdown(
                "# AMFormer\nMark an object in an image, the **support**; the model finds objects "
                "of the same kind in other images, the **queries**."
            )
            session = gr.State(None, time_to_live=LIFETIME)
            kept = gr.State([], time_to_live=LIFETIME)
            with gr.Row():
                with gr.Column(min_width=420):
                    editor, upload, kind = support_parts()
                    keep, clear, gallery = kept_parts()
                with gr.Column(min_width=420):
                    queries = query_part()
                    thumbnails = example_part(self.examples) if self.examples else None
            button = gr.Button("Segment", variant="primary", elem_id="segment")
            results = gr.HTML(HINT, elem_id="results")
            with gr.Row():
                save = [
                    gr.DownloadButton("Download all results (zip)", interactive=False),
                    gr.DownloadButton("Download COCO JSON", interactive=False),
                ]
            gr.Markdown(
                f"Model: `{self.title}`; input size {self.predictor.size} "
                f"pixels. Images over {pictures.SIDE} pixels a side are reduced first.",
                elem_id="about",
            )
            quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
            upload.upload(self.load_support, upload, [session, editor], **quiet)
            marked = [session, editor, kind, kept]
            keep.click(self.keep, marked, [kept, gallery, session, editor], **quiet)
            clear.click(lambda: show_kept([]), None, [kept, gallery], **quiet)
            if thumbnails:
                shown = [session, editor, queries, kept, gallery]
                thumbnails.select(self.load_example, None, shown, **quiet)
            button.click(self.segment, [*marked, queries], [results, *save], **quiet)
        blocks.queue(default_concurrency_limit=1, max_size=32)
        return blocks

    def launch(self, host: str, port: int, names: set[str], folder: str) -> gr.Blocks:
        """Start the server in a thread of its own. It loads nothing from the internet.

        It answers to these names (`guard.names_of`). `folder` is where Gradio keeps files.
        """
        blocks = self.build()
        blocks.folder = folder
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
            max_file_size=MAX_FILE,
            state_session_capacity=SESSIONS,
            app_kwargs={"middleware": [Middleware(Guard, names=names, folder=folder)]},
            css_paths=Path(__file__).with_name("page.css"),
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        )
        return blocks


def free_stem(stem: str, taken: set[str]) -> str:
    """Return a stem that is not taken, such as `photo_2`, and add it to the taken ones."""
    names = chain([stem], (f"{stem}_{number}" for number in count(2)))
    free = next(name for name in names if name not in taken)
    taken.add(free)
    return free


def support_parts() -> tuple[gr.ImageEditor, gr.UploadButton, gr.Radio]:
    """Return where the support is painted, its upload button, and what the paint covers."""
    gr.Markdown(f"### 1. Support: paint over the object, in one to {MAX_SUPPORTS} images")
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
            pictures.KINDS, value=pictures.OBJECT, label="The paint covers", elem_id="kind", scale=2
        )
    return bound_paintings(editor), upload, kind


def kept_parts() -> tuple[gr.Button, gr.Button, gr.Gallery]:
    """Return the buttons that keep and remove supports, and where the kept ones are shown."""
    with gr.Row():
        keep = gr.Button("Add another support", elem_id="keep")
        clear = gr.Button("Remove the added ones", elem_id="clear")
    gallery = gr.Gallery(
        label="Added supports",
        columns=MAX_SUPPORTS,
        height=130,
        interactive=False,
        visible=False,
        elem_id="kept",
        **GALLERY,
    )
    return keep, clear, gallery


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


def gather_supports(
    support: MarkedImage | None, editor: dict | None, kind: str, kept: list[Example]
) -> list[Example]:
    """Return the supports that a visitor kept, and the one that is being painted, if there is one.

    `editor` is what Gradio's image editor holds for `support`; `kind`, one of `KINDS`, is what the
    paint covers. Raises `UserError` if there is no support, one too many, or it is not painted.
    """
    if support is None and kept:
        return kept
    if support is None or not editor or editor["background"] is None:
        kept_for = f"kept for an hour, of the last {SESSIONS} visitors"
        raise UserError(f"There is no support ({kept_for}): upload an image, or pick an example")
    if len(kept) == MAX_SUPPORTS:
        raise UserError(f"There are {MAX_SUPPORTS} supports already: remove the added ones first")
    return [*kept, pictures.marked_example(support, editor["layers"], kind)]


def show_kept(kept: list[Example]) -> tuple[list[Example], dict]:
    """Return the kept supports and the state of the gallery that shows them."""
    # Gradio names files by their content: a picture of the editor's size would be written while the
    # browser still reads it.
    drawn = [reduce_size(draw_example(example), THUMBNAIL_SIDE) for example in kept]
    return kept, gr.update(value=drawn, visible=bool(drawn))


def draw_example(example: Example) -> np.ndarray:
    """Draw a support with its label in color (uint8 [H,W,3])."""
    image, label = example.load("support")
    return MarkedImage(image, label == 1).drawn()


def result_row(
    number: int, name: str, support: np.ndarray, query: np.ndarray, stages: Stages
) -> str:
    """Return the row of query `number`, from 1, of the file `name`, as HTML.

    Its pictures: the first support, with its object in color, query (uint8 [H,W,3] each), prior,
    initial mask (of AMFormer), masks before the base learner is merged in, final mask.
    """
    query = reduce_size(query, pictures.SIDE)
    panels = {
        "support": support,
        "query": query,
        "prior": heatmap(stages.prior),
        **({} if stages.initial is None else {"initial mask": heatmap(stages.initial)}),
        **{f"mask {i}": 255 * mask for i, mask in enumerate(stages.refinements, 1)},
        "final": overlay(query, stages.final),
    }
    uris = {title: _data_uri(reduce_size(picture, PANEL_SIDE)) for title, picture in panels.items()}
    here = stages.result.here
    return RESULT.render(
        number=number, name=name, panels=uris, final=stages.final, here=here and here[0]
    )


def error_row(number: int, message: str) -> str:
    """Return the row of a query that could not be read."""
    return RESULT.render(number=number, error=message)


def pack(folder: Path, path: Path) -> Path:
    """Write a zip of a folder, without hidden files, and return its path."""
    with zipfile.ZipFile(path, "w") as packed:
        for file in sorted(folder.rglob("[!.]*")):
            packed.write(file, file.relative_to(folder))
    return path


def _data_uri(picture: np.ndarray) -> str:
    """Return a picture (uint8 [H,W,3], RGB) as a data URI."""
    content = encode_jpeg(picture, QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"
