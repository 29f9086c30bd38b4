"""YAML files and command-line overrides -> one validated `Config`.

A file is made of the sections of `util.schema` and may name the files it starts from in `_base_` (a
path, or a list of them, relative to the file; later ones win, the file itself wins over all).
Overrides are words such as `Train.lr=1e-4`; they win over every file. Every mistake is a
`ValueError` of one line that names the file or the key, and the remedy.

One value, for scripts:
    python -m util.config config/demo/demo_split0_lite0.yaml Data.shot=5 --get Method.pre_weight
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from util.checks import KEYS, SECTIONS, check_together, checked, key_hint, nearest, shown
from util.data.source import read_classes
from util.files import atomic_write
from util.logger import Parser, main
from util.schema import Config

# Options of a script -> the keys that they are short for.
TRAIN_FLAGS = {"--replay": "Train.replay"}
TEST_FLAGS = {"--visualize": "Eval.visualize", "--verify": "Eval.verify"}

# Key that names a file of an earlier run -> where the config of that run is.
_RECORDED: dict[str, Callable[[Path], Path]] = {
    "Eval.verify": lambda path: path,
    "Train.replay": lambda path: path.with_name("config.yaml"),
}


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Reads a YAML file with all its bases, then the overrides.

    Args:
        path: the file; a `result.json` of `test.py` stands for the config in it.
        overrides: words `Section.key=value`, the value as YAML; nothing behind `=` is
            the empty string.

    Returns:
        The validated configuration.

    Raises:
        ValueError: any mistake, in one line.
    """
    return _resolved(_read(Path(path), ()), str(path), overrides)


def config_from(sections: Mapping, source: str, overrides: list[str] | None = None) -> Config:
    """The configuration that `to_dict` made `sections` of, then the overrides.

    Args:
        sections: as a checkpoint holds them.
        source: the file that they are from, for messages.
        overrides: as in `load_config`.

    Raises:
        ValueError: any mistake, in one line.
    """
    if not isinstance(sections, Mapping) or not all(
        isinstance(options, Mapping) for options in sections.values()
    ):
        raise ValueError(f"{source}: its config is not sections of keys; name another file")
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
            raise ValueError(f"command line: {word!r} is no override; write Section.key=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            mistake = f"command line: {name}: {text!r} is not valid YAML; quote it"
            raise ValueError(mistake) from None
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


def arguments(text: str, flags: Mapping[str, str] | None = None) -> tuple[Config, int]:
    """Reads the command line of an entry point.

    Args:
        text: what `--help` says, the docstring of the script.
        flags: `--flag VALUE` -> the key that it is another way to set.

    Returns:
        The configuration and GPUS (0: the CPU).
    """
    parser = Parser(text)
    parser.add_argument("--config", metavar="FILE", help="a YAML file of config/")
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs of this machine; 0: the CPU")
    for flag, name in (flags or {}).items():
        kind = "FILE" if name in _RECORDED else "N"
        about = f"{KEYS[name].metadata['help']}; as {name}={kind}"
        parser.add_argument(flag, dest=name, metavar=kind, help=about)
    add_overrides(parser)
    args = parser.parse_intermixed_args()
    given = {name: getattr(args, name) for name in (flags or {}).values()}
    given = {name: value for name, value in given.items() if value is not None}
    for name, config_of in _RECORDED.items():
        if name in given:  # that file knows its config
            args.config = args.config or config_of(Path(given[name]))
            args.gpus = args.gpus or 0
    absent = [f"--{name}" for name in ("config", "gpus") if getattr(args, name) is None]
    if absent:
        parser.error(f"the following arguments are required: {', '.join(absent)}")
    words = [f"{name}={value}" for name, value in given.items()]
    return load_config(args.config, [*args.overrides, *words]), args.gpus


def config_argument(text: str) -> Config:
    """Reads the command line `CONFIG [Section.key=value ...]` of a tool; `text` as above."""
    args = _config_parser(text).parse_intermixed_args()
    return load_config(args.config, args.overrides)


def _config_parser(text: str) -> Parser:
    parser = Parser(text)
    parser.add_argument("config", metavar="CONFIG", help="a YAML file of config/")
    add_overrides(parser)
    return parser


def add_overrides(parser: Parser) -> None:
    """Adds the argument that every command line with a config takes."""
    parser.add_argument(
        "overrides", nargs="*", metavar="Section.key=value",
        help="keys that win over the file; docs/config.md lists them",
    )  # fmt: skip


def check_first(read: Callable[..., object], *about: Any) -> None:
    """Answers `--help` and refuses mistakes.

    A script calls it above the imports that take seconds; when it runs, it reads once more.

    Args:
        read: `arguments` or `config_argument`.
        *about: what it is called with.
    """
    main(partial(read, *about))


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
        raise ValueError(f"{path}: _base_ leads back to this file; remove it from one of the two")
    try:
        text = path.read_bytes()
        content = yaml.safe_load(text)
    except OSError as error:
        mistake = f"{path}: cannot read this config file ({error.strerror}); check the path"
        raise ValueError(mistake) from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not valid YAML, correct it: {reason}") from None
    inside = ""
    if isinstance(content, Mapping) and "environment" in content:  # a result.json
        inside, content = "config", content.get("config")
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: wants sections such as `Train:`, given {shown(content)}")
    content, lines = dict(content), _lines(path, text, inside)
    bases = content.pop("_base_", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ValueError(f"{path}: _base_ wants a path or a list of paths, given {shown(bases)}")

    def line_of(section: Any, option: Any = None) -> str:
        """The line of a key; of its section where YAML merged it in or read no text."""
        return f"{path}:{lines.get(f'{section}.{option}', lines.get(str(section), 1))}"

    values: dict[str, Any] = {}
    for base in bases:
        values |= _read(path.parent / base, (*above, path.resolve()))
    for section, options in content.items():
        if section not in SECTIONS:
            hint = nearest(str(section), {word: word for word in SECTIONS})
            raise ValueError(f"{line_of(section)}: unknown section {section}; {hint}")
        if not isinstance(options, Mapping):
            mistake = f"section {section} wants keys with values, given {shown(options)}"
            raise ValueError(f"{line_of(section)}: {mistake}")
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
                raise ValueError(
                    f"{path}:{line}: {name} stands in line {lines[name]} too; join them"
                )
            lines[name] = line
            if not prefix and isinstance(value, yaml.MappingNode):
                note(value, f"{name}.")

    root = yaml.compose(text, Loader=yaml.SafeLoader)
    note(dict((k.value, v) for k, v in root.value)[inside] if inside else root, "")
    return lines


def _print_value() -> None:
    parser = _config_parser(__doc__)
    parser.add_argument("--get", required=True, metavar="Section.key", help="the key to print")
    args = parser.parse_intermixed_args()
    values = to_dict(load_config(args.config, args.overrides))
    if args.get not in KEYS:
        raise ValueError(f"command line: --get: unknown key {args.get}; {key_hint(args.get)}")
    section, _, option = args.get.partition(".")
    print(values[section][option])


if __name__ == "__main__":
    main(_print_value)
