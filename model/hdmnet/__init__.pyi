from .system import HDMNet, HDMNetPrediction

__all__ = ["HDMNet", "HDMNetPrediction"]
