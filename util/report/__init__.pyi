from .compare import Comparison, compare_settings, read_settings
from .page import render_page
from .runs import Record, read_curves, read_runs
from .table import Row, as_csv, as_latex, as_markdown, gather

__all__ = [
    "Comparison",
    "Record",
    "Row",
    "as_csv",
    "as_latex",
    "as_markdown",
    "compare_settings",
    "gather",
    "read_curves",
    "read_runs",
    "read_settings",
    "render_page",
]
