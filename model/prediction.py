"""What a system says about B queries."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.resize import bilinear_ac


@dataclass
class Prediction:
    """Results for B queries; h x w is the feature grid, S the image size.

    A subclass adds the intermediate maps of its system. Elements of a list of maps also have names
    of their own, as in the golden files: `query_scale0`, `correlation1`, `logits0`, `mask1`.
    """

    size: tuple[int, int]  # (S, S)
    final: Tensor  # [B,2,h,w]
    logits: Any  # of the meta learner [B,2,h,w], or a list of them, of which the last counts
    prior: Tensor  # where the query is like the object, 0..1, found without training [B,n,h,w]

    @staticmethod
    def mean(parts: "list[Prediction]") -> "Prediction":
        """Average every map. Averaged masks are no longer only 0 and 1."""

        def average(*values: Any) -> Any:
            if isinstance(values[0], Tensor):
                return torch.stack(values).mean(0)
            return list(map(average, *values)) if isinstance(values[0], list) else values[0]

        fields = {k: average(*(vars(p)[k] for p in parts)) for k in vars(parts[0])}
        return type(parts[0])(**fields)

    @property
    def scores(self) -> Tensor:
        """Scores of background and object, to be compared (argmax): [B,2,S,S]."""
        return bilinear_ac(self.final, self.size)

    @property
    def meta(self) -> Tensor:
        """Scores of the meta learner alone, without an ensemble: [B,2,S,S]."""
        return bilinear_ac(self.meta_logits, self.size)

    @property
    def meta_logits(self) -> Tensor:
        """Scores of the meta learner alone on the feature grid: [B,2,h,w]."""
        return self.stages[-1]

    @property
    def stages(self) -> list[Tensor]:
        """Scores of the meta learner, from its first to its last mask [B,2,h,w]."""
        return self.logits if isinstance(self.logits, list) else [self.logits]

    def __getattr__(self, name: str) -> Tensor:
        """Return `logits0` = logits[0] and so on; masks and alphas count from 1."""
        fields, stem = vars(self), name[:-1]
        maps = fields.get(stem, fields.get(f"{stem}s"))
        if not isinstance(maps, list) or not name[-1].isdigit():
            raise AttributeError(name)
        return maps[int(name[-1]) - name.startswith(("mask", "alpha"))]


@dataclass
class EnsemblePrediction(Prediction):
    """Results of a meta learner and a base learner that are merged (method 4)."""

    psi: Tensor  # Gram distance [B]
    base_logits: Tensor  # [B,classes+1,h,w]
    foreground: Tensor  # fg' [B,1,h,w]

    @property
    def base(self) -> Tensor:
        """Base learner's logits at image size [B,classes+1,S,S]."""
        return bilinear_ac(self.base_logits, self.size)
