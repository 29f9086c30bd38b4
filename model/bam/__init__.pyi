from .system import BAM, BAMPrediction

__all__ = ["BAM", "BAMPrediction"]
