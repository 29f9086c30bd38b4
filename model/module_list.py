"""`nn.ModuleList` with the type of its elements."""

from collections.abc import Iterable, Sequence
from typing import TypeVar, cast

from torch import nn

M = TypeVar("M", bound=nn.Module)


def module_list(modules: Iterable[M]) -> Sequence[M]:
    """Return an `nn.ModuleList`, which a type checker sees as a sequence of its elements."""
    return cast(Sequence[M], nn.ModuleList(modules))
