"""The tools run without what only Linux has: stand-ins take it away, `sitecustomize.py` each."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.downloads import make_voc, pack, run, snapshot, write_jpeg
from helpers.runs import CONFIG, make_data
from helpers.trials import lay

from util.runtime import parallel, system
from util.runtime.errors import UserError

STANDINS = ROOT / "tests/helpers/standins"
SYSTEMS = ["macos", "windows"]


def on(standin: Path | str, *words: object, **environment: str) -> subprocess.CompletedProcess:
    """Run a command of the project with a stand-in: one of ours, or a folder."""
    place = os.pathsep.join([str(STANDINS / standin), str(ROOT)])
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": place, **environment},
    )  # fmt: skip


def one_line(done: subprocess.CompletedProcess, *words: str) -> None:
    assert done.returncode == 2, done.stderr
    [line] = [text for text in done.stderr.splitlines() if not text.startswith("warning: ")]
    assert line.startswith("error: ") and all(word in line for word in words), line


@pytest.fixture
def photographs(tmp_path: Path) -> list[object]:
    """The words of `prepare custom` for 40 photographs, which several workers share."""
    images = [{"id": i, "file_name": f"p{i}.jpg", "width": 12, "height": 10} for i in range(40)]
    square = [[1, 1, 8, 1, 8, 8, 1, 8]]
    annotations = [
        {"id": i, "image_id": i, "category_id": 1, "segmentation": square} for i in range(40)
    ]
    for image in images:
        write_jpeg(tmp_path / "photos" / image["file_name"])
    content = {"images": images, "annotations": annotations}
    content["categories"] = [{"id": 1, "name": "cup"}]
    (tmp_path / "labels.json").write_text(json.dumps(content))
    words = ["--images", tmp_path / "photos", "--labels", tmp_path / "labels.json", "--workers", 3]
    return ["custom", *words, "--out"]


@pytest.mark.parametrize("name", SYSTEMS)
def test_data_is_prepared_to_the_same_bytes_on_every_system(
    name: str, photographs: list[object], tmp_path: Path
) -> None:
    voc, sbd = make_voc(tmp_path, images=60)
    tgz = pack(tmp_path / "benchmark.tgz", sbd, "benchmark_RELEASE")
    words = ["voc", "--voc", voc, "--sbd", tgz, "--workers", 3, "--out"]
    for number, command in enumerate((photographs, words)):
        here, there = tmp_path / f"here{number}", tmp_path / f"there{number}"
        assert run(*command, here).status == 0
        done = on(name, "-m", "util.data.prepare", *command, there)
        assert done.returncode == 0, done.stderr
        assert snapshot(there) == snapshot(here) and len(snapshot(here)) > 60


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_run_with_loader_workers_trains_and_records_on_every_system(
    name: str, tmp_path: Path
) -> None:
    words = [*make_data(tmp_path), f"Train.save_path={tmp_path}/run", "Data.workers=1"]
    more = ["--config", CONFIG, "--gpus", 0, *words, "Train.max_iterations=2"]
    done = on(name, "train.py", *more)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/last.pth").is_file() and "Traceback" not in done.stderr


def test_several_ranks_are_refused_in_one_line_elsewhere_than_on_linux() -> None:
    words = ["-m", "util.runtime.launch", "--nproc-per-node", 2, "train.py", "--gpus", 0]
    one_line(on("macos", *words), "several processes need Linux", "use one: GPUS 0")


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_linux_is_required_by_name(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    with pytest.raises(UserError, match="^several ranks need Linux, and this is .*; use one$"):
        system.require_linux("several ranks", "use one")
    assert not system.can_fork() and system.cores() >= 1 and system.resident_peak() > 10**6


def test_peak_memory_and_processor_are_known_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = system.resident_peak()
    monkeypatch.setattr(system, "_proc", lambda _: "")
    assert 0.5 * usual < system.resident_peak() < 2 * usual + 10**9
    assert isinstance(system.processor(), str)
    monkeypatch.setattr(system, "resource", None)
    assert system.resident_peak() == 0


@pytest.mark.parametrize("workers", [2, 5])
def test_threads_give_results_and_the_first_error_in_the_order_of_the_items(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "can_fork", lambda: False)

    def reject(number: int) -> int:
        if number in (70, 150):
            raise UserError(f"item {number}")
        return number

    assert list(parallel.on_processes(abs, range(-200, 0), workers)) == list(range(200, 0, -1))
    with pytest.raises(UserError, match="^item 70$"):
        list(parallel.on_processes(reject, range(200), workers))


LINUX_ONLY = r"sched_getaffinity|/proc|fcntl|SIGUSR|SIGCHLD|get_context|sys\.platform|os\.name\b"


def test_only_util_runtime_asks_which_system_this_is() -> None:
    sources = [*ROOT.glob("*.py"), *(ROOT / "util").rglob("*.py"), *(ROOT / "model").rglob("*.py")]
    found = {
        str(path.relative_to(ROOT))
        for path in sources
        if re.search(LINUX_ONLY, path.read_text(encoding="utf-8"))
    }
    assert found and all(name.startswith("util/runtime/") for name in found), found


@pytest.mark.parametrize("part", ["without_getaffinity", "without_proc"])
def test_trial_18_prepares_and_trains_as_on_macos(part: str, tmp_path: Path) -> None:
    folder = lay("18_macos", tmp_path / "trial")
    assert on(folder / part, "-m", "util.data.prepare", "--help").returncode == 0
    words = [*make_data(tmp_path), f"Train.save_path={tmp_path}/run"]
    more = ["--config", CONFIG, "--gpus", 0, *words, "Train.max_iterations=2"]
    done = on(folder / part, "train.py", *more)
    assert done.returncode == 0, done.stderr
