"""YAML files and command-line overrides -> one validated `Config`.

A file is made of the sections of `util.config.schema` and may name the files it starts from in `_base_` (a
path, or a list of them, relative to the file; later ones win, the file itself wins over all).
Overrides are words such as `Train.lr=1e-4`; they win over every file. Every mistake is a
`ValueError` of one line that names the file or the key, and the remedy.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from util.config.schema import Config
from util.config.validate import SECTIONS, check_together, checked, nearest, shown
from util.folds import read_classes
from util.runtime.errors import UserError
from util.runtime.files import atomic_write


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Reads a YAML file with all its bases, then the overrides.

    Args:
        path: the file; a `result.json` of `test.py` stands for the config in it.
        overrides: words `Section.key=value`, the value as YAML; nothing behind `=` is
            the empty string.

    Returns:
        The validated configuration.

    Raises:
        UserError: any mistake, in one line.
    """
    return _resolved(_read(Path(path), ()), str(path), overrides)


def config_from(sections: Mapping, source: str, overrides: list[str] | None = None) -> Config:
    """The configuration that `to_dict` made `sections` of, then the overrides.

    Args:
        sections: as a checkpoint holds them.
        source: the file that they are from, for messages.
        overrides: as in `load_config`.

    Raises:
        UserError: any mistake, in one line.
    """
    if not isinstance(sections, Mapping) or not all(
        isinstance(options, Mapping) for options in sections.values()
    ):
        raise UserError(f"{source}: its config is not sections of keys; name another file")
    values = {
        f"{section}.{option}": checked(source, f"{section}.{option}", value)
        for section, options in sections.items()
        for option, value in options.items()
    }
    return _resolved(values, source, overrides)


def _resolved(values: dict[str, Any], source: str, overrides: list[str] | None) -> Config:
    """`Section.key` -> checked value, and the overrides -> the validated configuration."""
    for word in overrides or []:
        name, equals, text = word.partition("=")
        if not equals:
            raise UserError(f"command line: {word!r} is no override; write Section.key=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            mistake = f"command line: {name}: {text!r} is not valid YAML; quote it"
            raise UserError(mistake) from None
        values[name] = checked("command line", name, value)
    given: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    for name, value in values.items():
        section, _, option = name.partition(".")
        given[section][option] = value
    source = f"{source} with the command line" if overrides else source
    data = given["Data"]
    if data.get("data_set") == "custom" and not data.get("classes"):
        data["classes"] = read_classes(data.get("data_root", Config.Data.data_root))
    config = Config(**{name: cls(**given[name]) for name, cls in SECTIONS.items()})
    check_together(config, source)
    return config


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """The sections as plain dicts and lists: for YAML, JSON and checkpoints."""
    return {
        section: {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
        }
        for section, values in asdict(config).items()
    }


def save_config(config: Config, path: str | Path) -> None:
    """Writes the resolved configuration, which `load_config` reads back; atomic."""
    atomic_write(path, yaml.safe_dump(to_dict(config), sort_keys=False).encode())


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """`Section.key` -> checked value, of a file and its bases (`above`: what led to the file)."""
    if path.resolve() in above:
        raise UserError(f"{path}: _base_ leads back to this file; remove it from one of the two")
    try:
        text = path.read_bytes()
        content = yaml.safe_load(text)
    except OSError as error:
        mistake = f"{path}: cannot read this config file ({error.strerror}); check the path"
        raise UserError(mistake) from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not valid YAML, correct it: {reason}") from None
    inside = ""
    if isinstance(content, Mapping) and "environment" in content:  # a result.json
        inside, content = "config", content.get("config")
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: wants sections such as `Train:`, given {shown(content)}")
    content, lines = dict(content), _lines(path, text, inside)
    bases = content.pop("_base_", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"{path}: _base_ wants a path or a list of paths, given {shown(bases)}")

    def line_of(section: Any, option: Any = None) -> str:
        """The line of a key; of its section where YAML merged it in or read no text."""
        return f"{path}:{lines.get(f'{section}.{option}', lines.get(str(section), 1))}"

    values: dict[str, Any] = {}
    for base in bases:
        values |= _read(path.parent / base, (*above, path.resolve()))
    for section, options in content.items():
        if section not in SECTIONS:
            hint = nearest(str(section), {word: word for word in SECTIONS})
            raise UserError(f"{line_of(section)}: unknown section {section}; {hint}")
        if not isinstance(options, Mapping):
            mistake = f"section {section} wants keys with values, given {shown(options)}"
            raise UserError(f"{line_of(section)}: {mistake}")
        for option, value in options.items():
            name = f"{section}.{option}"
            values[name] = checked(line_of(section, option), name, value)
    return values


def _lines(path: Path, text: bytes, inside: str) -> dict[str, int]:
    """Where each section and each `Section.key` of a file stands; none may stand twice.

    `inside`: the key below which the sections are ('': at the top).
    """
    lines: dict[str, int] = {}

    def note(mapping: yaml.MappingNode, prefix: str) -> None:
        for key, value in mapping.value:
            name, line = f"{prefix}{key.value}", key.start_mark.line + 1
            if name in lines:
                raise UserError(
                    f"{path}:{line}: {name} stands in line {lines[name]} too; join them"
                )
            lines[name] = line
            if not prefix and isinstance(value, yaml.MappingNode):
                note(value, f"{name}.")

    root = yaml.compose(text, Loader=yaml.SafeLoader)
    note(dict((k.value, v) for k, v in root.value)[inside] if inside else root, "")
    return lines
