"""Writes docs/config.md: every key of a config, out of util/config/schema.py.

    python -m util.config.write_docs

A test fails when the page is not what this command writes, so run it after a change of the schema.
"""

from dataclasses import Field, fields
from typing import Any

import yaml

from util import ROOT
from util.config.schema import Config
from util.runtime.cli import Parser, main
from util.runtime.files import atomic_write

PAGE = ROOT / "docs/config.md"

_HEAD = """\
# Configs, key by key

Written by `python -m util.config.write_docs` out of `util/config/schema.py`; do not edit it here.

A config is a YAML file of the sections below. It may name what it starts from in `_base_`, a path
or a list of them, relative to the file: later ones win over earlier ones, the file itself over all.
What no file says has the default of the table. Words on the command line win over every file:

```sh
python -m util.config config/demo/demo_split0_lite0.yaml --get Train.lr
python -m util.config config/demo/demo_split0_lite0.yaml Train.lr=1e-4 --get Train.lr
```

The value behind `=` is YAML: `Data.scale=[0.8,1.25]`, `Train.adversarial=false`, and nothing at all
for empty text (`Train.resume=`). A key that does not exist, a value of the wrong kind or beyond its
limits, and an option that could have no effect are refused before anything runs, with the file and
the line, or the word, and the nearest key. `config.yaml` in a run's folder holds all keys as they
were used.
"""


def key_reference() -> str:
    """The page, as Markdown."""
    parts = [_HEAD]
    for section in fields(Config):
        parts.append(f"\n## {section.name}\n\n{type(section.default).__doc__}\n\n")
        parts.append("| key | default | takes | what it is |\n| --- | --- | --- | --- |\n")
        parts += [_row(key) for key in fields(section.default)]
    return "".join(parts)


def _row(key: Field) -> str:
    cells = [f"`{key.name}`", f"`{_shown(key.default)}`", _takes(key), key.metadata["help"]]
    return "| " + " | ".join(c.replace("|", "\\|").replace("<", "&lt;") for c in cells) + " |\n"


def _shown(value: Any) -> str:
    """A value as one would write it in a file."""
    if value == "":
        return "''"
    value = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(value, default_flow_style=True, width=1000)
    return text.removesuffix("\n").removesuffix("\n...")


def _takes(key: Field) -> str:
    """The kind of value and its limits."""
    limits, default = key.metadata, key.default
    if "choices" in limits:
        return ", ".join(f"`{_shown(choice)}`" for choice in limits["choices"])
    listed = isinstance(default, tuple)
    kind = limits.get("kind") or type(default[0] if listed else default)
    name = {bool: "`true`, `false`", int: "integer", float: "number", str: "text"}[kind]
    low, high = limits.get("low"), limits.get("high")
    bounds = [f"at least {_shown(low)}"] if low is not None else []
    bounds += [f"at most {_shown(high)}"] if high is not None else []
    bounds += [f"above {_shown(limits['above'])}"] if "above" in limits else []
    if listed:
        fixed = "" if {"many", "kind"} & limits.keys() else f" of {len(default)}"
        name = f"list{fixed}, each {name}"
    return ", ".join([name, " and ".join(bounds)] if bounds else [name])


def _write() -> None:
    Parser(__doc__).parse_args()
    atomic_write(PAGE, key_reference().encode())
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main(_write)
