"""Checkpoint files: written whole or not at all, read without running code, loaded in full.

A file is a zip, as PyTorch writes it, with a CRC-32 of every tensor; `load` compares them all.
"""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from util.runtime.errors import UserError
from util.runtime.files import atomic_write


def serialize_checkpoint(**state: Any) -> bytes:
    """The bytes of a checkpoint file.

    Args:
        **state: state dicts, plain numbers, text and containers of them (`load` refuses more).
    """
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def write_checkpoint(path: str | Path, **state: Any) -> None:
    """Writes a checkpoint file, whole or not at all.

    Raises:
        OSError: it cannot be written; what was there is as it was.
    """
    atomic_write(path, serialize_checkpoint(**state))


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint, onto the CPU; no code in it is run.

    Raises:
        UserError: no such file, a torn or changed one, or one that is no checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; train it first, or name another file")
    try:
        if zipfile.is_zipfile(path):  # older files are none, and have no checksums
            with zipfile.ZipFile(path) as records:
                if damaged := records.testzip():
                    raise zipfile.BadZipFile(damaged)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a torn file can fail anywhere in the reader
        raise UserError(
            f"{path}: torn, or not a PyTorch checkpoint of tensors; write it anew or "
            "name another file"
        ) from None
    if not isinstance(state, dict):
        raise UserError(
            f"{path}: holds a {type(state).__name__}, no named values; name another file"
        )
    return state


def state_dict_in(state: dict[str, Any], name: str, path: str | Path) -> dict[str, torch.Tensor]:
    """The state dict in a file: what is called so, or all that is there.

    Raises:
        UserError: it is none.
    """
    found = state.get(name, state)
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise UserError(f"{path}: holds no weights under their names; name another file")
    return found


def load_state_dict_strictly(
    module: nn.Module, state: dict[str, torch.Tensor], path: str | Path
) -> None:
    """Loads a state dict whose names and shapes have to be exactly the module's.

    Args:
        module: what to load into.
        state: name -> tensor.
        path: the file it came from, for the message.

    Raises:
        UserError: names that are missing, surplus, or of another shape; the module is unchanged.
    """
    if told := state_dict_differences(module.state_dict(), state):
        raise UserError(
            f"{path}: a checkpoint of another architecture: {told}; name "
            "one that was trained with this config"
        )
    module.load_state_dict(state)


def state_dict_differences(
    own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]
) -> str:
    """What of a state dict is missing, surplus or of another shape than in `own`; '': nothing.

    Of each kind the number and the first three names.
    """
    faults = {
        "missing": [name for name in own if name not in state],
        "surplus": [name for name in state if name not in own],
        "of another shape": [
            f"{name} {_shape(state[name])} for {_shape(own[name])}"
            for name in own
            if name in state and _shape(state[name]) != _shape(own[name])
        ],
    }
    return "; ".join(
        f"{len(names)} {fault} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for fault, names in faults.items()
        if names
    )


def _shape(value: Any) -> list[int] | str:
    return list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
