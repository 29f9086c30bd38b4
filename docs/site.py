"""Hooks of `make docs`: formulas become MathML, and each public module gets a page.

A code host draws formulas itself. Browsers draw MathML without a script, so the site needs no
internet access.
"""

import re
from html import unescape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]


def on_page_content(html: str, **_: Any) -> str:
    """Replace formulas, in blocks of kind `math` or between $` and `$, by MathML."""
    block = re.compile(r'<pre class="math"><code>(.*?)</code></pre>', re.S)
    html = block.sub(lambda found: convert(unescape(found[1]), display="block"), html)
    return re.sub(r"\$<code>(.+?)</code>\$", lambda found: convert(unescape(found[1])), html)


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
