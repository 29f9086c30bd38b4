"""A long run: memory and open files over 2,000 iterations."""

import os
from pathlib import Path

import pytest
from helpers.entries import call
from helpers.runs import make_data

import train as train_entry
from util.runtime.progress import Progress

ITERATIONS, MORE = 2000, 16e6  # bytes: 11 kB per iteration; a leaked graph is several MB


def now() -> tuple[int, int]:
    """Return resident bytes and open files of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd"))


@pytest.mark.slow
def test_memory_and_open_files_do_not_grow_in_a_long_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, tuple[int, int]] = {}
    step = Progress.step

    def watched(progress: Progress, done: int, *more: object) -> None:
        step(progress, done, *more)
        if done % 250 == 0:
            seen[done] = now()

    monkeypatch.setattr(Progress, "step", watched)
    words = [*make_data(tmp_path), f"Train.save_path={tmp_path}/run", "Train.val_period=999"]
    words += [f"Train.max_iterations={ITERATIONS}", "Train.print_freq=10", "Data.workers=1"]
    assert call(train_entry.train, *words, "Train.epochs=999") == 0
    for done, (size, files) in seen.items():
        print(f"{done}: {size / 1e6:.1f} MB, {files} open files")
    (early, files), (late, files_late) = seen[500], seen[ITERATIONS]
    assert late - early <= MORE
    assert files_late == files
