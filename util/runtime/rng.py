"""The random state of a process, saved and restored for runs that resume."""

import platform
import random
from typing import Any

import numpy as np
import torch


def library_versions() -> dict[str, str]:
    """Return the versions that a run's numbers may depend on, beside this code."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": str(torch.__version__),
    }


def seed_everything(number: int) -> None:
    """Seed every random generator of this process, including those that this project never uses."""
    torch.manual_seed(number)
    np.random.seed(number % 2**32)
    random.seed(number)


def random_state() -> dict[str, Any]:
    """Return the state of every random generator, in types that a checkpoint may hold."""
    state = np.random.get_state(legacy=True)
    assert isinstance(state, tuple), "the legacy form is a tuple"
    _, keys, position, has_gauss, gauss = state
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        "numpy": [torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
        "python": [version, torch.tensor(internal), gauss_next],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what `random_state` returned; CUDA's generator only if CUDA is in use."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"].cpu())
    keys, position, has_gauss, gauss = state["numpy"]
    keys = keys.cpu().numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, gauss))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal.tolist()), gauss_next))
