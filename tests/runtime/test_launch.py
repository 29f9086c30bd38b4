"""Several processes, on one machine or two: they stop and fail together, with one message."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.runs import CONFIG, ROOT, make_data, same

from util.runtime.stop import APART

pytestmark = pytest.mark.slow  # minutes in all

# A run without a model: it counts until it gets a stop request.
WORK = """
import os, sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from util.runtime import distributed
from util.runtime.cli import main
from util.runtime.stop import Stop

def work():
    fault, folder = sys.argv[1], Path(sys.argv[2])
    ranks = distributed.init(0)
    stop = Stop(ranks.is_main)
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if fault == "wrong":
        distributed.check_gpus(640)
    if fault == "wrong on the main rank":
        with distributed.main_first(ranks):
            distributed.check_gpus(640)
    if fault == "once" and attempt == 0 and ranks.rank == 1:
        os.kill(os.getpid(), 9)
    with stop:
        for done in range(1 if fault in ("once", "end") else 10**6):
            (folder / str(ranks.rank)).write_text(str(os.getpid()))
            time.sleep(0.02)
            if distributed.any_rank([stop.requested], ranks)[0] and fault != "deaf":
                break
    who = f"rank {{ranks.rank}} of {{ranks.world}}"
    # One write, so that the lines of two ranks cannot mix.
    sys.stdout.write(f"{{who}}, attempt {{attempt}}, ended at {{done}}\\n")
    distributed.close()

main(work)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "work.py"
    path.write_text(WORK.format(root=str(ROOT)))
    return path


