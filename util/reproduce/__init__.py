"""Reproducing results: a record of the environment, comparison of configs, tests repeated.

Names are imported when they are first used, because `environment` imports torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
