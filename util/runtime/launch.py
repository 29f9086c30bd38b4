"""Starts a script on several processes: torchrun, with one line and one status at the end.

    python -m util.runtime.launch --nproc-per-node 4 train.py --config FILE --gpus 4
    python -m util.runtime.launch --nnodes 2 --rdzv-backend c10d --rdzv-endpoint node0:29500 ...

The options before the script are torchrun's (docs/cluster.md); without `--nnodes` it is a run of
this machine alone. train.sh and test.sh come through here.

A first SIGINT or SIGTERM, and every SIGUSR1, is passed to the ranks as SIGUSR1: they end their
iteration together, save and leave with status 0, which is then the launcher's. A second SIGINT or
SIGTERM kills them. Wrong input that a rank refuses with status 2 gives status 2, any other end 1
and a line that names the rank.
"""

import logging
import os
import shlex
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.run import get_args_parser, run

from util.runtime.cli import main
from util.runtime.distributed import LOST
from util.runtime.errors import RunStopped, UserError
from util.runtime.stop import ASK, STOP_SIGNALS, SignalDebouncer


class _Signals:
    """Passes requests to stop on to the ranks, which are this process's children.

    Attributes:
        came: the last request; 0: none.
    """

    def __init__(self) -> None:
        self.came, self._persons = 0, SignalDebouncer()
        for number in (*STOP_SIGNALS, ASK):
            signal.signal(number, self)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        ranks = _children()
        if not ranks or number in STOP_SIGNALS and self._persons.insist():
            for pid in ranks:  # each leads a session, with its workers
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            os._exit(128 + number)
        self.came = number
        for pid in ranks:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, ASK)


def _children() -> list[int]:
    pid = os.getpid()
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def launch() -> None:
    """Runs the command line.

    Raises:
        UserError: a wrong option.
        RunStopped: a rank failed, or the machines did not come together.
    """
    parser = get_args_parser()
    parser.error = _refuse
    args = parser.parse_args(sys.argv[1:])
    args.standalone |= args.nnodes == "1:1" and not args.rdzv_endpoint
    args.signals_to_handle = "SIGHUP,SIGQUIT"
    script = sys.argv.index(args.training_script)
    os.environ["AMFORMER_LAUNCH"] = (
        f"python -m util.runtime.launch {shlex.join(sys.argv[1:script])}"
    )
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does, after a warning
    # Ranks that are started again must not meet at the addresses of those that are gone.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    for name in ("torch.distributed.elastic", "torch.distributed.run"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    asked = _Signals()
    try:
        run(args)
    except ChildFailedError as error:
        if asked.came:
            raise SystemExit(128 + asked.came) from None
        _end(error.failures)
    except (RendezvousError, DistError) as error:
        raise RunStopped(
            f"the machines did not come together at {args.rdzv_endpoint} "
            f"({' '.join(str(error).split())}); see docs/cluster.md"
        ) from None


def _refuse(message: str) -> NoReturn:
    raise UserError(
        f"command line: {message}; python -m util.runtime.launch --help lists what there is"
    )


def _end(failures: dict[int, ProcessFailure]) -> NoReturn:
    """Names the rank that failed first, of those that did not fail because another had."""
    begin = min(failure.timestamp for failure in failures.values())
    causes = {
        rank: failure
        for rank, failure in failures.items()
        # What comes much later is killed by torchrun itself, as it did not end when asked.
        if failure.exitcode != LOST and failure.timestamp < begin + 10
    }
    if not causes:
        raise RunStopped("a rank on another machine has failed; its launcher there says which")
    rank, failure = min(causes.items(), key=lambda found: found[1].timestamp)
    if failure.exitcode == 2:  # it has said why
        raise SystemExit(2)
    how = f"ended with status {failure.exitcode}"
    if failure.exitcode < 0:
        how = f"was killed by {signal.Signals(-failure.exitcode).name}"
    raise RunStopped(
        f"rank {rank} on {socket.gethostname()} (pid {failure.pid}) {how}, and the others with it; "
        "Train.resume=auto goes on from the last checkpoint"
    )


if __name__ == "__main__":
    main(launch)
