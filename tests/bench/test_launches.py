"""Launches on an accelerator, counted without one, stay below fixed limits."""

import sys

import pytest
import torch

from util.bench import measure
from util.bench.__main__ import CONFIG, bench
from util.bench.counting import launches
from util.config import load_config
from util.runtime.errors import UserError

SIZE = 129  # the counts are the same at 473 px
# (work, system) -> launches at batch 8, and values read back: the check of the loss.
LIMITS = {
    ("cold", "amformer"): (600, 0),
    ("warm", "amformer"): (400, 0),
    ("G", "amformer"): (1900, 1),
    ("D", "amformer"): (1200, 1),
    ("G", "hdmnet"): (1800, 1),
    ("G", "bam"): (600, 1),
    ("G", "pfenet"): (900, 1),
}
CASES = [pytest.param(*case, marks=[pytest.mark.slow] * (case[1] != "amformer")) for case in LIMITS]


def counted(work: str, system: str, batch: int, shot: int = 1) -> tuple[int, int]:
    words = [f"Data.size={SIZE}", f"Data.shot={shot}", f"Method.name={system}"]
    cfg = load_config(CONFIG, words)
    return launches(measure.prepare(work, cfg, torch.device("cpu"), batch=batch))


@pytest.mark.parametrize(("work", "system"), CASES)
def test_launches_and_reads_stay_below_their_limits(work: str, system: str) -> None:
    kernels, reads = counted(work, system, 8)
    limit = LIMITS[work, system]
    assert 0.9 * limit[0] <= kernels <= limit[0] and reads == limit[1]


def test_more_supports_are_no_more_launches_in_training() -> None:
    assert counted("G", "amformer", 1, 5)[0] <= LIMITS["G", "amformer"][0]


def test_table_of_launches_goes_without_other_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    words, lines = ["--launches", "--size", str(SIZE), "--shot", "1", "--work", "warm"], []
    monkeypatch.setattr(sys, "argv", ["bench", *words])
    monkeypatch.setattr(measure.log, "info", lambda form, *values: lines.append(form % values))
    bench()
    cells = [cell.strip() for cell in lines[-1].split("|")[1:-1]]
    kernels, reads = counted("warm", "amformer", 1)
    assert cells[:5] == ["warm", "1", str(SIZE), f"{kernels:,}", str(reads)]
    assert len(cells) == len(lines[0].split("|")[1:-1]) == 7
    monkeypatch.setattr(sys, "argv", ["bench", *words, "--count"])
    with pytest.raises(UserError, match="leave out --count, --plain and --gpus"):
        bench()
