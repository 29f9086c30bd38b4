from .adversarial import AdversarialTrainer
from .base_learner import BaseLearnerTrainer
from .curves import Curves
from .optimizers import build_optimizer, build_optimizers, lr_schedule, set_lr
from .replay import dump_nonfinite_step
from .run import Run
from .stages import AdversarialRun, BaseLearnerRun
from .supervised import SupervisedTrainer
from .trainer import NonFiniteStep, Trainer

__all__ = [
    "AdversarialRun",
    "AdversarialTrainer",
    "BaseLearnerRun",
    "BaseLearnerTrainer",
    "Curves",
    "NonFiniteStep",
    "Run",
    "SupervisedTrainer",
    "Trainer",
    "build_optimizer",
    "build_optimizers",
    "dump_nonfinite_step",
    "lr_schedule",
    "set_lr",
]
