"""The results on the page: one row of pictures per query, as HTML that contains them."""

import base64
from html import escape

import cv2
import numpy as np

from util.evaluate.visualize import heatmap, overlay
from util.predict.pictures import reduce_size
from util.predict.predictor import Stages

PANEL_SIDE = 480  # pixels of the longer side of a picture in a row

CSS = """
.result { border-top: 1px solid var(--border-color-primary); padding: 12px 0; }
.result header { display: flex; gap: 16px; align-items: baseline; margin-bottom: 6px; }
.result .save { margin-left: auto; }
.panels { display: grid; grid-template-columns: repeat(8, minmax(0, 1fr)); gap: 8px; }
.panels figure { margin: 0; }
.panels img { width: 100%; display: block; box-sizing: border-box;
    border: 1px solid var(--border-color-primary); border-radius: 4px; }
.panels figcaption { font-size: 13px; text-align: center; margin-top: 4px; }
.panels .last img { border: 2px solid var(--color-accent); }
.result .error { color: var(--error-text-color, #b91c1c); margin: 0; }
.hint { color: var(--body-text-color-subdued); text-align: center; padding: 24px 0; }
#about { color: var(--body-text-color-subdued); font-size: 13px; }
@media (max-width: 900px) { .panels { grid-template-columns: repeat(4, minmax(0, 1fr)); } }
"""


def result_row(
    number: int, name: str, support: np.ndarray, query: np.ndarray, stages: Stages
) -> str:
    """Return the row of query `number`, from 1, of the file `name`.

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
    figures = "".join(
        f"<figure{' class=last' if title == 'final' else ''}>"
        f'<img src="{_jpeg_uri(picture)}" alt="{title} of query {number}">'
        f"<figcaption>{title}</figcaption></figure>"
        for title, picture in panels.items()
    )
    height, width = stages.final.shape
    share = 100 * stages.final.mean()
    mask = _data_uri(255 * stages.final, ".png")
    return (
        f'<section class="result" aria-label="query {number}"><header>'
        f"<strong>{number}. {escape(name)}</strong>"
        f"<span>{width} x {height} pixels, object {share:.1f} %</span>"
        f'<a class="save" href="{mask}" download="mask_{number}.png">save mask</a></header>'
        f'<div class="panels">{figures}</div></section>'
    )


def error_row(number: int, message: str) -> str:
    """Return the row of a query that could not be read."""
    return (
        f'<section class="result" aria-label="query {number}">'
        f'<p class="error" role="alert">{number}. {escape(message)}</p></section>'
    )


def _jpeg_uri(picture: np.ndarray) -> str:
    """Return a picture (uint8 [H,W,3] or [H,W]) at the panel's size, as a data URI."""
    return _data_uri(reduce_size(picture, PANEL_SIDE), ".jpeg")


def _data_uri(picture: np.ndarray, suffix: str) -> str:
    """Return a picture (uint8 [H,W,3] RGB or [H,W]) as a data URI of that format."""
    bgr = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    content = cv2.imencode(suffix, bgr)[1].tobytes()
    return f"data:image/{suffix[1:]};base64,{base64.b64encode(content).decode()}"
