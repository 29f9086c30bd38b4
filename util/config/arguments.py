"""Command lines with a config.

`arguments` serves train.py, train_base.py and test.py, `config_argument` the smaller tools. Both
load the whole config, so that every mistake in it is refused before a run begins.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from util.config.load import load_config, with_class_names
from util.config.schema import KEYS, Config
from util.runtime.cli import Parser, main

TRAIN_FLAGS = {"--replay": "Train.replay"}
TEST_FLAGS = {"--visualize": "Eval.visualize", "--verify": "Eval.verify"}
"""Options of a script -> the keys that they set."""

_RECORDED: dict[str, Callable[[Path], Path]] = {
    "Eval.verify": lambda path: path,
    "Train.replay": lambda path: path.with_name("config.yaml"),
}
"""Keys that name a file of an earlier run -> where the config of that run is."""


def arguments(text: str | None, flags: Mapping[str, str] | None = None) -> tuple[Config, int]:
    """Read the command line of an entry point: the config, and the number of GPUs (0: the CPU).

    The config has the class names of a custom data set. `text` is what `--help` shows, the
    docstring of the script; `flags` maps `--flag` to the key that `--flag VALUE` sets. Raises
    `UserError` for a mistake in the command line or in the config.
    """
    parser = Parser(text)
    parser.add_argument("--config", metavar="FILE", help="a YAML file of config/")
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs of this machine; 0: the CPU")
    for flag, name in (flags or {}).items():
        kind = "FILE" if name in _RECORDED else "N"
        about = f"{KEYS[name].description}; the same as {name}={kind}"
        parser.add_argument(flag, dest=name, metavar=kind, help=about)
    parser.add_overrides()
    args = parser.parse_intermixed_args()
    given = {name: getattr(args, name) for name in (flags or {}).values()}
    given = {name: value for name, value in given.items() if value is not None}
    for name, config_of in _RECORDED.items():
        if name in given:  # the config of that run is the default
            args.config = args.config or config_of(Path(given[name]))
            args.gpus = args.gpus or 0
    missing = [f"--{name}" for name in ("config", "gpus") if getattr(args, name) is None]
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    words = [f"{name}={value}" for name, value in given.items()]
    return with_class_names(load_config(args.config, [*args.overrides, *words])), args.gpus


def config_argument(text: str | None) -> Config:
    """Read the command line `CONFIG [Section.key=value ...]` of a tool; see `arguments`."""
    args = config_parser(text).parse_intermixed_args()
    return with_class_names(load_config(args.config, args.overrides))


def config_parser(text: str | None) -> Parser:
    """Return a parser of `CONFIG [Section.key=value ...]`, to which a tool may add options."""
    parser = Parser(text)
    parser.add_argument("config", metavar="CONFIG", help="a YAML file of config/")
    parser.add_overrides()
    return parser


def check_first(read: Callable[..., object], *arguments: Any) -> None:
    """Answer `--help` and refuse mistakes before the imports that take seconds.

    A script calls this above those imports with `arguments` or `config_argument` and what that
    takes, and reads the command line again when it runs.
    """
    main(partial(read, *arguments))
