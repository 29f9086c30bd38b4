"""What the system reads of an image's features: all of a query, little of a support.

Both depend on frozen features alone. They never change and may be stored.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.base_learner import Features
from model.resize import at_least_float32, autocast_disabled, bilinear_ac, grid_size, nearest


@dataclass
class QueryFeatures:
    """Features of N query images."""

    features: Features  # maps [N,C,h,w]
    gram: Tensor  # cosines between the channels of f2, or another map, [N,C2,C2]
    size: tuple[int, int]  # (S, S) of the images

    @staticmethod
    @torch.no_grad()
    def from_features(
        features: Features, size: tuple[int, int], low_fea: str = "layer2"
    ) -> "QueryFeatures":
        """Compute the Gram matrices of images of this size and keep all maps.

        They are those of the stage `low_fea`, see `Features.of_layer`.
        """
        return QueryFeatures(features, gram_matrix(features.of_layer(low_fea)), size)

    def __getitem__(self, rows: slice) -> "QueryFeatures":
        maps = (f[rows] for f in self.features.maps())
        return QueryFeatures(Features(*maps), self.gram[rows], self.size)

    @staticmethod
    def cat(parts: list["QueryFeatures"]) -> "QueryFeatures":
        """Join queries of one image size."""
        *maps, gram = map(torch.cat, zip(*(part.tensors() for part in parts), strict=True))
        return QueryFeatures(Features(*maps), gram, parts[0].size)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all tensors, for counting memory."""
        return *self.features.maps(), self.gram

    def __len__(self) -> int:
        return len(self.gram)


@dataclass
class SupportFeatures:
    """Features of one support image, where its mask needs them.

    `plain.prototype` weighs positions by the mask, and in `plain.prior` all positions outside it
    have similarity 0. So features outside the mask are never read, except in the Gram matrix. A
    support whose object covers a seventh of the image needs a seventh of the memory.
    """

    f2: Tensor  # [C2,n], at the n positions where the mask, resized bilinear_ac, is not 0
    f3: Tensor  # [C3,n]
    weight: Tensor  # the mask's values there, [n]
    f4: Tensor  # [C4,m], at the m positions where the mask, resized nearest, is 1, or see weigh_f4
    f5: Tensor  # [C5,m]
    mask_is_full: bool  # m is the whole grid, and those of f4 and f5 outside the mask are 0
    gram: Tensor  # cosines between the channels of the full f2, or another map, [C2,C2]
    inside: Tensor | None = None  # bool [m]: where the mask is, if f4 and f5 hold the whole grid
    # Kept only where a system or a caller reads them: maps everywhere [C,h,w], the mask.
    f2_map: Tensor | None = None
    f3_map: Tensor | None = None
    f4_map: Tensor | None = None
    mask: Tensor | None = None  # bool [S,S]

    @staticmethod
    @torch.no_grad()
    def from_features(
        features: Features, mask: Tensor, low_fea: str = "layer2", *,
        weigh_f4: bool = False, keep: Collection[str] = (),
        context: Callable[[Tensor, Tensor], list[Tensor]] | None = None, cut: bool = True,
    ) -> list["SupportFeatures"]:  # fmt: skip
        """Cut N supports out of N maps by their masks [N,S,S] in {0,1,255}.

        Their Gram matrices are those of the stage `low_fea`. With `weigh_f4`, f4 is cut where the
        mask, resized bilinear_ac, is not 0, and multiplied by it. `keep` names the maps to keep
        whole, of "f2", "f3" and "f4", and "mask". Given `context`
        (`BaseLearner.context_inside`), f5 is computed only where it is read. Without `cut`, the
        whole grid is kept: f4 and f5 are 0 where they would not be read.
        """
        low = features.of_layer(low_fea)
        f4 = features.f4
        inside = at_least_float32((mask == 1)[:, None].to(features.f3.dtype))
        grid = grid_size(features.f3)
        soft, hard = bilinear_ac(inside, grid)[:, 0], nearest(inside, grid)[:, 0] == 1
        if weigh_f4:
            f4, hard = f4 * soft[:, None], soft != 0
        grams = gram_matrix(low)
        kept: list[dict[str, Any]] = [
            {f"{name}_map": getattr(features, name)[i] for name in keep if name != "mask"}
            | {"gram": grams[i], "mask": mask[i] == 1 if "mask" in keep else None}
            | {"inside": None if cut else hard[i].flatten()}
            for i in range(len(mask))
        ]
        if not cut:
            inside = hard[:, None]
            maps = features.f2, features.f3, soft, f4 * inside, features.f5 * inside
            f2, f3, weight, f4, f5 = (x.flatten(-2) for x in maps)
            return [
                SupportFeatures(f2[i], f3[i], weight[i], f4[i], f5[i], True, **own)
                for i, own in enumerate(kept)
            ]
        weighted = soft != 0
        if context:
            f5s = context(features.f4, hard)
        else:
            f5s = [of_image[:, here] for of_image, here in zip(features.f5, hard, strict=True)]
        return [
            SupportFeatures(
                f2=features.f2[i][:, weighted[i]],
                f3=features.f3[i][:, weighted[i]],
                weight=soft[i][weighted[i]],
                f4=f4[i][:, hard[i]],
                f5=f5s[i],
                mask_is_full=bool(hard[i].all()),
                **own,
            )
            for i, own in enumerate(kept)
        ]

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all tensors, for counting memory."""
        return tuple(value for value in vars(self).values() if isinstance(value, Tensor))


def gram_matrix(features: Tensor) -> Tensor:
    """Return the cosines between channels [N,C,C] of maps [N,C,h,w]; `plain.gram_matrix`."""
    f = at_least_float32(features.flatten(2))
    norm = f.norm(dim=2)
    with autocast_disabled(f):
        return (f @ f.transpose(1, 2)) / (norm[:, :, None] * norm[:, None] + 1e-7)
