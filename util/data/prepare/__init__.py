"""From downloads to data sets: masks, pictures and lists in the layout that `Source` reads.

`python -m util.data.prepare` is the command line. `archive.py` reads folders, tars and zips alike;
`jobs.py` creates the files, so that a run may be killed at any moment and continued.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
