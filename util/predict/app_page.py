"""What the page shows of a query: one row of labelled pictures, as HTML that holds them."""

import base64
from html import escape

import cv2
import numpy as np

from util.evaluate.visualize import heat, overlay
from util.predict.predictor import Stages

SHOWN = 480  # pixels of a picture's longer side on the page

CSS = """
.found { border-top: 1px solid var(--border-color-primary); padding: 12px 0; }
.found header { display: flex; gap: 16px; align-items: baseline; margin-bottom: 6px; }
.found .save { margin-left: auto; }
.panels { display: grid; grid-template-columns: repeat(8, minmax(0, 1fr)); gap: 8px; }
.panels figure { margin: 0; }
.panels img { width: 100%; display: block; box-sizing: border-box;
    border: 1px solid var(--border-color-primary); border-radius: 4px; }
.panels figcaption { font-size: 13px; text-align: center; margin-top: 4px; }
.panels .last img { border: 2px solid var(--color-accent); }
.found .refused { color: var(--error-text-color, #b91c1c); margin: 0; }
.hint { color: var(--body-text-color-subdued); text-align: center; padding: 24px 0; }
#about { color: var(--body-text-color-subdued); font-size: 13px; }
@media (max-width: 900px) { .panels { grid-template-columns: repeat(4, minmax(0, 1fr)); } }
"""


def found_row(
    number: int,
    name: str,
    support: np.ndarray,
    query: np.ndarray,
    stages: Stages,
) -> str:
    """A query's row: support, query, prior, initial mask, G's three masks, the final overlay.

    Args:
        number: of the query, from 1.
        name: of its file.
        support: with what counts as its object in colour (uint8 [H,W,3]).
        query: uint8 [H,W,3].
        stages: what `Predictor.explain` says of it.
    """
    panels = {
        "support": support,
        "query": query,
        "prior": heat(stages.prior),
        "initial mask": 255 * stages.initial,
        **{f"mask {i}": 255 * mask for i, mask in enumerate(stages.refinements, 1)},
        "final": overlay(query, stages.final),
    }
    figures = "".join(
        f"<figure{' class=last' if title == 'final' else ''}>"
        f'<img src="{jpeg(picture)}" alt="{title} of query {number}">'
        f"<figcaption>{title}</figcaption></figure>"
        for title, picture in panels.items()
    )
    height, width = stages.final.shape
    share = 100 * stages.final.mean()
    mask = data_uri(255 * stages.final, ".png")
    return (
        f'<section class="found" aria-label="query {number}"><header>'
        f"<strong>{number}. {escape(name)}</strong>"
        f"<span>{width} x {height} pixels, object {share:.1f} %</span>"
        f'<a class="save" href="{mask}" download="mask_{number}.png">save mask</a></header>'
        f'<div class="panels">{figures}</div></section>'
    )


def failed_row(number: int, message: str) -> str:
    """The row of a query that could not be used."""
    return (
        f'<section class="found" aria-label="query {number}">'
        f'<p class="refused" role="alert">{number}. {escape(message)}</p></section>'
    )


def jpeg(picture: np.ndarray) -> str:
    """A picture (uint8 [H,W,3] or [H,W]) at the page's size, as a data URI."""
    factor = min(1, SHOWN / max(picture.shape[:2]))
    size = [max(1, round(side * factor)) for side in picture.shape[1::-1]]
    return data_uri(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), ".jpeg")


def data_uri(picture: np.ndarray, suffix: str) -> str:
    """A picture (uint8 [H,W,3] RGB or [H,W]) as a data URI of that format."""
    bgr = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    content = cv2.imencode(suffix, bgr)[1].tobytes()
    return f"data:image/{suffix[1:]};base64,{base64.b64encode(content).decode()}"
