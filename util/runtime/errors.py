"""Ways in which a command ends early."""

from model.errors import UserError

__all__ = ["RunStopped", "Terminated", "UserError"]


class RunStopped(RuntimeError):
    """A run cannot go on, through no mistake in its arguments; the message says where."""

    status = 1


class Terminated(KeyboardInterrupt):
    """SIGTERM, where a run does not take it for a request to stop (`util.runtime.stop`)."""
