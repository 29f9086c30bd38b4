"""Evaluation: the order of the work, the evaluator, metrics, scores, pictures of episodes.

`order` sorts and shares out the episodes, `evaluator` runs them, `metrics` counts pixels, `scores`
makes scores of the counts, `visualize` draws episodes.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
