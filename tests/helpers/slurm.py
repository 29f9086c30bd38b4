"""A cluster of Slurm on this machine: two nodes, with four GPUs that are only names."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

DAEMONS = ("munged", "slurmctld", "slurmd")
WHERE = f"{os.environ['PATH']}:/usr/sbin"
NODES = ("127.0.0.1", "127.0.0.2")  # names that every machine can look up

CONFIG = """
ClusterName=amformer
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=5,bf_interval=5
KillWait=60
GresTypes=gpu
NodeName={nodes[0]} Port={ports[1]} CPUs=32 Gres=gpu:4
NodeName={nodes[1]} Port={ports[2]} CPUs=32 Gres=gpu:4
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """Start munge and Slurm; yield what the environment of Slurm's commands needs.

    Nothing outside a temporary folder is touched, and all daemons are gone after it.
    """
    if missing := [name for name in DAEMONS if not shutil.which(name, path=WHERE)]:
        remedy = "apt-get install slurm-wlm munge"
        pytest.skip(f"needs Slurm ({', '.join(missing)} missing): {remedy}")
    folder = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))  # a socket's path is short
    daemons: list[subprocess.Popen] = []
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": WHERE}

    def start(*words: str) -> None:
        with open(folder / "daemons.log", "ab") as log:
            daemons.append(
                subprocess.Popen(
                    words, env=environment, stdout=log, stderr=log, start_new_session=True
                )
            )

    old = signal.signal(signal.SIGTERM, signal.default_int_handler)  # pytest then cleans up
    try:
        _write_files(folder)
        munge = folder / "munge"
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log",
                 "seed-file": "seed"}  # fmt: skip
        start("munged", "--foreground", *(f"--{k}={munge / v}" for k, v in files.items()))
        wait(lambda: (munge / "socket").exists(), folder)
        start("slurmctld", "-D")
        for node in NODES:
            start("slurmd", "-D", "-N", node)
        words = ["sinfo", "--noheader", "--Node", "--format=%T"]
        wait(lambda: said(words, environment).split() == ["idle"] * len(NODES), folder)
        yield environment
    finally:
        end = time.monotonic() + 90
        while said(["squeue", "--noheader"], environment) and time.monotonic() < end:
            said(["scancel", "--me"], environment)
            time.sleep(1)
        signal.signal(signal.SIGTERM, old)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def _write_files(folder: Path) -> None:
    folder.chmod(0o755)
    (folder / "munge").mkdir(mode=0o711)
    (folder / "state").mkdir()
    (folder / "munge/key").write_bytes(os.urandom(128))
    (folder / "munge/key").chmod(0o600)
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    host, user = socket.gethostname(), getpass.getuser()
    text = CONFIG.format(host=host, user=user, folder=folder, ports=ports, nodes=NODES)
    (folder / "slurm.conf").write_text(text)
    for number in range(4):
        (folder / f"gpu{number}").touch()
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-3]\n")


def said(words: list[str], environment: dict[str, str]) -> str:
    """Return what a command prints."""
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
    return done.stdout


def wait(done, folder: Path, seconds: float = 120) -> None:
    """Wait until `done()` is true; show the logs of the daemons if it does not happen."""
    end = time.monotonic() + seconds
    while not done():
        log = folder / "daemons.log"
        assert time.monotonic() < end, log.read_text()[-5000:] if log.exists() else "no log"
        time.sleep(0.2)
