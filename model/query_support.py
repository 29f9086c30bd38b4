"""What the rest of the system reads of an image's features: a query everything, a support little.

Both are functions of frozen features alone, so they never change and may be stored.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from model.base_learner import Features
from model.precision import at_least_float32, autocast_disabled
from model.resize import bilinear_ac, nearest


@dataclass
class QueryFeatures:
    """N query images.

    Attributes:
        features: their maps, [N,C,h,w] each.
        gram: cosines between the channels of f2, [N,C2,C2].
        size: (S, S) of the images.
    """

    features: Features
    gram: Tensor
    size: tuple[int, int]

    @staticmethod
    @torch.no_grad()
    def of(features: Features, size: tuple[int, int]) -> "QueryFeatures":
        return QueryFeatures(features, gram_matrix(features.f2), size)

    def __getitem__(self, rows: slice) -> "QueryFeatures":
        return QueryFeatures(self.features.map(lambda f: f[rows]), self.gram[rows], self.size)

    @staticmethod
    def cat(parts: list["QueryFeatures"]) -> "QueryFeatures":
        """Joins queries of one image size."""
        features = Features.cat([part.features for part in parts])
        return QueryFeatures(features, torch.cat([part.gram for part in parts]), parts[0].size)

    def tensors(self) -> tuple[Tensor, ...]:
        return *self.features.maps(), self.gram

    def __len__(self) -> int:
        return len(self.gram)


@dataclass
class SupportFeatures:
    """One support image and the mask of its object.

    The prototype is a mean weighted by the mask, and the prior compares with the object's positions
    only (all others count as similarity 0): what lies where the mask is 0 is never read, except in
    the Gram matrix. So an object of a seventh of the image needs a seventh of the memory.

    Attributes:
        f2, f3: where the mask, resized bilinear(AC), is not 0: [C,n].
        weight: the mask's values there, [n].
        f4, f5: where the mask, resized nearest, is 1: [C,m].
        whole: that is everywhere.
        gram: cosines between the channels of the full f2, [C2,C2].
    """

    f2: Tensor
    f3: Tensor
    weight: Tensor
    f4: Tensor
    f5: Tensor
    whole: bool
    gram: Tensor

    @staticmethod
    @torch.no_grad()
    def of(features: Features, mask: Tensor) -> list["SupportFeatures"]:
        """N supports.

        Args:
            features: N maps.
            mask: [N,S,S] in {0,1,255}.
        """
        inside = at_least_float32((mask == 1)[:, None].to(features.f3.dtype))
        grid = features.f3.shape[-2:]
        soft, hard = bilinear_ac(inside, grid)[:, 0], nearest(inside, grid)[:, 0] == 1
        near = soft != 0
        return [
            SupportFeatures(
                f2=features.f2[i][:, near[i]],
                f3=features.f3[i][:, near[i]],
                weight=soft[i][near[i]],
                f4=features.f4[i][:, hard[i]],
                f5=features.f5[i][:, hard[i]],
                whole=bool(hard[i].all()),
                gram=gram_matrix(features.f2[i : i + 1])[0],
            )
            for i in range(len(mask))
        ]

    def tensors(self) -> tuple[Tensor, ...]:
        values = (getattr(self, field.name) for field in fields(self))
        return tuple(value for value in values if isinstance(value, Tensor))


def gram_matrix(features: Tensor) -> Tensor:
    """[N,C,h,w] -> cosines between channels [N,C,C]."""
    f = at_least_float32(features.flatten(2))
    norm = f.norm(dim=2)
    with autocast_disabled(f):
        return (f @ f.transpose(1, 2)) / (norm[:, :, None] * norm[:, None] + 1e-7)
