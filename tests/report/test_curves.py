"""Curves: no point twice, no torn record, charts that depend on their data only."""

from collections.abc import Callable, Iterable
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest

from util.report.charts import bar_chart, line_chart, thin
from util.report.runs import read_curves
from util.train.curves import Curves


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Path]]:
    """Return a function that writes a point per step, a second apart, and returns all files."""
    now = [100.0]
    monkeypatch.setattr("util.train.curves.time.time", lambda: now[0])

    def write(start: int, tag: str, plus: int, *parts: Iterable[int]) -> list[Path]:
        curves = Curves(tmp_path, start, pytest.fail)
        curves.scalars({tag: float("nan")}, start + 1)
        for index, steps in enumerate(parts):
            if index:
                curves.reopen()
            for step in steps:
                now[0] += 1
                curves.scalars({tag: plus + step}, step)
        curves.close()
        return sorted(tmp_path.glob("events*"))

    return write


def test_resume_discards_later_points_and_reading_stops_at_a_torn_record(written) -> None:
    written(0, "x", 10, (1, 2, 3, 4))
    files = written(2, "x", 20, (3, 4, 5))
    curves, seconds = read_curves(files)
    assert curves == {"x": [(1, 11), (2, 12), (3, 23), (4, 24), (5, 25)]}
    assert read_curves(files[::-1])[0] == curves  # a clock that was set back names the last first
    assert seconds == 3 + 2
    whole = files[1].read_bytes()
    for torn in (whole[:-9], whole[:-1], whole[:-60] + bytes(60), whole[:-6] + bytes(6)):
        files[1].write_bytes(torn)
        points = read_curves(files)[0]["x"]
        assert points[:3] == [(1, 11), (2, 12), (3, 23)] and (5, 25) not in points


def test_file_started_after_a_full_disk_discards_no_points(written) -> None:
    files = written(2, "x", 0, (3, 4, 5), (6, 7))
    assert len(files) == 2
    assert read_curves(files)[0] == {"x": [(step, step) for step in (3, 4, 5, 6, 7)]}


def test_new_run_in_an_old_folder_discards_all_old_points(written) -> None:
    written(0, "loss_d", 0, range(1, 90))
    files = written(0, "x", 0, (1, 2, 3))
    assert read_curves(files) == ({"x": [(1, 1), (2, 2), (3, 3)]}, 2)


def test_long_lines_show_means_of_equally_many_neighbors() -> None:
    points = [(float(x), 2.0 * x) for x in range(1000)]
    few = thin(points)
    assert len(few) == 250 and few[0] == (1.5, 3.0) and sum(y for _, y in few) == 999 * 250
    assert line_chart("t", {"a": points}).svg.count("<title>") == 250
    assert thin(points[:300]) == points[:300]


HOSTILE = '$x_{$ --></svg><script>"&'


def test_chart_shows_hostile_names_as_plain_text() -> None:
    lines = line_chart("t", {HOSTILE: [(5, 1.0)], "_b": [(7, 2.0)]}, HOSTILE)
    bars = bar_chart(HOSTILE, {HOSTILE: {"final": (50.0, 0.0)}, "_b": {"final": (1.0, 2.0)}})
    for chart in (lines, bars):
        root = ElementTree.fromstring(f'<x xmlns:xlink="x">{chart.svg}</x>')
        assert HOSTILE in [text.strip() for text in root.itertext()]
        assert not list(root.iter("script")) and "nan" not in chart.svg
    assert list(lines.legend) == [HOSTILE, "_b"]
    assert "iteration 5: 1<" in lines.svg and "_b, final: 1.00 ± 2.0<" in bars.svg


def test_chart_depends_on_its_data_only(tmp_path: Path) -> None:
    lines = {"a": [(1, 0.5), (20, 0.25)]}
    once = line_chart("t", lines)
    with matplotlib.rc_context({"svg.hashsalt": None, "font.size": 30, "axes.grid": True}):
        assert line_chart("t", lines) == once
        assert matplotlib.rcParams["font.size"] == 30
    assert "font-family: 'DejaVu Sans'" in once.svg  # text, not outlines
