"""Build a system from a config."""

import inspect
from collections.abc import Callable
from typing import Any

from model.amformer.system import AMFormer
from model.backbones import check_size
from model.bam.system import BAM
from model.hdmnet.system import HDMNet
from model.pfenet.system import PFENet
from model.system import System

SYSTEMS: dict[str, type[System]] = {
    "amformer": AMFormer,
    "bam": BAM,
    "hdmnet": HDMNet,
    "pfenet": PFENet,
}
"""`Method.name` -> class. To add a system, write its class and add it here."""


def options_of(system: type[System]) -> list[str]:
    """Return the keys of `Method`, beside the backbone, that a system takes: its keywords."""
    parameters = inspect.signature(system).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]


def build_model(cfg: Any) -> System:
    """Build the model that a `util.config.Config` describes, with random weights; reads no file.

    Raises `UserError` if there is no such backbone, if the system cannot use it, or if it takes no
    images of `Data.size` or of `Eval.val_size`.
    """
    method, system = cfg.Method, SYSTEMS[cfg.Method.name]
    options = {key: getattr(method, key) for key in options_of(system)}
    constructor: Callable[..., System] = system
    model = constructor(method.backbone, cfg.num_base_classes, cfg.Data.shot, **options)
    for key in ("Data.size", "Eval.val_size"):
        check_size(model.encoder.base.backbone, cfg.sizes[key], key)
    return model
