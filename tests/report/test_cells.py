"""Names from strangers' files stay text in the tables that are made of them."""

import csv
import io

import pytest

from util.report.cells import for_csv, for_latex, for_markdown
from util.report.table import Row, as_csv, as_latex, as_markdown


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        (r"\input{/etc/passwd}", r"\textbackslash{}input\{/etc/passwd\}"),
        ("50%_of#all & $x^2$", r"50\%\_of\#all \& \$x\textasciicircum{}2\$"),
        ("two\nlines~", r"two lines\textasciitilde{}"),
    ],
)
def test_latex_prints_a_name_as_it_is(text: str, latex: str) -> None:
    assert for_latex(text) == latex


@pytest.mark.parametrize("text", ["=HYPERLINK(1)", "+1", "-2+3", "@SUM(A1)", " =1", "\t=1"])
def test_no_cell_of_a_csv_is_a_formula(text: str) -> None:
    assert for_csv(text) == f"'{text}"


def test_markdown_keeps_a_name_in_its_cell_and_shows_no_html() -> None:
    assert for_markdown("a|b\n<img src=x>") == "a\\|b &lt;img src=x>"


def test_every_table_escapes_the_names_and_keeps_the_numbers() -> None:
    row = Row(data="=a|b", shot=1, backbone=r"\input{x}")
    row.folds, row.mean = {0: (-1.5, None)}, (-1.5, None)
    markdown, latex = as_markdown([row], [0]), as_latex([row])
    assert "| =a\\|b |" in markdown and "| -1.5 |" in markdown
    assert r"\textbackslash{}input\{x\}" in latex and r"\input" not in latex
    [cells] = list(csv.reader(io.StringIO(as_csv([row], [0]))))[1:]
    assert cells[0] == "'=a|b" and "-1.5" in cells
