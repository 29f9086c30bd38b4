"""The command that measures a GPU, tried on the CPU."""

import sys
from pathlib import Path

import pytest
import torch

from util.bench import accelerator, against_cpu
from util.bench.accelerator import NEXT_SECTION, PAGE, bench, write_section
from util.runtime.errors import UserError


def test_cpu_equals_itself_in_the_way_of_an_accelerator() -> None:
    assert against_cpu.check(0).endswith(f"CPU, {torch.get_num_threads()} threads")


def test_device_that_computes_something_else_is_not_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = iter([{"final": torch.ones(3)}, {"final": torch.tensor([1, 1, 1.01])}])
    monkeypatch.setattr(against_cpu, "_results", lambda device: next(made))
    with pytest.raises(UserError, match=r"final differs from the CPU's by 1.0e-02"):
        against_cpu.check(0)
    made = iter([{"final": torch.ones(3)}, {"final": torch.full((3,), torch.nan)}])
    with pytest.raises(UserError, match="nothing is measured"):
        against_cpu.check(0)


def test_section_of_a_device_is_added_once_and_then_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Cost\n\n## First\n\ntext\n\n{NEXT_SECTION}\nlast\n")
    for value in ("1", "2"):
        write_section(page, "GPU A", ["| x |", "| --- |", f"| {value} |"], "command")
    write_section(page, "GPU B", ["| 3 |"], "command")
    text = page.read_text()
    assert text.count("## On GPU A\n") == text.count("## On GPU B\n") == 1
    assert "| 1 |" not in text and "| 2 |" in text and "| 3 |" in text
    assert text.startswith("# Cost\n\n## First\n\ntext\n\n## On GPU A")
    assert text.endswith(f"{NEXT_SECTION}\nlast\n")
    page.write_text("# Another page\n")
    with pytest.raises(UserError, match="has no section '## Measure your own machine'"):
        write_section(page, "GPU A", [], "command")
    assert NEXT_SECTION in PAGE.read_text(encoding="utf-8")


def test_options_of_gpus_alone_are_refused_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "--gpus", "0", "--mode", "tf32", "graphs"])
    with pytest.raises(UserError, match="--mode tf32 graphs: is for a GPU"):
        bench()


@pytest.mark.slow  # half a minute, two processes
def test_whole_command_writes_a_row_for_each_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE.read_text(encoding="utf-8"))
    words = ["--gpus", "0", "--size", "129", "--work", "warm", "G", "--mode", "fp32", "tf32"]
    words += ["--repeat", "1", "--write", "--page", str(page)]
    monkeypatch.setattr(sys, "argv", ["bench", *words])
    bench()
    [section] = [s for s in page.read_text().split("\n## ") if s.startswith("On ")]
    rows = [line for line in section.splitlines() if line.startswith("| ")][2:]
    assert [row.split(" | ")[0] for row in rows] == ["| warm", "| G"]
    assert f"python -m util.bench.accelerator {' '.join(words)}\n" in section
    assert accelerator.MODES.keys() == {"fp32", "tf32", "bf16", "compile", "graphs"}
