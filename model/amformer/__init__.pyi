from .system import AMFormer, MiningPrediction

__all__ = ["AMFormer", "MiningPrediction"]
