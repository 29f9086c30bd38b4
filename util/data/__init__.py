"""From a data set on disk to batches of episodes, and to images for the base learner.

The path of the data: `source.py` reads files, `mixed.py` those of several data sets; `tables.py`
counts the pixels of each class in every mask; `lists.py` derives the images of a fold;
`episodes.py` draws query, class and supports; `dataset.py` makes tensors of them (`transform.py`,
`weak.py`); `batches.py` and `loading.py` turn them into batches. `base_images.py` does the same for
the base learner.

`prepare/` makes a data set from downloads, `demo/` draws one. Nothing else here imports these two.
`python -m util.data.lists CONFIG` writes the fold lists, `python -m util.data.check CONFIG` checks
every file. Names are imported on first use: some need torch, which takes seconds to load.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
