"""Few-shot segmentation systems: networks only, no files, no training.

AMFormer: "Focus on Query: Adversarial Mining Transformer for Few-Shot Segmentation", NeurIPS 2023.
`model/amformer/plain.py` states it as equations: read that first.
"""

import importlib
import logging
import sys
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.amformer.system import AMFormer, Prediction
    from model.build import build_model
    from model.errors import UserError

# Silence two harmless warnings: mmcv's deprecation notice and its missing compiled operators.
if not sys.warnoptions:
    warnings.filterwarnings("ignore", module="mmcv")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

__all__ = ["AMFormer", "Prediction", "UserError", "build_model"]

_HOMES = {
    "AMFormer": "model.amformer.system",
    "Prediction": "model.amformer.system",
    "UserError": "model.errors",
    "build_model": "model.build",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for: torch takes seconds, `--help` needs none."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
