"""Whether the object is there at all: a score of an episode, and how well it tells (protocol)."""

from torch import Tensor


def presence(final: Tensor) -> float:
    """Return the largest lead of the object over the background in final scores [2,h,w].

    It is above 0 if and only if some position of the grid is object.
    """
    background, foreground = final.float()
    return (foreground - background).max().item()
