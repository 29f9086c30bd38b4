"""Start a script on several processes: torchrun, with one line and one exit status at the end.

    python -m util.runtime.launch --nproc-per-node 4 train.py --config FILE --gpus 4
    python -m util.runtime.launch --nnodes 2 --rdzv-backend c10d --rdzv-endpoint node0:29500 ...

The options before the script are torchrun's (docs/cluster.md). Without `--nnodes` the run uses this
machine alone. train.sh and test.sh start several processes through this module.

The first SIGINT or SIGTERM, and every SIGHUP or SIGUSR1, is forwarded to the ranks as SIGUSR1: they
finish their iteration together, save and exit with status 0, and so does the launcher. A second
SIGINT or SIGTERM kills the ranks. If a rank refuses wrong input with status 2, so does the
launcher. Any other failure gives status 1 and a line that names the rank.
"""

import logging
import os
import shlex
import signal
import socket
import sys
from contextlib import suppress
from typing import NoReturn

from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.run import get_args_parser, run

from util.runtime.cli import main
from util.runtime.distributed import LOST
from util.runtime.errors import RunStopped, UserError
from util.runtime.stop import ASK, STOP_SIGNALS, SignalDebouncer, hangup
from util.runtime.system import children, require_linux


class _Signals:
    """Forwards stop requests to the ranks, which are this process's children."""

    def __init__(self) -> None:
        self.last, self._debouncer = 0, SignalDebouncer()  # `last`: the last signal; 0: none
        for number in (*STOP_SIGNALS, *hangup(), ASK):
            signal.signal(number, self)

    def __call__(self, number: int, *_: object) -> None:
        ranks = children(os.getpid())
        if not ranks or number in STOP_SIGNALS and self._debouncer.is_second():
            for pid in ranks:  # each leads a session that includes its workers
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            os._exit(128 + number)
        self.last = number
        for pid in ranks:
            with suppress(ProcessLookupError):  # it has just exited
                os.kill(pid, ASK)


def launch() -> None:
    """Run the command line; raise `RunStopped` if a rank failed or the machines cannot connect."""
    require_linux("several processes", "use one: GPUS 0 (the CPU) or 1")
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]  # torchrun made this parser
    args = parser.parse_args(sys.argv[1:])
    args.standalone |= args.nnodes == "1:1" and not args.rdzv_endpoint
    args.signals_to_handle = "SIGQUIT"
    script = sys.argv.index(args.training_script)
    options = shlex.join(sys.argv[1:script])
    os.environ["AMFORMER_LAUNCH"] = f"python -m util.runtime.launch {options}"
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torchrun's own default, without its warning
    # Restarted ranks must not use the addresses of the ranks that are gone.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    for name in ("torch.distributed.elastic", "torch.distributed.run"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    signals = _Signals()
    try:
        run(args)
    except ChildFailedError as error:
        if signals.last:
            raise SystemExit(128 + signals.last) from None
        _report(error.failures)
    except (RendezvousError, DistError) as error:
        text = f"{args.rdzv_endpoint} ({' '.join(str(error).split())})"
        raise RunStopped(f"the machines could not connect at {text}; see docs/cluster.md") from None


def _refuse(message: str) -> NoReturn:
    remedy = "python -m util.runtime.launch --help lists what there is"
    raise UserError(f"command line: {message}; {remedy}")


def _report(failures: dict[int, ProcessFailure]) -> NoReturn:
    """Name the rank that failed first, leaving out those that failed because of another rank."""
    begin = min(failure.timestamp for failure in failures.values())
    # A much later failure is a rank that torchrun killed because it did not exit when asked.
    early = (item for item in failures.items() if item[1].timestamp < begin + 10)
    causes = [item for item in early if item[1].exitcode != LOST]
    if not causes:
        raise RunStopped("a rank on another machine failed; the launcher there reports which")
    rank, failure = min(causes, key=lambda item: item[1].timestamp)
    if failure.exitcode == 2:  # it has reported why
        raise SystemExit(2)
    how = f"ended with status {failure.exitcode}"
    if failure.exitcode < 0:
        how = f"was killed by {signal.Signals(-failure.exitcode).name}"
    remedy = "Train.resume=auto goes on from the last checkpoint"
    if "test.py" in sys.argv:
        remedy = "the same command goes on with the episodes that are left"
    where = f"rank {rank} on {socket.gethostname()} (pid {failure.pid})"
    raise RunStopped(f"{where} {how}, and the others with it; {remedy}")


if __name__ == "__main__":
    main(launch)
