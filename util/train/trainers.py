"""Which trainer trains a system."""

from model import AMFormer, System
from util.config import Config
from util.runtime import Ranks
from util.train.adversarial import AdversarialTrainer
from util.train.supervised import SupervisedTrainer
from util.train.trainer import Trainer


def build_trainer(model: System, cfg: Config, total: int, ranks: Ranks, warmup: int = 0) -> Trainer:
    """Return the trainer of a system: of two networks in turn for AMFormer, else of its losses."""
    if isinstance(model, AMFormer):
        return AdversarialTrainer(model, cfg, total, ranks, warmup)
    return SupervisedTrainer(model, cfg, total, ranks, warmup)
