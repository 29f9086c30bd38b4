from .adversarial import AdversarialTrainer
from .base_learner import BaseLearnerTrainer
from .curves import Curves
from .optimizers import build_optimizer, build_optimizers, lr_schedule, set_lr
from .replay import dump_nonfinite_step
from .run import Run
from .stages import BaseLearnerRun, SystemRun
from .supervised import SupervisedTrainer
from .trainer import NonFiniteStep, Trainer
from .trainers import build_trainer

__all__ = [
    "AdversarialTrainer",
    "BaseLearnerRun",
    "BaseLearnerTrainer",
    "Curves",
    "NonFiniteStep",
    "Run",
    "SupervisedTrainer",
    "SystemRun",
    "Trainer",
    "build_optimizer",
    "build_optimizers",
    "build_trainer",
    "dump_nonfinite_step",
    "lr_schedule",
    "set_lr",
]
