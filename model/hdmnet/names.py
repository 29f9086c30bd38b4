"""The names of HDMNet's weights in published checkpoints."""

from model.naming import BASE_LEARNER, ENSEMBLE, IN_ENCODER_LAYER, MIX, PYRAMID, Naming

COARSEST = 2  # published lists are numbered from fine to coarse, ours from coarse to fine


def _turned(ours: str, theirs: str) -> list[tuple[str, str]]:
    scales = range(COARSEST + 1)
    return [
        (rf"matching\.{ours.format(i)}\.", MIX + f"{theirs.format(COARSEST - i)}.") for i in scales
    ]


PUBLISHED = Naming(
    marks=("matching.", MIX + "match_layers."),
    starts=[
        *BASE_LEARNER,
        *ENSEMBLE,
        *((r"matching\." + ours, theirs) for ours, theirs in PYRAMID),
        *_turned(r"steps\.{}\.layer", "match_layers.{}.0"),
        *_turned(r"steps\.{}\.fuse", "match_layers.{}.1"),
        *_turned(r"parse\.{}", "parse_layers.{}"),
        (r"matching\.head\.", MIX + "cls."),
    ],
    inside={MIX: IN_ENCODER_LAYER},
)
