"""YAML files and command-line overrides -> one validated `Config`.

A file is made of the sections of `util.schema` and may name the files it starts from in `_base_` (a
path, or a list of them, relative to the file; later ones win, the file itself wins over all).
Overrides are words such as `Train.lr=1e-4`; they win over every file. Every mistake is a
`ValueError` of one line that names the file or the key, and the remedy.

One value, for scripts:
    python -m util.config config/demo/demo_split0_lite0.yaml Data.shot=5 --get Method.pre_weight
"""

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from util.data.folds import FOLDS, fold_of
from util.data.source import read_classes
from util.files import atomic_write
from util.logger import Parser, main
from util.schema import Config

_SECTIONS: dict[str, type] = {f.name: type(f.default) for f in fields(Config)}
_KEYS: dict[str, Field] = {
    f"{name}.{f.name}": f for name, section in _SECTIONS.items() for f in fields(section)
}


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
    values = {
        f"{section}.{option}": _checked(source, f"{section}.{option}", value)
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
        values[name] = _checked("command line", name, value)
    given: dict[str, dict[str, Any]] = {name: {} for name in _SECTIONS}
    for name, value in values.items():
        section, _, option = name.partition(".")
        given[section][option] = value
    source = f"{source} with the command line" if overrides else source
    data = given["Data"]
    if data.get("data_set") == "custom" and not data.get("classes"):
        data["classes"] = read_classes(data.get("data_root", Config.Data.data_root))
    config = Config(**{name: cls(**given[name]) for name, cls in _SECTIONS.items()})
    _check_together(config, source)
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
        about = f"{_KEYS[name].metadata['help']}; as {name}={kind}"
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
    parser = Parser(text)
    parser.add_argument("config", metavar="CONFIG", help="a YAML file of config/")
    add_overrides(parser)
    args = parser.parse_intermixed_args()
    return load_config(args.config, args.overrides)


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
        raise ValueError(f"{path}: wants sections such as `Train:`, given {_shown(content)}")
    content, lines = dict(content), _lines(path, text, inside)
    bases = content.pop("_base_", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ValueError(f"{path}: _base_ wants a path or a list of paths, given {_shown(bases)}")
    values: dict[str, Any] = {}
    for base in bases:
        values |= _read(path.parent / base, (*above, path.resolve()))
    for section, options in content.items():
        if section not in _SECTIONS:
            hint = _nearest(str(section), {word: word for word in _SECTIONS})
            raise ValueError(f"{path}:{lines[str(section)]}: unknown section {section}; {hint}")
        if not isinstance(options, Mapping):
            mistake = f"section {section} wants keys with values, given {_shown(options)}"
            raise ValueError(f"{path}:{lines[section]}: {mistake}")
        for option, value in options.items():
            name = f"{section}.{option}"
            values[name] = _checked(f"{path}:{lines[name]}", name, value)
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


def _checked(source: str, name: str, value: Any) -> Any:
    """The value in the type of its key; `source` is the file or the command line it came from."""
    if name not in _KEYS:
        raise ValueError(f"{source}: unknown key {name}; {_key_hint(name)}")
    default, limits = _KEYS[name].default, _KEYS[name].metadata
    if not isinstance(default, tuple):
        return _checked_one(source, name, value, type(default), limits)
    if "kind" in limits:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{source}: {name} wants a list, given {_shown(value)}")
        return tuple(_checked_one(source, name, element, limits["kind"], {}) for element in value)
    kind = type(default[0])
    length = None if name == "Eval.seeds" else len(default)
    if not isinstance(value, (list, tuple)) or not value or (length and len(value) != length):
        wanted = f"a list of {length or 'one or more'} {_KINDS[kind][1]}"
        raise ValueError(f"{source}: {name} wants {wanted}, given {_shown(value)}")
    return tuple(_checked_one(source, name, element, kind, limits) for element in value)


_KINDS = {
    bool: ("true or false", ""),
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    str: ("text", ""),
}


def _checked_one(source: str, name: str, value: Any, kind: type, limits: Mapping[str, Any]) -> Any:
    given = value
    if kind is str and value is None:
        value = ""
    elif kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            value = float(value)  # PyYAML reads 2e-4, which has no dot, as text
        except (ValueError, OverflowError):
            value = None
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise ValueError(f"{source}: {name} wants {_KINDS[kind][0]}, given {_shown(given)}")
    wanted = ""
    if "choices" in limits and value not in limits["choices"]:
        wanted = " or ".join(choice or "''" for choice in limits["choices"])
    elif "pattern" in limits and not re.fullmatch(limits["pattern"], value):
        wanted = _KEYS[name].metadata["help"]
    elif "low" in limits and value < limits["low"]:
        wanted = f"at least {limits['low']}"
    elif "high" in limits and value > limits["high"]:
        wanted = f"at most {limits['high']}"
    elif "above" in limits and value <= limits["above"]:
        wanted = f"more than {limits['above']}"
    if wanted:
        raise ValueError(f"{source}: {name} wants {wanted}, given {_shown(given)}")
    return value


def _check_together(config: Config, source: str) -> None:
    """What single limits cannot say. An option that would have no effect is a mistake too."""
    data, method, base, train = config.Data, config.Method, config.Base, config.Train
    custom = data.data_set == "custom"
    mistakes = [
        (
            not custom and data.split >= FOLDS,
            f"Data.split wants at most {FOLDS - 1}, given {data.split}",
        ),
        (
            not custom and bool(data.classes or data.novel),
            "Data.classes and Data.novel have no effect without Data.data_set custom; remove them",
        ),
        (custom and not data.novel, "Data.novel wants the classes that this fold holds out"),
        (
            custom and not set(data.classes) - set(data.novel),
            "Data.novel leaves no class to train on",
        ),
        (data.size % 8 != 1, _size("Data.size", data.size)),
        (base.size % 8 != 1, _size("Base.size", base.size)),
        (data.scale[0] > data.scale[1], "Data.scale wants the smaller number first"),
        (base.scale[0] > base.scale[1], "Base.scale wants the smaller number first"),
        (
            bool(data.trained_on) and data.data_set != "pascal",
            "Data.trained_on coco is for Data.data_set pascal; set it, or remove Data.trained_on",
        ),
        (
            not data.use_split_coco and "coco" not in (data.data_set, data.trained_on),
            "Data.use_split_coco False has no effect without Data.data_set coco; remove it",
        ),
        (
            method.pretrained == "package" and method.backbone != "timm/tf_efficientnet_lite0",
            "Method.pretrained package has weights of timm/tf_efficientnet_lite0 only; for "
            f"{method.backbone} write download, none or a file",
        ),
        (
            method.train_parts and not train.adversarial,
            "Method.train_parts has no effect without the game; set Train.adversarial True",
        ),
        (
            method.train_kshot and data.shot == 1,
            "Method.train_kshot has no effect with one shot; set Data.shot or remove it",
        ),
        (
            train.adversarial_period % 2 == 0,
            f"Train.adversarial_period must be odd, given {train.adversarial_period}: with an even "
            "one all the weighted iterations are D steps",
        ),
        (
            train.feature_store and data.augment,
            "Train.feature_store keeps features of images as they are; set Data.augment False",
        ),
        (
            train.accumulate > train.batch_size,
            f"Train.accumulate {train.accumulate}: the batch has {train.batch_size} episodes; make "
            "it less",
        ),
        (
            data.flip and data.augment,
            "Data.flip has no effect beside Data.augment, which mirrors already; remove one",
        ),
        (
            train.seed_deterministic and config.Speed.cudnn_benchmark,
            "Speed.cudnn_benchmark picks kernels by their time, Train.seed_deterministic wants the "
            "same ones; remove one",
        ),
        (
            len(set(config.Eval.seeds)) < len(config.Eval.seeds),
            "Eval.seeds names a seed twice; remove one",
        ),
    ]
    for wrong, message in mistakes:
        if wrong:
            raise ValueError(f"{source}: {message}")
    try:
        fold_of(data)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _size(name: str, given: int) -> str:
    return f"{name} must be 1 mod 8, given {given}; the nearest is {round((given - 1) / 8) * 8 + 1}"


def _key_hint(name: str) -> str:
    """Says which key `Section.key` may have meant: one of that name elsewhere, or the nearest."""
    section, _, last = name.rpartition(".")
    meant = difflib.get_close_matches(section.lower(), [word.lower() for word in _SECTIONS], n=1)
    inside = {
        known.partition(".")[2].lower(): known
        for known in _KEYS
        if not section or meant and known.lower().startswith(f"{meant[0]}.")
    }
    if section and last.lower() in inside:
        return f"did you mean {inside[last.lower()]}?"
    namesakes = [known for known in _KEYS if known.lower().endswith(f".{last.lower()}")]
    if namesakes:
        return f"did you mean {' or '.join(namesakes)}?"
    if section in _SECTIONS or difflib.get_close_matches(last.lower(), inside, n=1):
        return _nearest(last, inside)
    return _nearest(section, {word: word for word in _SECTIONS})


def _nearest(word: str, known: dict[str, str]) -> str:
    """`did you mean X?`, or all there is; `known`: what may be written -> how to show it."""
    lower = {name.lower(): shown for name, shown in known.items()}
    close = difflib.get_close_matches(word.lower(), lower, n=1)
    return f"did you mean {lower[close[0]]}?" if close else f"there is {', '.join(known.values())}"


def _shown(value: Any) -> str:
    """The value as a message shows it: short, on one line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _print_value() -> None:
    parser = Parser(__doc__)
    parser.add_argument("config", metavar="CONFIG", help="a YAML file of config/")
    add_overrides(parser)
    parser.add_argument("--get", required=True, metavar="Section.key", help="the key to print")
    args = parser.parse_intermixed_args()
    values = to_dict(load_config(args.config, args.overrides))
    if args.get not in _KEYS:
        raise ValueError(f"command line: --get: unknown key {args.get}; {_key_hint(args.get)}")
    section, _, option = args.get.partition(".")
    print(values[section][option])


if __name__ == "__main__":
    main(_print_value)
