"""Checkpoint files: complete or absent, read without running code, loaded strictly.

A file is a zip archive, as PyTorch writes it, with a CRC-32 of every tensor; reading checks all.
"""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.weight_file import parse_weights, read_content
from util.runtime import distributed
from util.runtime.errors import UserError
from util.runtime.files import atomic_write

Weights = Mapping[str, Tensor]

_REAL = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_WHOLE = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)
"""Types of numbers that weights, and counts beside them, are saved in."""


def serialize_checkpoint(**state: Any) -> bytes:
    """Return the bytes of a file; state dicts, numbers, text and containers can be read back."""
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def write_checkpoint(path: str | Path, **state: Any) -> None:
    """Write the state, see `serialize_checkpoint`, completely or not at all; create the folder.

    Raises `OSError` if the file cannot be written; the current one is then unchanged.
    """
    atomic_write(path, serialize_checkpoint(**state))


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint, onto the CPU, without running any code in it.

    Raises `UserError` if the file is missing, torn or changed, or is no checkpoint.
    """
    return _state_in(_content(Path(path)), Path(path))


def read_checkpoint_once(path: str | Path) -> tuple[dict[str, Any], str]:
    """Return the same checkpoint on every rank, and the SHA-256 of its bytes.

    Rank 0 reads the file, once: it may be replaced at any time by a training that goes on. Every
    rank has to call this. Raises `UserError` as `read_checkpoint`.
    """
    content = distributed.from_main(lambda: _content(Path(path)))
    return _state_in(content, Path(path)), hashlib.sha256(content).hexdigest()


def _content(path: Path) -> bytes:
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint; train it first, or name another file")
    return read_content(path)


def _state_in(content: bytes, path: Path) -> dict[str, Any]:
    state = parse_weights(content, path)
    if not isinstance(state, dict):
        kind = type(state).__name__
        raise UserError(f"{path}: holds a {kind} instead of named values; name another file")
    return state


def state_dict_in(state: dict[str, Any], name: str, path: str | Path) -> dict[str, Tensor]:
    """Return a file's entry `name`, or all of it without one; it must be a state dict."""
    weights = state.get(name, state)
    if not isinstance(weights, dict) or not all(isinstance(key, str) for key in weights):
        raise UserError(f"{path}: holds no named weights; name another file")
    return weights


def load_state_dict_strictly(
    module: nn.Module, state: Weights, path: str | Path, *, finite: bool = True
) -> None:
    """Load a state dict, read from `path`, whose names and shapes must be the module's.

    Raises `UserError`, and changes nothing, if names are missing, surplus or of another shape, or
    if values are of another kind (such as integers for real numbers). With `finite`, also if one is
    NaN or infinite.
    """
    require_same_weights(module.state_dict(), state, path)
    require_usable_values(module.state_dict(), state, path, finite=finite)
    module.load_state_dict(state)


def require_same_weights(expected: Weights, state: Weights, path: str | Path) -> None:
    """Raise `UserError` if a state dict, read from `path`, has other names or shapes."""
    if differences := state_dict_differences(expected, state):
        if any(name.startswith("encoder.") for name in expected):
            require_our_names(state, path)
        if mistake := _other_kind(expected, state):
            raise UserError(f"{path}: {mistake}")
        mistake = f"a checkpoint of another architecture: {differences}"
        raise UserError(f"{path}: {mistake}; name one that was trained with this config")


def require_usable_values(
    expected: Weights, state: Weights, path: str | Path, *, finite: bool = True
) -> None:
    """Raise `UserError` if weights, read from `path`, are of another kind, or not finite.

    They must be finite in the type of the model, too, and no variance may be below 0.
    """
    remedy = "name another file"
    for name, tensor in state.items():
        is_real = expected[name].is_floating_point()
        if tensor.dtype not in (_REAL if is_real else _WHOLE):
            mistake = f"{name} holds numbers of another kind ({tensor.dtype})"
            raise UserError(f"{path}: {mistake}; {remedy}")
        if name.endswith("running_var") and (tensor < 0).any():
            raise UserError(f"{path}: {name} holds a variance below 0; {remedy}")
    cast = ((name, tensor.to(expected[name].dtype)) for name, tensor in state.items())
    broken = [name for name, tensor in cast if finite and not tensor.isfinite().all()]
    if broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        mistake = f"{broken[0]}{more}: values that are not finite (NaN or infinity)"
        raise UserError(f"{path}: {mistake}; {remedy}")


def require_our_names(state: Mapping[str, Any], path: str | Path, options: str = "") -> None:
    """Raise `UserError` for a system of the published code; `options`: of the converter."""
    weights = state.get("state_dict", state)
    if isinstance(weights, Mapping) and "transformer" in _parts(weights):
        command = f"python -m util.checkpoint.convert {path} ours.pth{options}"
        raise UserError(f"{path}: is a checkpoint of the published code; convert it: {command}")


def _parts(state: Mapping[str, Any]) -> set[str]:
    """Return the first words of the names of weights."""
    return {str(name).removeprefix("module.").partition(".")[0] for name in state}


def _other_kind(expected: Weights, state: Weights) -> str:
    """Say what a file of another kind is, and what it is for; '' if it is of the expected kind."""
    parts, system = _parts(state), any(name.startswith("encoder.") for name in expected)
    if system and parts & {"ppm", "classifier"}:
        return "is a base learner, which Method.pre_weight takes; name a best.pth of train.py"
    if not system and parts & {"encoder", "transformer"}:
        return "is a model of stage two; name the base learner that train_base.py or BAM wrote"
    if parts & {"fc", "conv1", "features"} and not parts & {"ppm", "encoder", "transformer"}:
        return "holds ImageNet weights, which Method.pretrained takes; name a trained model"
    return ""


def state_dict_differences(expected: Weights, state: Weights) -> str:
    """Count and name (three of each) what is missing, surplus or of another shape, or return ''."""
    shapes = {n: (_shape(state[n]), _shape(expected[n])) for n in expected if n in state}
    differences = {
        "missing": [name for name in expected if name not in state],
        "surplus": [name for name in state if name not in expected],
        "of another shape": [f"{n} {a} for {b}" for n, (a, b) in shapes.items() if a != b],
    }
    return "; ".join(
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in differences.items()
        if names
    )


def _shape(value: Any) -> list[int] | str:
    return list(value.shape) if isinstance(value, Tensor) else type(value).__name__
