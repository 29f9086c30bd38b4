"""What every system of this family is: a frozen encoder, and a network that segments by it.

A system is a subclass of `System`. It says how queries are segmented (`segment`), what its losses
are (`losses`, `LOSSES`), how its parameters learn (`OPTIMIZER`, `GROUPS`), and under which names
published checkpoints hold its weights (`PUBLISHED`). Everything else is shared.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from model.base_learner import BaseLearner
from model.device import is_accelerator
from model.encoder import Encoder
from model.errors import UserError
from model.folding import ComposedChain, LinearChain
from model.mining import Pyramid
from model.naming import Naming
from model.prediction import Prediction
from model.query_support import QueryFeatures, SupportFeatures

KSHOT = ("model", "ensemble", "prototype")
"""How K supports become one prediction.

- model: as published, for a model built for K: shots are averaged, or weighted by learned K-shot
  weights w of the Gram distances.
- prototype: for a model built for any K. The same with w_k = 1 / K.
- ensemble: for a model built for any K. Every map is the mean over K one-shot predictions, also
  final = sum_k final_k / K. One-shot prediction k has p_k and psi = d_k.

With K = 1, a 1-shot model gives the same result in all three.
"""

OfParameter = Literal["transformer", "other", "merge", "frozen"]
"""Kind of a parameter: it learns at `Train.lr` times 1, `lr_multiplier`, `merge_lr_multiplier`."""


@dataclass
class Truth:
    """What a batch, or a part of one, is trained towards; masks are [B,S,S].

    `pixels` and `base_pixels` are the numbers of labeled pixels by which sums over pixels are
    divided, of the whole batch. A mean over these episodes counts `share` in that of the batch.
    """

    mask: Tensor  # in {0, 1, 255}
    base_mask: Tensor  # in {0..classes, 255}
    pixels: Tensor
    base_pixels: Tensor
    share: float = 1.0


class System(nn.Module):
    """A frozen encoder and what a subclass adds, for K = `shot`.

    The keyword arguments of a subclass's `__init__` are keys of `Method`; `model.build` passes
    them. With `fix_bn` all batch norms stay in eval mode, except those that the encoder trains.
    """

    OPTIMIZER: ClassVar[Literal["adamw", "sgd"]]
    GROUPS: ClassVar[Mapping[str, OfParameter]]  # start of a parameter's name -> kind, first wins
    LOSSES: ClassVar[Mapping[str, str]]  # loss that is trained on -> key of `Train` that weighs it
    PUBLISHED: ClassVar[Naming]
    PRIORS: ClassVar[tuple[str, ...]] = ("f5", "f4")  # what each map of its prior compares
    TRANSFORMER: ClassVar[type[nn.Module] | tuple[()]] = ()  # that segments by the clue, if any
    SHOWN: ClassVar[tuple[str, ...]] = ()  # maps of supports that `forward` keeps for its results

    def __init__(self, encoder: Encoder, shot: int, *, fix_bn: bool) -> None:
        super().__init__()
        self.encoder, self.shot, self.fix_bn = encoder, shot, fix_bn

    @property
    def has_base_learner(self) -> bool:
        """Whether predictions hold the scores of the base classes, too."""
        return isinstance(self.encoder.base, BaseLearner)

    def train(self, mode: bool = True) -> "System":
        """Set the mode; frozen parts and, with `fix_bn`, all batch norms stay in eval mode."""
        super().train(mode)
        if self.fix_bn:
            for name, module in self.named_modules():
                if isinstance(module, nn.BatchNorm2d) and not name.startswith("encoder."):
                    module.eval()
        return self

    def compose_chains(self) -> None:
        """Replace each linear chain by the one convolution that it computes; for prediction."""
        for parent in list(self.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, LinearChain):
                    setattr(parent, name, ComposedChain(child))

    def compile_with(self, compiler: Callable[[Callable], Callable]) -> None:
        """Run the encoder and a transformer through a compiler such as `torch.compile`.

        On a CPU, the positions that a mask keeps decide shapes, so of a transformer only the
        pyramid is compiled; on an accelerator all of it is (`model/device.py`).
        """
        self.encoder.compile_with(compiler)
        kind = self.TRANSFORMER if is_accelerator(next(self.parameters())) else Pyramid
        for module in self.modules():
            if isinstance(module, kind):
                module.forward = compiler(module.forward)

    def forward(
        self, query: Tensor, support: Tensor, support_mask: Tensor,
        *, class_index: Tensor | None = None,
    ) -> Prediction:  # fmt: skip
        """Segment each query [B,3,S,S] by its K supports [B,K,3,S,S].

        Images are normalized, support masks [B,K,S,S] in {0,1,255}. In training only, `class_index`
        [B] is the episode's class among the base classes, from 0. Raises `UserError` if the model
        was built for another K.
        """
        encoded = self.encoder.episodes(query, support, support_mask, keep=self.SHOWN)
        return self.match(*encoded, class_index=class_index)

    def match(
        self, query: QueryFeatures, supports: list[list[SupportFeatures]],
        *, class_index: Tensor | None = None, kshot: str = "model",
    ) -> Prediction:  # fmt: skip
        """Segment queries, given the features of queries and of their supports, B lists of K.

        One query may serve all B episodes: what depends on it alone is computed once. `kshot`, one
        of `KSHOT`, says how K supports become one prediction. `class_index` is that of `forward`.
        Raises `UserError` if `kshot` is unknown, or "model" and the model was built for another K.
        """
        if kshot not in KSHOT:
            raise UserError(f"kshot is {kshot!r}: use one of {', '.join(KSHOT)}")
        if kshot == "ensemble":
            one_shot = [[[support] for support in shot] for shot in zip(*supports, strict=True)]
            return Prediction.mean(
                [self.match(query, s, class_index=class_index, kshot="prototype") for s in one_shot]
            )
        shot = len(supports[0])
        if kshot == "model" and shot != self.shot:
            mistake = f"the model was built for {self.shot} supports per query and got {shot}"
            remedy = f"set Data.shot to {shot}, or Eval.kshot to ensemble or prototype"
            raise UserError(f"{mistake}: {remedy}")
        return self.segment(query, supports, class_index, learned=kshot == "model")

    def segment(
        self, query: QueryFeatures, supports: list[list[SupportFeatures]],
        class_index: Tensor | None, *, learned: bool,
    ) -> Prediction:  # fmt: skip
        """Segment as `match`, with K-shot weights if they are `learned`, else with 1 / K."""
        raise NotImplementedError

    def losses(self, prediction: Any, truth: Truth) -> dict[str, Tensor]:
        """Return the losses by name: those of `LOSSES`, and others that are only shown.

        `prediction` is what `segment` returned.
        """
        raise NotImplementedError


def kind_of(system: type[System], parameter: str) -> OfParameter | None:
    """Return the kind of a parameter by its name, or None if no group of the system has it."""
    kinds = (kind for start, kind in system.GROUPS.items() if parameter.startswith(start))
    return next(kinds, None)


def stack_kept(supports: list[list[SupportFeatures]], name: str) -> Tensor | None:
    """Return a field of B lists of K supports [B,K,...], such as `f4_map`; None if not kept."""
    rows = [[getattr(support, name) for support in shots] for shots in supports]
    return None if rows[0][0] is None else torch.stack([torch.stack(row) for row in rows])
