"""Texts in cells of tables: names of runs and classes come from strangers' files."""

_LATEX = str.maketrans(
    {
        **{mark: "\\" + mark for mark in "{}$&#%_"},
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    }
)


def for_latex(text: str) -> str:
    r"""Return a text that LaTeX prints as it is: `\input{x}` reads no file."""
    return " ".join(text.split()).translate(_LATEX)


def for_markdown(text: str) -> str:
    """Return a text that stays in its cell, and is no HTML."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def for_csv(text: str) -> str:
    """Return a text that spreadsheets show: one that begins like a formula gets a quote before."""
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text
