from .system import KSHOT, AMFormer, Prediction

__all__ = ["KSHOT", "AMFormer", "Prediction"]
