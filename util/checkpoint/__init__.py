"""Checkpoints: the file format, loading weights into models, resuming, published weights.

`file` reads and writes, `load` fills models, `origin` says what a checkpoint was trained on,
`resume` chooses what a run resumes from. `convert` is the command that turns published weights into
ours and back, by `renaming` them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
