"""PFENet: "Prior Guided Feature Enrichment Network for Few-Shot Segmentation", TPAMI 2020."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
