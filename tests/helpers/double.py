"""A model and its episodes in float64: there, another order of summation moves no pixel."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from helpers.small import balance_heads
from model import build_model
from model.backbones import LITE0, load_pretrained, pixel_statistics
from util.config import Config
from util.data.dataset import collate, open_episodes
from util.data.transform import EvalTransform
from util.evaluate.evaluator import Evaluator
from util.runtime.distributed import Ranks

CPU = torch.device("cpu")
ALONE = Ranks(0, 1, CPU)


class Float64Transform(EvalTransform):
    """`EvalTransform` with images in float64."""

    def to_tensors(self, image: np.ndarray, label: np.ndarray) -> tuple[Tensor, Tensor]:
        image, label = super().to_tensors(image, label)
        return image.double(), label


class System:
    """A model with random weights that finds objects, and episodes for it, in float64."""

    def __init__(self, cfg: Config, *, pretrained: bool = False):
        torch.manual_seed(0)
        self.cfg, self.model = cfg, build_model(cfg).eval().double()
        if pretrained:
            load_pretrained(self.model.encoder.base.backbone, LITE0, "package")
        self.episodes, _ = open_episodes(cfg, "val", 1)
        self.episodes.transform = Float64Transform(cfg.sizes["Data.size"], *pixel_statistics(LITE0))
        with torch.no_grad():
            for head in self.model.object_mining.heads:
                head[-1].weight *= 100
        first = collate([self.episodes[i] for i in range(4)])
        balance_heads(self.model, first.query, first.support, first.support_mask)

    def options(self, **options: object) -> Config:
        """Return the config with these keys of `Eval`."""
        return replace(self.cfg, Eval=replace(self.cfg.Eval, **options))

    def evaluator(self, ranks: Ranks = ALONE, **options: object) -> Evaluator:
        """Return the evaluator of the one-way protocol, with these keys of `Eval`."""
        return Evaluator(self.model, self.episodes, self.options(**options), ranks)
