"""HDMNet: "Hierarchical Dense Correlation Distillation for Few-Shot Segmentation", CVPR 2023."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
