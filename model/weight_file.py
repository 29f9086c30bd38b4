"""Read files of weights without running code in them, and say what is wrong with one."""

import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from model.errors import UserError

_FOREIGN = {
    b"<": "is a web page: the download wants a login, or the link has changed",
    b"version https://git-lfs": "is a pointer of Git LFS; fetch the file itself with git lfs pull",
    b"\x89HDF": "is a file of HDF5 (Keras), not of PyTorch",
}
"""What a file that is none of weights may begin with -> what it is."""


def read_weights(path: Path) -> Any:
    """Return the content of a file of PyTorch or safetensors, on the CPU.

    The checksums of an archive are compared. Raises `UserError` with the one reason: the file is
    empty, cut off, damaged, something else, or holds Python objects that could run code.
    """
    begin = b""
    try:
        if path.is_dir():
            raise UserError(f"{path}: is a folder; name a file in it")
        with open(path, "rb") as file:
            begin = file.read(64)
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        if zipfile.is_zipfile(path):  # files of PyTorch before 1.6 are no archives
            with zipfile.ZipFile(path) as records:
                if damaged := records.testzip():
                    raise zipfile.BadZipFile(damaged)
        return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except OSError as error:
        if isinstance(error, PermissionError):
            what = f"cannot be read ({error.strerror})"
            raise UserError(f"{path}: {what}; check its permissions") from None
        raise UserError(_reason(path, begin, str(error))) from None
    except Exception as error:  # a torn file can make the reader fail anywhere
        raise UserError(_reason(path, begin, str(error))) from None


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
