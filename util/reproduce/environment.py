"""The record of code, data and machine that a result carries, so that results can be compared."""

import hashlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from util import ROOT
from util.config import Config, to_dict
from util.data.lists import FoldList
from util.data.tables import fingerprint
from util.reproduce.compare import config_hash
from util.runtime.distributed import Ranks
from util.runtime.system import cores, processor

PACKAGES = (
    *("torchvision", "timm", "mmcv-full", "mmsegmentation"),
    *("opencv-python", "pillow", "numpy", "pyyaml"),
)
"""Recorded beside Python and torch."""


def record_environment(cfg: Config, ranks: Ranks, lists: Mapping[str, FoldList]) -> dict[str, Any]:
    """Return the record, in types that JSON knows; `lists` are the fold lists in use, by subset.

    `config`: hash of the keys that can change a number (`config_hash`); `lists`: CRC-32 of each
    list; `code`: git commit, and whether a tracked file differs from it (both None without git);
    `packages`: versions; `seeds`; `machine`.
    """
    return {
        "config": config_hash(to_dict(cfg)),
        "lists": {subset: list_crc(fold) for subset, fold in lists.items()},
        "code": _code(),
        "packages": _packages(),
        "seeds": {
            "train": cfg.Train.seed,
            "base": cfg.Base.seed,
            "val": cfg.Eval.val_seed,
            "test": list(cfg.Eval.seeds),
        },
        "machine": _machine(ranks),
    }


def list_crc(fold: FoldList) -> int:
    """Return the CRC-32 of a fold list: its images and the supports of each class, in order."""
    supports = (f"{c} {name}" for c, images in fold.by_class.items() for name in images)
    return fingerprint([*fold.images, *supports])


def file_hash(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_source() -> str:
    """Return command, git commit and uncommitted changes of this process's code, as text."""
    code = _code()
    changes = _git("diff", "HEAD") if code["dirty"] else ""
    lines = [
        f"time: {datetime.now().isoformat(timespec='seconds')}",
        f"command: {shlex.join([sys.executable, *sys.argv])}",
        f"commit: {code['commit'] or 'unknown, this is no git repository'}",
        *([f"changes since that commit:\n{changes}"] if changes else []),
    ]
    return "\n".join(lines) + "\n\n"


def _git(*words: str) -> str | None:
    command = ["git", "-C", str(ROOT), *words]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        return None


def _code() -> dict[str, Any]:
    commit, changed = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "-uno")
    dirty = None if changed is None else bool(changed)
    return {"commit": commit and commit.strip(), "dirty": dirty}


def _packages() -> dict[str, str | None]:
    def version(name: str) -> str | None:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    packages = {"python": platform.python_version(), "torch": str(torch.__version__)}  # with build
    return packages | {name: version(name) for name in PACKAGES}


def _machine(ranks: Ranks) -> dict[str, Any]:
    gpu = ranks.device.type == "cuda"
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(ranks.device) if gpu else None,
        "cuda": torch.version.cuda if gpu else None,
        "ranks": ranks.world,
    }
