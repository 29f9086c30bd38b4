from .evaluator import EvaluatedEpisode, Evaluator
from .metrics import argmax_channels
from .scores import Scores, add_confusions, format_table, summarize
from .visualize import COLORS, GALLERIES, draw_episodes, draw_strip, encode_strips, heatmap, overlay

__all__ = [
    "COLORS",
    "GALLERIES",
    "EvaluatedEpisode",
    "Evaluator",
    "Scores",
    "add_confusions",
    "argmax_channels",
    "draw_episodes",
    "draw_strip",
    "format_table",
    "heatmap",
    "overlay",
    "encode_strips",
    "summarize",
]
