"""How a command runs: command line, log, progress, signals, launch, ranks, files, random state.

Nothing here knows data, models' training or evaluation.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
