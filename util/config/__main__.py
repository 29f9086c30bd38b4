"""Print one value of a config, for scripts; or read a config of AMNet, HDMNet or BAM.

python -m util.config config/demo/demo_split0_lite0.yaml Data.shot=5 --get Method.pre_weight
python -m util.config THEIR.yaml                          # what each of its keys is called here
python -m util.config THEIR.yaml --import config/mine.yaml [Section.key=value ...]
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from util.config.arguments import config_parser
from util.config.load import config_from, flatten, lines_of, load_config, to_dict, with_class_names
from util.config.published import import_published, is_published
from util.config.schema import KEYS, Config
from util.config.validate import assign, key_hint
from util.config.yaml_file import read_bytes, read_yaml
from util.runtime.cli import Parser, main
from util.runtime.errors import UserError, refuse
from util.runtime.files import Outputs, unwritable
from util.runtime.log import log


def _run() -> None:
    parser = config_parser(__doc__)
    parser.add_argument("--get", metavar="Section.key", help="the key to print")
    about = "write our config of a published one to this file"
    parser.add_argument("--import", dest="target", type=Path, metavar="FILE", help=about)
    parser.add_overwrite()
    args = parser.parse_intermixed_args()
    if args.get:
        _print_value(args)
    else:
        _import(args, parser)


def _print_value(args: argparse.Namespace) -> None:
    config = with_class_names(load_config(args.config, args.overrides))
    if args.get not in KEYS:
        raise UserError(f"command line: --get: unknown key {args.get}; {key_hint(args.get)}")
    print(flatten(to_dict(config))[args.get])


def _import(args: argparse.Namespace, parser: Parser) -> None:
    """List the keys of a published config, or write our config of it."""
    path = Path(args.config)
    content = read_yaml(path)
    if isinstance(content, dict):
        lines_of(path, read_bytes(path))  # refuses keys that stand twice
    if not is_published(content):
        parser.error("--get Section.key is required, as this is no config of AMNet, HDMNet or BAM")
    if args.target and args.target.suffix not in (".yaml", ".yml"):
        raise UserError(
            f"--import {args.target}: is written as YAML; name a file that ends in .yaml"
        )
    if args.overrides and not args.target:
        what = f"{args.overrides[0]} would change nothing"
        raise UserError(f"command line: {what}; add --import FILE to write a config with it")
    found = import_published(content, path.stem)
    if not args.target:
        for line in found.lines:
            log.info(line)
    for line in found.left:
        log.warning(line)
    refuse(str(path), [*found.mistakes, *(_mistakes(found.keys) if args.target else [])], _CORRECT)
    if not args.target:
        log.info(f"{path}: {len(found.lines)} keys; --import FILE writes our config of it")
        return
    sections: dict[str, dict] = {}
    for name, value in found.keys.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, {})[key] = value
    config_from(sections, str(path), args.overrides)  # refuses what cannot be used
    for word in args.overrides:
        name, _, text = word.partition("=")
        section, _, key = name.partition(".")
        sections.setdefault(section, {})[key] = yaml.safe_load(text)
    outputs = Outputs(args.target.parent, "config", "--import", args.overwrite)
    outputs.claim([args.target.name], [path])
    head = (
        f"# From {path.name} by python -m util.config; docs/published_configs.md has every key.\n"
    )
    try:
        outputs.write(args.target.name, (head + yaml.safe_dump(sections)).encode())
    except OSError as error:
        raise unwritable(args.target, error, "name another file") from None
    log.info(f"written: {args.target}, {len(found.keys)} keys")
    if "Data.shot" in found.keys and not any(w.startswith("Method.name=") for w in args.overrides):
        what = "amformer, as the file does not say of which system it is"
        log.info(f"Method.name: {what}; for another, add Method.name=bam, hdmnet or pfenet")


_CORRECT = "correct the file"


def _mistakes(keys: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with each value of our keys."""
    for name, value in keys.items():
        try:
            assign(Config(), name, value, "")
        except UserError as error:
            yield str(error).removeprefix(": ")


if __name__ == "__main__":
    main(_run)
