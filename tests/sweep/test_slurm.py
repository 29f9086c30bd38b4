"""Slurm, the real thing: a sweep, and the batch file of docs/cluster.md, with drawn data."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from helpers import ROOT
from helpers.runs import make_data, same
from helpers.slurm import cluster, said, wait

pytestmark = pytest.mark.slow  # minutes


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    with cluster() as environment:
        yield {**environment, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, "NET": "lite0"}


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Keys of a run of seven iterations, and those of its stage one and its test."""
    words = make_data(tmp_path_factory.mktemp("data"))
    keys = {key: yaml.safe_load(text) for key, _, text in (word.partition("=") for word in words)}
    keys |= {"Base.max_iterations": 2, "Base.val_images": 2, "Eval.episodes": 20}
    return keys | {"Eval.visualize": 0, "Train.save_minutes": 1e-9}


def sweep_file(folder: Path, overrides: dict[str, object], name: str) -> Path:
    common = {key: value for key, value in overrides.items() if key != "Method.pre_weight"}
    content = {
        "config": "config/demo/demo_split{fold}_lite0.yaml",
        "base_learner": f"{folder}/{name}/base{{fold}}.pth",
        "out": f"{folder}/{name}",
        "folds": [0],
        "seeds": [1, 2],
        "common": common,
        "settings": {"baseline": None, "no_game": {"Train.adversarial": False}},
        "slurm": {"gpus": 0, "cpus": 1, "time": 60},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


class Sweep:
    """A sweep as a process; `output` is a file."""

    def __init__(self, words: list[str], output: Path, environment: dict[str, str]) -> None:
        self.output = output
        with output.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-u", "-m", "util.sweep", *words], cwd=ROOT, env=environment,
                stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def wait_for(self, pattern: Path, what: str) -> Path:
        """Wait until a file exists that the pattern names; return it."""
        end = time.monotonic() + 900
        while not (found := sorted(pattern.glob(what))):
            assert self.process.poll() is None and time.monotonic() < end, self.output.read_text()
            time.sleep(0.1)
        return found[0]

    def finish(self) -> str:
        status = self.process.wait(900)
        assert status == 0, self.output.read_text()
        return self.output.read_text()


def test_sweep_on_slurm_survives_stop_requeue_and_kill_and_gives_the_table_of_one_machine(
    slurm: dict[str, str], overrides: dict[str, object], tmp_path: Path
) -> None:
    here = sweep_file(tmp_path, overrides, "here")
    Sweep([str(here), "--jobs", "2"], tmp_path / "0.txt", slurm).finish()

    words, out = [str(sweep_file(tmp_path, overrides, "there")), "--slurm"], tmp_path / "there"
    first = Sweep(words, tmp_path / "1.txt", slurm)
    first.wait_for(out, "split0/*/*/last.pth")
    first.process.send_signal(signal.SIGINT)
    told = first.finish()
    assert ": stopped\n" in told and "The same command goes on:\n" in told
    assert said(["squeue", "--noheader"], slurm) == ""
    logs = [path.read_text() for path in out.glob("split0/*/*/sweep.log")]
    assert any("stopped at iteration" in text for text in logs)

    second = Sweep(words, tmp_path / "2.txt", slurm)
    run = next(path.parent for path in out.glob("split0/*/*/last.pth"))
    # Submitit's signal comes before the time limit. It acts once the job's Python has started.
    log = run / "sweep.log"
    wait(lambda: log.read_text().count("resumed from") >= 1, tmp_path, 600)
    jobs = dict(line.split()[::-1] for line in queue(slurm))
    subprocess.run(["scancel", "--signal=USR2", jobs[str(run)]], env=slurm, check=True)
    wait(lambda: "requeue" in submitit_logs(out), tmp_path, 300)
    second.process.kill()
    second.process.wait()

    told = Sweep(words, tmp_path / "3.txt", slurm).finish()
    assert "is in the queue already, job " in told and log.read_text().count("resumed from") >= 2
    for name in ("sweep.md", "sweep.csv"):
        assert (out / name).read_text() == (tmp_path / "here" / name).read_text()
    results = sorted(out.glob("split0/*/*/result.json"))
    assert len(results) == 4
    for path in results:
        mine = json.loads((tmp_path / "here" / path.relative_to(out)).read_text())
        assert json.loads(path.read_text())["seeds"] == mine["seeds"]


def test_refusal_of_slurm_is_one_line(
    slurm: dict[str, str], overrides: dict[str, object], tmp_path: Path
) -> None:
    words = [str(sweep_file(tmp_path, overrides, "refused")), "--slurm", "partition=nowhere"]
    done = subprocess.run(
        [sys.executable, "-m", "util.sweep", *words], cwd=ROOT, env=slurm, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: --slurm: ") and "invalid partition" in done.stderr


def queue(environment: dict[str, str]) -> list[str]:
    return said(["squeue", "--noheader", "--format=%i %j"], environment).splitlines()


def submitit_logs(out: Path) -> str:
    return "".join(path.read_text() for path in (out / "slurm").glob("*_log.err")).lower()


def batch_file(folder: Path, name: str, overrides: dict[str, object]) -> Path:
    """Write the batch file of docs/cluster.md for the CPU and drawn data; the rest as it stands."""
    page = (ROOT / "docs/cluster.md").read_text()
    [text] = re.findall(r"^```bash\n(#!/bin/sh\n#SBATCH .*?)^```", page, re.M | re.S)
    keys = {**overrides, "Train.save_path": f"{folder}/{name}", "Train.batch_size": 2}
    keys |= {"Train.max_iterations": 24, "Train.val_period": 3}
    words = " ".join(f"{key}={json.dumps(value)}".replace('"', "") for key, value in keys.items())
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    assert "split0 pascal 4" in text and ":29500" in text
    path = folder / f"{name}.sh"
    path.write_text(
        text.replace("split0 pascal 4", f"split0 demo 0 {words}").replace("29500", port)
    )
    return path


def test_batch_file_of_the_docs_resumes_after_its_signal_and_after_a_requeue(
    slurm: dict[str, str], overrides: dict[str, object], tmp_path: Path
) -> None:
    """The run ends with the same checkpoint, to the bit, as one that was not disturbed."""

    def submit(name: str) -> str:
        words = ["sbatch", f"--output={tmp_path}/{name}.txt", "--parsable"]
        return said([*words, str(batch_file(tmp_path, name, overrides))], slurm).strip()

    def ended(job: str) -> bool:
        return not any(line.startswith(f"{job} ") for line in queue(slurm))

    def wait_for(name: str, text: str, count: int = 1) -> None:
        path = tmp_path / f"{name}.txt"
        wait(lambda: path.exists() and path.read_text().count(text) >= count, tmp_path, 600)

    whole = submit("whole")
    wait(lambda: ended(whole), tmp_path, 900)
    job = submit("again")
    wait_for("again", "\n4/24 ")
    subprocess.run(["scancel", "--batch", "--signal=USR1", job], env=slurm, check=True)
    wait_for("again", "\nresumed from ")  # the file has put the job into the queue again
    done = int(
        re.findall(r"resumed from \S+: (\d+) of 24", (tmp_path / "again.txt").read_text())[0]
    )
    wait_for("again", f"\n{done + 3}/24 ")
    subprocess.run(["scontrol", "requeue", job], env=slurm, check=True)
    wait_for("again", "\nresumed from ", 2)
    wait(lambda: ended(job), tmp_path, 900)
    log = (tmp_path / "again.txt").read_text()
    assert log.count("stopped at iteration") == 2 and "24/24" in log
    same(tmp_path / "again/last.pth", tmp_path / "whole/last.pth")
    assert os.path.exists(tmp_path / "again/best.pth")
