"""How a command runs: command line, log, progress, signals, launch, ranks, files, random state.

Nothing here knows data, models' training or evaluation. `cli` reads command lines and ends them,
`stop` handles signals, `launch` starts ranks and `distributed` connects them, `files` writes whole
files, `parallel` uses all cores, `rng` holds the random state.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
