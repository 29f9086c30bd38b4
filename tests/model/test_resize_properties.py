"""Properties of the three ways to resize, for any sizes."""

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from model.resize import bilinear, bilinear_ac, nearest

SIDES = st.tuples(st.integers(1, 12), st.integers(1, 12))


def by_hand(x: np.ndarray, size: tuple[int, int], *, aligned: bool) -> np.ndarray:
    """Interpolate [h,w] bilinearly, written as a formula."""

    def positions(new: int, old: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = np.arange(new)
        if aligned:
            at = at * (old - 1) / max(new - 1, 1)
        else:
            at = np.clip((at + 0.5) * old / new - 0.5, 0, None)
        low = np.clip(np.floor(at).astype(int), 0, old - 1)
        return low, np.minimum(low + 1, old - 1), at - low

    low, high, part = positions(size[0], x.shape[0])
    rows = x[low] * (1 - part)[:, None] + x[high] * part[:, None]
    low, high, part = positions(size[1], x.shape[1])
    return rows[:, low] * (1 - part) + rows[:, high] * part


@given(SIDES, SIDES, st.integers(0, 2**32 - 1))
def test_resizing_equals_the_formula_and_torch(
    old: tuple[int, int], new: tuple[int, int], seed: int
) -> None:
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, 3, *old)))
    for mine, aligned in ((bilinear_ac, True), (bilinear, False)):
        got = mine(x, new)
        torch.testing.assert_close(
            got, F.interpolate(x, new, mode="bilinear", align_corners=aligned)
        )
        wanted = by_hand(x[1, 2].numpy(), new, aligned=aligned)
        np.testing.assert_allclose(got[1, 2].numpy(), wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(nearest(x, new), F.interpolate(x, new, mode="nearest"))
    if min(*old, *new) > 1:  # aligned corners keep their values
        corners = torch.tensor([0, -1])
        got, kept = (y[..., corners, :][..., corners] for y in (bilinear_ac(x, new), x))
        torch.testing.assert_close(got, kept)
