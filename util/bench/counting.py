"""Count floating-point operations without computing them."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode, flop_registry


class _SkipProducts(TorchDispatchMode):
    """Return ones of the right shape instead of computing products and convolutions."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func._overloadpacket not in flop_registry:
            return func(*args, **kwargs)
        device = next(t for t in args if isinstance(t, torch.Tensor)).device
        shapes = tree_map_only(torch.Tensor, lambda t: t.to("meta"), (args, kwargs))
        out = func(*shapes[0], **shapes[1])
        return tree_map_only(torch.Tensor, lambda t: torch.ones_like(t, device=device), out)


def count(work: Callable[[], object]) -> int:
    """Count the operations of the products and convolutions in `work`, backward passes included.

    A multiplication and an addition are two operations. All shapes are right, but values are not:
    `work` must not depend on values (such as which keys a mask keeps).
    """
    with _SkipProducts(), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()
