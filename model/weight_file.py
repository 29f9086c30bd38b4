"""Read files of weights without running code in them, and say what is wrong with one."""

import io
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from model.errors import UserError
from model.nesting import holds_more_than

_FOREIGN = {
    b"<": "is a web page: the download wants a login, or the link has changed",
    b"version https://git-lfs": "is a pointer of Git LFS; fetch the file itself with git lfs pull",
    b"\x89HDF": "is a file of HDF5 (Keras), not of PyTorch",
}
"""What a file that is none of weights may begin with -> what it is."""


_LARGEST_CONTENT = 2_000_000
"""Values in a file, each as often as it is named; ours hold less than a fifth of it."""


def read_weights(path: Path) -> Any:
    """Return the content of a file of PyTorch or safetensors, on the CPU.

    Raises `UserError` as `read_content` and `parse_weights` do.
    """
    return parse_weights(read_content(path), path)


def read_content(path: Path) -> bytes:
    """Return the bytes of a file of weights, read once; of any other file only the beginning.

    Raises `UserError` if it is a folder or a device, may not be read, or is larger than the memory.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file in it")
    try:
        if not path.is_file() and path.exists():  # reading a pipe might never end
            raise UserError(f"{path}: is a pipe or a device; name a file of weights")
        with open(path, "rb") as file:
            begin = file.read(64)
            is_cut = begin.startswith(b"PK") and not zipfile.is_zipfile(file)
            known = begin.startswith((b"PK", b"\x80")) or path.suffix == ".safetensors"
            if is_cut or not known:  # the beginning tells, and the rest might fill the memory
                return begin
            file.seek(0)
            return file.read()
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
        raise UserError(f"{path}: {what}; check the path and its permissions") from None
    except MemoryError:
        size = f"{path.stat().st_size / 1e9:.1f} GB"
        raise UserError(f"{path}: {size} do not fit into memory; name another file") from None


def parse_weights(content: bytes, path: Path) -> Any:
    """Return what these bytes of the file `path` hold, on the CPU.

    The checksums of an archive are compared. Raises `UserError` with the one reason: the file is
    empty, cut off, damaged, something else, or holds Python objects that could run code, or tensors
    that are more than an array of numbers.
    """
    try:
        if path.suffix == ".safetensors":
            return load(content)
        file = io.BytesIO(content)
        if zipfile.is_zipfile(file):  # files of PyTorch before 1.6 are no archives
            with zipfile.ZipFile(file) as records:
                _require_unpacked(records, len(content), path)
                if damaged := records.testzip():
                    raise zipfile.BadZipFile(damaged)
        file.seek(0)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # a torn file can make the reader fail anywhere
        raise UserError(_reason(path, content[:64], str(error))) from None
    if holds_more_than(_LARGEST_CONTENT, state):
        what = f"holds more than {_LARGEST_CONTENT:,} values, or one within itself"
        raise UserError(f"{path}: {what}; name another file")
    for name, tensor in _tensors(state):
        if kind := _odd_kind(tensor):
            remedy = "save ordinary tensors on the CPU, or name another file"
            raise UserError(f"{path}: {name or 'its content'} is a {kind} tensor; {remedy}")
    return state


def _require_unpacked(records: zipfile.ZipFile, size: int, path: Path) -> None:
    """Refuse an archive of `size` bytes whose members say that they are larger, unread."""
    if (declared := sum(member.file_size for member in records.infolist())) > size:
        what = f"its members are {declared / 1e9:.1f} GB, and the file is {size / 1e9:.1f} GB"
        raise UserError(f"{path}: {what}; PyTorch packs no weights, so name another file")


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors in containers, with the keys that lead to each."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping | list | tuple):
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, inner in pairs:
            yield from _tensors(inner, f"{name}.{key}" if name else str(key))


def _odd_kind(tensor: Tensor) -> str:
    """Return what parts a tensor from a plain array of numbers in memory; '' if nothing does."""
    if tensor.is_nested:
        return "nested"
    if tensor.is_quantized:
        return "quantized"
    if tensor.layout != torch.strided:
        return "sparse"
    return "" if tensor.device.type == "cpu" else f"{tensor.device.type}"


def _reason(path: Path, begin: bytes, error: str) -> str:
    if not begin:
        return f"{path}: torn, or not a PyTorch checkpoint: it is empty; copy or write it again"
    for start, what in _FOREIGN.items():
        if begin.lstrip().startswith(start):
            return f"{path}: {what}" + ("" if ";" in what else "; name a file of weights")
    if found := re.search(r"(?:GLOBAL|global) `?([\w.]+)`? was not an allowed", error):
        what = f"holds a Python object besides weights ({found[1]}), and such objects can run code"
        remedy = "save its weights alone: torch.save(content['state_dict'], FILE)"
        return f"{path}: {what}; {remedy}"
    if "TorchScript" in error:
        return f"{path}: is a program of TorchScript; name a file of weights alone"
    what = "torn, or not a PyTorch checkpoint of tensors"
    return f"{path}: {what}; write or copy it again, or name another file"
