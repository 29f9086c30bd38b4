from .evaluator import EvaluatedEpisode, Evaluator, resize_to_image
from .metrics import argmax_channels
from .scores import Scores, summarize, table
from .visualize import Gallery, draw_strip, overlay, save_strips

__all__ = [
    "EvaluatedEpisode",
    "Evaluator",
    "Gallery",
    "Scores",
    "argmax_channels",
    "draw_strip",
    "overlay",
    "resize_to_image",
    "save_strips",
    "summarize",
    "table",
]