def launch(
    script: Path, fault: str, *options: str, before: tuple[str, ...] = (), **environment: str
) -> subprocess.Popen:
    words = [sys.executable, "-m", "util.runtime.launch", *(options or ("--nproc-per-node", "2"))]
    return subprocess.Popen(
        [*before, *words, str(script), fault, str(script.parent)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def pids(folder: Path, world: int = 2) -> list[int]:
    """The process ids of the ranks, once all of them are working."""
    end = time.monotonic() + 600
    while True:
        found = [(folder / str(rank)) for rank in range(world)]
        if all(path.exists() and path.read_text() for path in found):
            return [int(path.read_text()) for path in found]
        assert time.monotonic() < end
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("fault", ["wrong", "wrong on the main rank"])
def test_wrong_input_to_all_ranks_is_one_line_and_status_2(script: Path, fault: str) -> None:
    out, err = (process := launch(script, fault)).communicate(timeout=300)
    assert process.returncode == 2, err
    assert err.count("\n") == 1 and err.startswith("error: GPUS 640")


def test_wrong_launcher_option_is_one_line_and_status_2() -> None:
    words = [sys.executable, "-m", "util.runtime.launch", "--nproc-per-nod=2", "--nope", "train.py"]
    got = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert got.returncode == 2 and got.stderr.count("\n") == 1, got.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_to_the_launcher_stops_all_ranks_at_the_same_iteration(
    number: signal.Signals, script: Path
) -> None:
    process = launch(script, "none")
    pids(script.parent)
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    ends = [line.rpartition(" ")[2] for line in out.splitlines()]
    assert len(ends) == 2 and len(set(ends)) == 1


def test_second_signal_to_the_launcher_kills_the_ranks(script: Path) -> None:
    process = launch(script, "deaf")
    ranks = pids(script.parent)
    process.send_signal(signal.SIGTERM)
    time.sleep(APART + 0.1)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert not any(map(is_running, ranks))


def test_killed_rank_is_named_and_ends_the_other_ranks(script: Path) -> None:
    process = launch(script, "none")
    ranks = pids(script.parent)
    begin = time.monotonic()
    os.kill(ranks[1], signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1 and time.monotonic() - begin < 60
    assert (
        f"(pid {ranks[1]}) was killed by SIGKILL, and the others with it; Train.resume=auto" in err
    )
    assert "rank 1 on " in err and "Traceback" not in err
    assert not any(map(is_running, ranks))


def test_ranks_stop_when_their_launcher_is_killed(script: Path) -> None:
    process = launch(script, "none")
    ranks = pids(script.parent)
    process.kill()
    process.communicate(timeout=300)
    end = time.monotonic() + 60
    while any(map(is_running, ranks)):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_failed_ranks_restart_as_often_as_max_restarts_allows(script: Path) -> None:
    process = launch(script, "once", "--nproc-per-node", "2", "--max-restarts", "1")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert sorted(out.splitlines()) == [f"rank {r} of 2, attempt 1, ended at 0" for r in (0, 1)]


def test_training_after_a_killed_rank_equals_an_undisturbed_run(tmp_path: Path) -> None:
    """Restarted ranks resume from the last checkpoint; so does a new launch."""
    words = [*make_data(tmp_path / "data"), "Train.batch_size=2", "Train.max_iterations=5"]

    def train(folder: Path, *more: str, restarts: int = 0) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "util.runtime.launch", "--nproc-per-node=2",
             f"--max-restarts={restarts}", "train.py", "--config", str(CONFIG), "--gpus", "0",
             *words, f"Train.save_path={folder}", *more],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def killed(folder: Path, *more: str, restarts: int = 0) -> tuple[int, str]:
        process = train(folder, "Train.save_minutes=1e-9", *more, restarts=restarts)
        while not (folder / "last.previous.pth").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        children = f"/proc/{process.pid}/task/{process.pid}/children"
        os.kill(int(Path(children).read_text().split()[1]), signal.SIGKILL)
        out, err = process.communicate(timeout=900)
        return process.returncode, out + err

    whole, again, anew = (tmp_path / name for name in ("whole", "again", "anew"))
    undisturbed = train(whole)
    assert undisturbed.communicate(timeout=900) and undisturbed.returncode == 0
    status, said = killed(again, restarts=1)
    assert status == 0 and f"resumed from {again}/last" in said, said
    same(again / "last.pth", whole / "last.pth")
    status, said = killed(anew)
    assert status == 1 and "rank 1 on " in said and "was killed by SIGKILL" in said, said
    resumed = train(anew, "Train.resume=auto")
    assert resumed.communicate(timeout=900) and resumed.returncode == 0
    same(anew / "last.pth", whole / "last.pth")


@pytest.fixture
def hosts() -> Iterator[list[tuple[str, ...]]]:
    """Two network namespaces, 10.77.0.1 and 10.77.0.2: the first words of a command on each."""
    names = [f"amformer{os.getpid()}{side}" for side in "ab"]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "wire", "netns", names[0], "type", "veth",
           "peer", "name", "wire", "netns", names[1])  # fmt: skip
        for number, name in enumerate(names, 1):
            ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", "wire")
            ip("-n", name, "link", "set", "wire", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield [("ip", "netns", "exec", name) for name in names]
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces are not permitted here: {error}")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def on_two_hosts(
    hosts: list[tuple[str, ...]], script: Path, fault: str, *more: str
) -> list[subprocess.Popen]:
    """The launchers of a run with two ranks on each of two hosts, as docs/cluster.md shows."""
    return [
        launch(
            script, fault, "--nproc-per-node=2", "--nnodes=2", "--rdzv-backend=c10d",
            "--rdzv-endpoint=10.77.0.1:29511", "--rdzv-id=test",
            f"--rdzv-conf=is_host={'true' if number == 0 else 'false'}",
            f"--local-addr=10.77.0.{number + 1}", *more,
            before=host, GLOO_SOCKET_IFNAME="wire",
        )
        for number, host in enumerate(hosts)
    ]  # fmt: skip


def test_two_hosts_stop_together_at_the_same_iteration(
    hosts: list[tuple[str, ...]], script: Path
) -> None:
    launchers = on_two_hosts(hosts, script, "none")
    pids(script.parent, 4)
    launchers[1].send_signal(signal.SIGINT)
    said = [launcher.communicate(timeout=300) for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], said
    lines = sorted(line for out, _ in said for line in out.splitlines())
    assert [line[: len("rank 0 of 4")] for line in lines] == [f"rank {r} of 4" for r in range(4)]
    assert len({line.rpartition(" ")[2] for line in lines}) == 1


def test_killed_rank_on_one_host_ends_the_ranks_of_the_other_host(
    hosts: list[tuple[str, ...]], script: Path
) -> None:
    launchers = on_two_hosts(hosts, script, "none")
    ranks = pids(script.parent, 4)
    begin = time.monotonic()
    os.kill(ranks[3], signal.SIGKILL)
    said = [launcher.communicate(timeout=300)[1] for launcher in launchers]
    assert time.monotonic() - begin < 60
    assert [launcher.returncode for launcher in launchers] == [1, 1], said
    assert "rank 3 on " in "".join(said) and "was killed by SIGKILL" in "".join(said)
    assert not any(map(is_running, ranks))
