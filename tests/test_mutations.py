"""Hand-made faults in the numeric core: each is still where it is put, and some test notices it."""

import shutil
from pathlib import Path

import mutations
import pytest


@pytest.mark.parametrize("fault", mutations.FAULTS, ids=lambda fault: fault.name)
def test_every_fault_has_its_place_in_the_code(fault: mutations.Fault, tmp_path: Path) -> None:
    path = tmp_path / fault.file
    path.parent.mkdir(parents=True)
    shutil.copy(mutations.ROOT / fault.file, path)
    mutations.inject(fault, tmp_path)
    compile(path.read_text(encoding="utf-8"), fault.file, "exec")
    assert (mutations.ROOT / "tests" / fault.test.split("::")[0].split()[0]).is_file()


@pytest.mark.slow
def test_every_fault_is_noticed() -> None:
    assert mutations.survivors(mutations.FAULTS) == []
    assert mutations.untouched(mutations.FAULTS) == []
