"""Hooks of `make docs`: formulas become MathML, and each public module gets a page.

A code host draws formulas itself. Browsers draw MathML without a script, so the site needs no
internet access.
"""

import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace formulas, in blocks of kind `math` or between $` and `$, by MathML."""
    markdown = re.sub(
        r"^```math\n(.*?)^```",
        lambda m: convert(m[1], display="block"),
        markdown,
        flags=re.M | re.S,
    )
    return re.sub(r"\$`(.+?)`\$", lambda m: convert(m[1]), markdown)


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add a page for each module of model/ and util/predict/, written from its docstrings."""
    paths = [*(ROOT / "model").rglob("*.py"), *(ROOT / "util/predict").glob("*.py")]
    pages = []
    for path in sorted(p for p in paths if p.name != "__init__.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        page = f"api/{name}.md"
        files.append(File.generated(config, page, content=f"# {name}\n\n::: {name}\n"))
        pages.append({name: page})
    config["nav"].append({"API": pages})
    return files
