"""Log."""

import sys


def warn(text: str) -> None:
    """Prints a line on stderr about something that went wrong and does not end the run."""
    print(f"warning: {text}", file=sys.stderr, flush=True)
