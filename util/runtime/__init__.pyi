from .cli import Parser, main
from .distributed import Ranks
from .errors import RunStopped, UserError
from .files import atomic_write
from .progress import Progress, timed
from .stop import Stop

__all__ = [
    "Parser",
    "Progress",
    "Ranks",
    "RunStopped",
    "Stop",
    "UserError",
    "atomic_write",
    "main",
    "timed",
]
