"""Adversarial training on the plain formulation (model/amformer/plain.py), for tests and bench.

`encode` and `PlainAdversarialTrainer` stand in for `util.features.encode` and
`AdversarialTrainer`. As in the published code, a step of D also builds G's graph and all losses.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from model import AMFormer, Prediction
from model.amformer import losses, plain
from model.amformer.detail_mining import DiscriminatorOutputs
from model.base_learner import Features
from util.data.dataset import EpisodeBatch
from util.data.episodes import Plan
from util.train.adversarial import AdversarialTrainer
