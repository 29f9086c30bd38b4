"""Trials of strangers' files that may lie beside the repository, see `conftest.SAMPLE`."""

import subprocess
from pathlib import Path

import pytest

from helpers import ROOT

TRIALS = ROOT.parent / "shared" / "trials"


def lay(name: str, folder: Path) -> Path:
    """Lay a trial out in a folder, which is returned; skip the test where there are none."""
    if not (TRIALS / name).is_dir():
        pytest.skip(f"needs {TRIALS.name}/{name} in ../shared")
    command = ["sh", str(TRIALS / "lay.sh"), name, str(folder)]
    subprocess.run(command, cwd=ROOT, check=True)
    return folder
