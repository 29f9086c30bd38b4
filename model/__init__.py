"""Few-shot segmentation systems: networks only, no files, no training.

AMFormer: "Focus on Query: Adversarial Mining Transformer for Few-Shot Segmentation", NeurIPS 2023.
`model/amformer/plain.py` states it as equations: read that first.

Names are imported when they are first used: torch takes seconds to load, `--help` needs none.
"""

import logging
import sys
import warnings

import lazy_loader

# Silence two harmless warnings: mmcv's deprecation notice and its missing compiled operators.
if not sys.warnoptions:
    warnings.filterwarnings("ignore", module="mmcv")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
