"""Rename the tensors of a weight file: published names -> ours, and back. Nothing is computed.

    python -m util.checkpoint.convert amnet.pth ours.pth      # then Eval.weight=ours.pth
    python -m util.checkpoint.convert bam.pth base.pth        # then Method.pre_weight=base.pth
    python -m util.checkpoint.convert exp/pascal/split0_resnet50/best.pth published.pth

IN may be of any system of `Method.name`. The names in the file decide the direction; names and
shapes tell system, backbone, classes and shots. See docs/weights.md.
"""

from pathlib import Path

from util.config import load_config, with_class_names
from util.runtime import Parser, main
from util.runtime.files import Outputs
from util.runtime.log import log


def convert_file() -> None:
    """Run the command line."""
    parser = Parser(__doc__)
    parser.add_argument("source", metavar="IN", type=Path, help="the weight file to read")
    parser.add_argument("target", metavar="OUT", type=Path, help="the file to write")
    parser.add_argument("--to", choices=("ours", "published"), help="refuse the other direction")
    fits = "the config that IN must fit; needed on a backbone of timm"
    parser.add_argument("--config", metavar="FILE", help=fits)
    parser.add_overwrite()
    args = parser.parse_args()
    outputs = Outputs(args.target.parent, "convert", "OUT", args.overwrite)
    outputs.claim([args.target.name], [args.source])
    cfg = with_class_names(load_config(args.config)) if args.config else None

    # Imported only now: torch takes seconds to load, and `--help` needs none.
    from util.checkpoint.file import serialize_checkpoint
    from util.checkpoint.renaming import convert

    content, description = convert(args.source, args.to, cfg)
    outputs.write(args.target.name, serialize_checkpoint(**content))
    log.info(f"written: {args.target}, {description}")


if __name__ == "__main__":
    main(convert_file)
