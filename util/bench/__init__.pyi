from .counting import count
from .measure import episodes, operations, peak_memory, peak_rate, prepare, seconds

__all__ = ["count", "episodes", "operations", "peak_memory", "peak_rate", "prepare", "seconds"]
