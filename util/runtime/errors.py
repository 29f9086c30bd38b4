"""The ways in which a command ends early, and what each means for its exit status."""

from model.errors import UserError

__all__ = ["RunStopped", "Terminated", "UserError"]


class RunStopped(RuntimeError):
    """A run cannot go on, through no mistake in its arguments; the message says where."""

    status = 1


class Terminated(KeyboardInterrupt):
    """SIGTERM, where a run does not treat it as a request to stop (`util.runtime.stop`)."""
