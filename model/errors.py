"""The one error type for a mistake of the user, raised in `model` and in `util` alike."""


class UserError(ValueError):
    """A mistake in a config, a command line or a file that the user can correct.

    The message is one line: what is wrong, where, and what to do. Commands print it and exit with
    status 2; any other exception keeps its traceback. The class takes one string, so it can be
    pickled and reaches the parent from a worker process unchanged.
    """
