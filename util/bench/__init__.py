"""Benchmarks: counted operations, time, memory, and the speed of the data.

Use `python -m util.bench` and `python -m util.bench.data`, or these names in a script. They are
imported on first use: they need torch, which takes seconds to load.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
