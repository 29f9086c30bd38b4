"""Count floating-point operations, or an accelerator's launches, without computing them."""

from collections.abc import Callable
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from model.device import as_on_accelerator

ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
ALLOCATIONS |= {"detach", "lift_fresh", "_unsafe_view"}  # and views, though not by their schema


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


class Launches(NamedTuple):
    """What a device waits for its host for."""

    kernels: int
    reads: int  # of a value, for which the host waits for the device


class _LaunchCounter(TorchDispatchMode):
    """Count leaf operators that compute; a value that is read back is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = self.reads = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        library, name = func._schema.name.split("::")
        if name == "_local_scalar_dense":
            self.reads += 1
            return args[0].dtype.is_floating_point and 0.0
        computes = library == "aten" and name not in ALLOCATIONS and not func.is_view
        self.kernels += computes
        return func(*args, **(kwargs or {}))


def _fused_dropout(
    x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Compute `F.dropout` as it is on a GPU: in one launch."""
    return torch.native_dropout(x, p, True)[0] if training else x


def launches(work: Callable[[], object]) -> Launches:
    """Count the launches and the reads of `work` on an accelerator, backward passes included.

    Nothing is computed and no accelerator is needed. Raises a PyTorch error if a shape depends on
    values: then an accelerator would have to wait, too. `work` runs twice, and the second run
    counts: the first one composes weights and makes the optimizer's state.
    """
    with (
        as_on_accelerator(),
        patch("torch.nn.functional.dropout", _fused_dropout),
        FakeTensorMode(allow_non_fake_inputs=True),
        _LaunchCounter() as counter,
    ):
        work()
        counter.kernels = counter.reads = 0
        work()
    return Launches(counter.kernels, counter.reads)
