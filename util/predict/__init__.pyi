from .example import Box, Example, Points
from .predictor import Predictor, Result, Stages

__all__ = ["Box", "Example", "Points", "Predictor", "Result", "Stages"]
