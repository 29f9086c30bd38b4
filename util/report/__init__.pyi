from .page import render_page
from .runs import Record, read_curves, read_runs
from .table import Row, as_csv, as_latex, as_markdown, gather

__all__ = [
    "Record",
    "Row",
    "as_csv",
    "as_latex",
    "as_markdown",
    "gather",
    "read_curves",
    "read_runs",
    "render_page",
]
