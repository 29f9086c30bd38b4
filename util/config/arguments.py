"""Command lines with a config."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from util.config.load import load_config
from util.config.schema import Config
from util.config.validate import KEYS
from util.runtime.cli import Parser, main

# Options of a script -> the keys that they are short for.
TRAIN_FLAGS = {"--replay": "Train.replay"}


TEST_FLAGS = {"--visualize": "Eval.visualize", "--verify": "Eval.verify"}


# Key that names a file of an earlier run -> where the config of that run is.
_RECORDED: dict[str, Callable[[Path], Path]] = {
    "Eval.verify": lambda path: path,
    "Train.replay": lambda path: path.with_name("config.yaml"),
}


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
