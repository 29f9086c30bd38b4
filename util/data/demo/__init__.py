"""The generated data set: 20 kinds of drawn objects in PASCAL VOC's layout, to try everything on.

`python -m util.data.demo` is the command line.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
