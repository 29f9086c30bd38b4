"""Read YAML files and command-line overrides into one validated `Config`.

A file holds the sections of util/config/schema.py. `_base_` names the files that it builds on: a
path, or a list of them, relative to the file. Later ones win, and the file itself wins over all.
Overrides are words such as `Train.lr=1e-4`; they win over every file.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic_core import to_jsonable_python

from util.config.published import is_published
from util.config.schema import SECTIONS, Config
from util.config.validate import assign, check_together, nearest, shorten
from util.config.yaml_file import UNREADABLE, parse, read_bytes, require_small
from util.folds import OWN_CLASSES, fold_names, fold_of
from util.runtime.errors import UserError
from util.runtime.files import atomic_write


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML file with all its bases, then the overrides. Reads no file of the data set.

    Of a `result.json` of test.py, the config in it is read. Overrides are words
    `Section.key=value`, the value as YAML; nothing after `=` is empty text. Raises `UserError` for
    a mistake, in one line with its source.
    """
    config = _read(Config(), Path(os.path.expanduser(path)), (), [])
    return _finish(config, str(path), overrides)


def config_from(sections: object, source: str, overrides: list[str] | None = None) -> Config:
    """Return the config of which `to_dict` made `sections`, changed as in `load_config`.

    Raises `UserError` for a mistake, in one line with its source, the file `source`.
    """
    source = f"{source}: its config"
    require_small(sections, source)
    return _finish(_assign_all(Config(), sections, lambda _: source), source, overrides)


def with_class_names(config: Config) -> Config:
    """Fill `Data.classes`, `novel` and `base` of a custom data set, or a mix, from its files.

    A run calls this before it begins, so that its checkpoints hold the class names. Raises
    `UserError` if such a file cannot be used, or the names do not fit the classes.
    """
    data = config.Data
    if data.data_set not in OWN_CLASSES:
        return config
    names, (novel, base) = fold_of(data).names, fold_names(data)
    return replace(config, Data=replace(data, classes=names, novel=novel, base=base))


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """Return the sections as plain dicts and lists: for YAML, JSON and checkpoints."""
    return to_jsonable_python(config)


def flatten(tree: Mapping[Any, Any], above: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings by the names that lead to them, joined by dots."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{above}{name}"
        leaves |= flatten(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return leaves


def save_config(config: Config, path: str | Path) -> None:
    """Write a config as YAML, atomically; `load_config` reads it back unchanged."""
    atomic_write(path, yaml.safe_dump(to_dict(config), sort_keys=False).encode())


def _finish(config: Config, source: str, overrides: list[str] | None) -> Config:
    """Return the config with overrides, once its keys are checked together."""
    for word in overrides or []:
        name, equals, text = word.partition("=")
        if not equals:
            raise UserError(f"command line: {word!r} is no override; write Section.key=value")
        try:
            value = yaml.safe_load(text)
        except UNREADABLE:
            mistake = f"command line: {name}: {shorten(text)} is not valid YAML; quote it"
            raise UserError(mistake) from None
        require_small(value, f"command line: {name}")
        config = assign(config, name, value, "command line")
    check_together(config, f"{source} with the command line" if overrides else source)
    return config


_MOST_FILES = 100  # that one config may name as its bases, and these in turn


def _read(config: Config, path: Path, above: tuple[Path, ...], read: list[Path]) -> Config:
    """Return the config with a file's bases and the file; those `above` name it as their base.

    `read` gets the paths of all files that were read.
    """
    text = read_bytes(path)
    if path.resolve() in above:
        raise UserError(f"{path}: _base_ leads back to this file; remove it from one of the two")
    read.append(path)
    if len(read) > _MOST_FILES:
        mistake = f"more than {_MOST_FILES} files are read as _base_ of one config"
        raise UserError(f"{path}: {mistake}; join some of them")
    content = parse(text, path)
    if is_published(content):
        what = "a config of AMNet, HDMNet or BAM, whose keys have other names here"
        remedy = f"python -m util.config {path} --import OURS.yaml"
        raise UserError(f"{path}: {what}; write one of ours: {remedy}")
    bases, lines = [], {}
    if isinstance(content, dict) and "environment" in content:
        content = content.get("config")  # a result.json
    elif isinstance(content, dict):
        bases, lines = content.pop("_base_", []), lines_of(path, text)
        bases = [bases] if isinstance(bases, str) else bases
        if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
            given = shorten(bases)
            raise UserError(f"{path}: _base_ wants a path or a list of paths, given {given}")
    for base in bases:
        base_path = path.parent / os.path.expanduser(base)
        config = _read(config, base_path, (*above, path.resolve()), read)

    def source(name: str) -> str:
        """Return file and line of a key; of its section if YAML merged the key in."""
        line = lines.get(name) or lines.get(name.partition(".")[0])
        return f"{path}:{line}" if line else str(path)

    return _assign_all(config, content, source)


def _assign_all(config: Config, sections: object, source: Callable[[str], str]) -> Config:
    """Return the config with these values; `source`: a section or `Section.key` -> its place."""
    if not isinstance(sections, Mapping):
        given = shorten(sections)
        raise UserError(f"{source('')}: wants sections such as `Train:`, given {given}")
    for section, keys in sections.items():
        place = source(str(section))
        if section not in SECTIONS:
            hint = nearest(str(section), SECTIONS)
            raise UserError(f"{place}: unknown section {section}; {hint}")
        if not isinstance(keys, Mapping):
            given = shorten(keys)
            raise UserError(f"{place}: section {section} wants keys with values, given {given}")
        for key, value in keys.items():
            name = f"{section}.{key}"
            config = assign(config, name, value, source(name))
    return config


def lines_of(path: Path, text: bytes, depth: int = 2) -> dict[str, int]:
    """Return the line of each key of a YAML file by the names that lead to it, joined by dots.

    A key is looked for in so many levels of mappings. Raises `UserError` for one given twice.
    """
    lines: dict[str, int] = {}

    def add(mapping: yaml.Node | None, prefix: str, depth: int) -> None:
        assert isinstance(mapping, yaml.MappingNode)
        for key, value in mapping.value:
            name, line = f"{prefix}{key.value}", key.start_mark.line + 1
            if name in lines:
                raise UserError(f"{path}:{line}: {name} is in line {lines[name]}, too; join them")
            lines[name] = line
            if depth > 1 and isinstance(value, yaml.MappingNode):
                add(value, f"{name}.", depth - 1)

    add(yaml.compose(text, Loader=yaml.SafeLoader), "", depth)
    return lines
