from .system import PFENet, PFENetPrediction

__all__ = ["PFENet", "PFENetPrediction"]
