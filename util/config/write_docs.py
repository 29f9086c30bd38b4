"""Write docs/config.md, the page of all config keys, from util/config/schema.py.

Also write the table of docs/published_configs.md from util/config/published_keys.yaml.

    python -m util.config.write_docs

A test fails if the page is out of date, so run this after a change of the schema.
"""

from typing import Any

import yaml

from util import ROOT
from util.config.published import TABLE
from util.config.schema import SECTIONS
from util.config.validate import describe, json_schema
from util.runtime.cli import Parser, main
from util.runtime.files import atomic_write
from util.runtime.log import log

PAGE = ROOT / "docs/config.md"
PUBLISHED = ROOT / "docs/published_configs.md"

_HEAD = """\
# All config keys

`python -m util.config.write_docs` writes this page from `util/config/schema.py`; do not edit it.

A config is a YAML file with the sections below. `_base_` names the files that it builds on: a path,
or a list of paths, relative to the file. Later ones win over earlier ones, and the file itself wins
over all. A key that no file gives has its default. Words on the command line win over every file:

```sh
python -m util.config config/demo/demo_split0_lite0.yaml --get Train.lr
python -m util.config config/demo/demo_split0_lite0.yaml Train.lr=1e-4 --get Train.lr
```

The value after `=` is YAML: `Data.scale=[0.8,1.25]`, `Train.adversarial=false`, and nothing at all
for empty text (`Train.resume=`). Before anything runs, unknown keys, values of a wrong type or
outside their limits, and options without effect are refused. The message names the file and the
line, or the word, and the most similar key. `config.yaml` in a run's folder holds all keys as they
were used.
"""


def key_reference() -> str:
    """Return the page, as Markdown."""
    parts = [_HEAD]
    for name, section in SECTIONS.items():
        parts.append(f"\n## {name}\n\n{section.__doc__}\n\n")
        parts.append("| key | default | takes | what it is |\n| --- | --- | --- | --- |\n")
        for key, schema in json_schema(name).items():
            cells = f"`{key}`", f"`{_as_yaml(schema['default'])}`", describe(schema)
            row = " | ".join([*cells, schema["description"]])
            parts.append(f"| {row.replace('<', '&lt;')} |\n")
    return "".join(parts)


def published_page(page: str) -> str:
    """Return the page of the published keys with its table written anew."""
    head, rule, rest = page.partition("| --- | --- | --- |\n")
    tail = rest[rest.index("\n\n") :]
    rows = [
        [", ".join(f"`{key}`" for key in row["theirs"]), row["here"], row.get("note", "")]
        for row in TABLE
    ]
    lines = (f"| {' | '.join(row)} |".replace("  |", " |") for row in rows)
    return head + rule + "\n".join(lines) + tail


def _as_yaml(value: Any) -> str:
    """Return a value as one would write it in a file."""
    text = yaml.safe_dump(value, default_flow_style=True, width=1000)
    return text.removesuffix("\n").removesuffix("\n...")


def _write() -> None:
    Parser(__doc__).parse_args()
    atomic_write(PAGE, key_reference().encode())
    text = published_page(PUBLISHED.read_text(encoding="utf-8"))
    atomic_write(PUBLISHED, text.encode())
    log.info("written: %s, %s", PAGE, PUBLISHED)


if __name__ == "__main__":
    main(_write)
