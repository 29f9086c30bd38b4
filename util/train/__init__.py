"""Training: the base learner (stage one), adversarial training (stage two), and their runs.

`base_learner`, `adversarial` (AMFormer) and `supervised` (other systems) take the steps,
`optimizers` says what learns at which rate, `run` saves and resumes, `replay` repeats a step that
was not finite, `curves` writes for TensorBoard.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
