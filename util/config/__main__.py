"""One value of a config, for scripts.

python -m util.config config/demo/demo_split0_lite0.yaml Data.shot=5 --get Method.pre_weight
"""

from util.config.arguments import _config_parser
from util.config.load import load_config, to_dict
from util.config.validate import KEYS, key_hint
from util.runtime.cli import main
from util.runtime.errors import UserError


def _print_value() -> None:
    parser = _config_parser(__doc__)
    parser.add_argument("--get", required=True, metavar="Section.key", help="the key to print")
    args = parser.parse_intermixed_args()
    values = to_dict(load_config(args.config, args.overrides))
    if args.get not in KEYS:
        raise UserError(f"command line: --get: unknown key {args.get}; {key_hint(args.get)}")
    section, _, option = args.get.partition(".")
    print(values[section][option])


if __name__ == "__main__":
    main(_print_value)
