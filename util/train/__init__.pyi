from .adversarial import AdversarialTrainer, NonFiniteStep
from .base_learner import BaseLearnerTrainer
from .curves import Curves
from .optimizers import build_optimizers, lr_schedule, set_lr
from .replay import dump_nonfinite_step
from .run import Run
from .stages import AdversarialRun, BaseLearnerRun

__all__ = [
    "AdversarialRun",
    "AdversarialTrainer",
    "BaseLearnerRun",
    "BaseLearnerTrainer",
    "Curves",
    "NonFiniteStep",
    "Run",
    "build_optimizers",
    "dump_nonfinite_step",
    "lr_schedule",
    "set_lr",
]
