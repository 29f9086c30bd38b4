"""The ways in which a command ends early, and what each means for its exit status."""

from collections.abc import Sequence

from model.errors import UserError

__all__ = ["RunStopped", "Terminated", "UserError", "refuse"]

_MOST = 10  # mistakes in one message


class RunStopped(RuntimeError):
    """A run cannot go on, through no mistake in its arguments; the message says where."""

    status = 1


class Terminated(KeyboardInterrupt):
    """SIGTERM, where a run does not treat it as a request to stop (`util.runtime.stop`)."""


def refuse(where: str, mistakes: Sequence[str], remedy: str) -> None:
    """Raise `UserError` with all mistakes found in one place, `where`, if there are any.

    Ten are told, and how many more there are.
    """
    if not mistakes:
        return
    told = list(mistakes[:_MOST])
    if more := len(mistakes) - len(told):
        told.append(f"and {more} more")
    count = f"{len(mistakes)} mistakes: " if len(mistakes) > 1 else ""
    raise UserError(f"{where}: {count}{'; '.join(told)}; {remedy}")
