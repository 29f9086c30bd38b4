"""Mutation tests: plant each fault into a copy of the tree; a test must then fail.

    python tests/helpers/mutations.py            # all faults, some minutes on two cores
    python tests/helpers/mutations.py schedule   # the faults with this word in their name

The faults are in `mutants/`. Prints one line per fault. The exit status is 2 if a fault goes
unnoticed. `pytest -m slow tests/system/test_mutations.py` does the same.
"""

import contextlib
import io
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":  # as a script it finds its own folder only
    sys.path[:0] = map(str, Path(__file__).resolve().parents[1:3])

from helpers import ROOT
from helpers.mutants import FAULTS, Fault


def tree(folder: Path) -> None:
    """Copy the files that git tracks, including the tests, to a folder."""
    names = subprocess.run(
        [
            "git",
            "-C",
            str(ROOT),
            "ls-files",
            "-z",
            "model",
            "util",
            "tests",
            "config",
            "*.py",
            "*.toml",
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, names.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / "lists").symlink_to(ROOT / "lists")


def inject(fault: Fault, folder: Path) -> None:
    """Plant the fault in the tree.

    Raises:
        ValueError: the file does not hold its text exactly once.
    """
    path = folder / fault.file
    text = path.read_text(encoding="utf-8")
    if (count := text.count(fault.old)) != 1:
        raise ValueError(
            f"{fault.file}: {fault.old!r} occurs {count} times; update tests/helpers/mutants"
        )
    path.write_text(text.replace(fault.old, fault.new), encoding="utf-8")


def fails(test: str, folder: Path) -> bool:
    """Check whether a test fails in a tree; in a fork, so libraries are imported only once."""
    child = multiprocessing.get_context("fork").Process(target=_run, args=(test, folder))
    child.start()
    child.join()
    if child.exitcode not in (0, 1):  # of pytest: 1 means that tests failed
        raise ValueError(f"{test}: pytest ended with status {child.exitcode}; does it exist?")
    return child.exitcode == 1


def _run(test: str, folder: Path) -> None:
    import pytest

    os.chdir(folder)
    sys.path[:] = [p for p in sys.path if Path(p).resolve() not in (ROOT, ROOT / "tests")]
    name, *options = test.split()
    words = [f"tests/{name}", *options, "-x", "-q", "-m", "", "-p", "no:cacheprovider"]
    with contextlib.redirect_stdout(io.StringIO()):
        status = pytest.main(["--rootdir", str(folder), "-o", "addopts=", *words])
    os._exit(int(status))


def survivors(faults: list[Fault]) -> list[Fault]:
    """Return the faults that no test notices; print the result of each."""
    import mmcv.cnn  # noqa: F401  slow to import and the same in every tree
    import mmseg.ops  # noqa: F401
    import timm  # noqa: F401
    import torchvision  # noqa: F401

    alive = []
    with tempfile.TemporaryDirectory() as scratch:
        for index, fault in enumerate(faults):
            folder, began = Path(scratch, str(index)), time.monotonic()
            tree(folder)
            inject(fault, folder)
            caught = fails(fault.test, folder)
            alive += [] if caught else [fault]
            shutil.rmtree(folder)
            verdict = "caught" if caught else "SURVIVES"
            print(f"{verdict}  {time.monotonic() - began:5.1f} s  {fault.name}", flush=True)
    return alive


def untouched(faults: list[Fault]) -> list[str]:
    """Return the tests that fail without any fault: they prove nothing."""
    with tempfile.TemporaryDirectory() as scratch:
        tree(Path(scratch))
        tests = dict.fromkeys(fault.test for fault in faults)
        return [test for test in tests if fails(test, Path(scratch))]


def _main() -> None:
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    faults = [fault for fault in FAULTS if word in fault.name]
    if not faults:
        sys.exit(f"error: no fault has {word!r} in its name; tests/helpers/mutants lists them")
    alive = survivors(faults)
    broken = untouched(faults)
    print(f"{len(faults) - len(alive)} of {len(faults)} faults are caught")
    for test in broken:
        print(f"fails without a fault: {test}")
    sys.exit(2 if alive or broken else 0)


if __name__ == "__main__":
    _main()
