"""Reports about runs: an HTML page, the table of a paper, and which difference is real.

Use `python -m util.report`, or these names in a notebook. They are imported on first use: the page
needs matplotlib and torch, which take seconds to load.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
