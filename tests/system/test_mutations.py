"""Hand-made faults in the numeric core: each still fits the code, and a test notices it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import mutations
from helpers.mutants import FAULTS, Fault


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_fault_still_fits_the_code_and_names_a_test(fault: Fault, tmp_path: Path) -> None:
    path = tmp_path / fault.file
    path.parent.mkdir(parents=True)
    shutil.copy(mutations.ROOT / fault.file, path)
    mutations.inject(fault, tmp_path)
    text = path.read_text(encoding="utf-8")
    yaml.safe_load(text) if path.suffix == ".yaml" else compile(text, fault.file, "exec")
    file, _, test = fault.test.partition("::")
    tests = (mutations.ROOT / "tests" / file.split()[0]).read_text(encoding="utf-8")
    assert not test or f"def {test.split('[')[0].split()[0]}(" in tests


def test_script_starts_and_refuses_a_word_that_no_fault_has() -> None:
    words = [sys.executable, "tests/helpers/mutations.py", "no such fault"]
    got = subprocess.run(words, cwd=mutations.ROOT, capture_output=True, text=True)
    assert got.returncode == 1 and got.stderr.startswith("error: no fault has 'no such fault'")


@pytest.mark.slow
def test_every_planted_fault_fails_a_test() -> None:
    words = [sys.executable, "tests/helpers/mutations.py"]
    got = subprocess.run(words, cwd=mutations.ROOT, capture_output=True, text=True)
    assert got.returncode == 0, got.stdout + got.stderr
    assert got.stdout.count("caught") == len(FAULTS) + 1
