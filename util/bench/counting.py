"""Counting floating-point operations without computing them."""

from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode, flop_registry


class _Skip(TorchDispatchMode):
    """Every product and convolution gives ones of the right shape at once."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func._overloadpacket not in flop_registry:
            return func(*args, **kwargs)
        like = [t for t in args if isinstance(t, torch.Tensor)][0]
        shapes = tree_map_only(torch.Tensor, lambda t: t.to("meta"), (args, kwargs))
        out = func(*shapes[0], **shapes[1])
        return tree_map_only(torch.Tensor, lambda t: torch.ones_like(t, device=like.device), out)


def count(work: Callable[[], object]) -> int:
    """Operations in the products and convolutions of `work`, its backward passes included.

    A multiplication and an addition are two. Shapes are what they would be, values are not: what
    depends on values (which keys a mask keeps) has to be fixed by the caller.
    """
    with _Skip(), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()
