"""The page `review.html`: all results, the doubtful ones first, to look through.

It needs no network: its pictures lie beside it.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from util.evaluate.visualize import mask_colors


def doubt_order(line: Mapping[str, Any]) -> float:
    """Return what the page is ordered by, lowest first, of a line of `predictions.jsonl`.

    It is the lowest score of the classes that were found, and 0 if none was. A query that could
    not be read comes before all.
    """
    if "error" in line:
        return float("-inf")
    scores = [found["score"] for found in line["classes"].values() if found["score"] is not None]
    return min(scores, default=0.0)


def review_page(lines: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the page about these lines of `predictions.jsonl`, as HTML."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, autoescape=True,  # names of files are not ours
    )  # fmt: skip
    templates.filters["link"] = lambda file: quote(os.fsencode(file))  # a name may hold any bytes
    colors = [f"rgb({r} {g} {b})" for r, g, b in mask_colors().tolist()]
    page = templates.get_template("review.html.j2")
    html = page.render(lines=sorted(lines, key=doubt_order), colors=colors)
    return html.encode(errors="replace")
