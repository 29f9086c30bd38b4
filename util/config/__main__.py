"""Print one value of a config, for scripts.

python -m util.config config/demo/demo_split0_lite0.yaml Data.shot=5 --get Method.pre_weight
"""

from util.config.arguments import config_parser
from util.config.load import flatten, load_config, to_dict, with_class_names
from util.config.schema import KEYS
from util.config.validate import key_hint
from util.runtime.cli import main
from util.runtime.errors import UserError


def _print_value() -> None:
    parser = config_parser(__doc__)
    parser.add_argument("--get", required=True, metavar="Section.key", help="the key to print")
    args = parser.parse_intermixed_args()
    config = with_class_names(load_config(args.config, args.overrides))
    if args.get not in KEYS:
        raise UserError(f"command line: --get: unknown key {args.get}; {key_hint(args.get)}")
    print(flatten(to_dict(config))[args.get])


if __name__ == "__main__":
    main(_print_value)
