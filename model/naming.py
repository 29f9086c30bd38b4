"""How the names of our weights follow from one another's: rules, and those that systems share."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Rule = tuple[str, str]  # pattern, replacement

CLASSIFIER = "base_learnear.2."
BAM_HEAD = "learner_base.1.4."
BACKBONE: Rule = (r"encoder\.base\.backbone\.", r"")
BASE_LEARNER: list[Rule] = [
    BACKBONE,
    (r"encoder\.base\.ppm\.", r"ppm."),
    (r"encoder\.base\.fuse\.", r"cls."),
    (r"encoder\.base\.classifier\.", CLASSIFIER),
]
MIX = "transformer.mix_transformer."
PYRAMID: list[Rule] = [
    (r"pyramid\.(\d)\.embed\.", MIX + r"down_sample_layers.\1.0."),
    (r"pyramid\.(\d)\.layers\.0\.", MIX + r"down_sample_layers.\1.1."),
    (r"pyramid\.(\d)\.layers\.1\.", MIX + r"down_sample_layers.\1.2."),
    (r"pyramid\.(\d)\.norm\.", MIX + r"down_sample_layers.\1.3."),
]
IN_ENCODER_LAYER: list[Rule] = [
    (r"\.attention\.reduce\.", ".attn.sr."),
    (r"\.attention\.norm\.", ".attn.norm."),
    (r"\.attention\.([qkvo])\.", r".attn.attn.linear_\1."),
    (r"\.ffn\.expand\.", ".ffn.layers.0."),
    (r"\.ffn\.depthwise\.", ".ffn.layers.1."),
    (r"\.ffn\.project\.", ".ffn.layers.4."),
]
ENSEMBLE: list[Rule] = [(r"ensemble\.kshot\.", r"kshot_rw."), (r"ensemble\.", r"")]


@dataclass(frozen=True)
class Naming:
    """Rules that turn our names into published ones.

    The first pattern of `starts` that matches the start of a name is replaced. Then every pattern
    of `inside` is, in names that now begin with its key. `marks` are starts of names, ours and the
    published one, that no other system has.
    """

    starts: Sequence[Rule]
    marks: tuple[str, str]
    inside: Mapping[str, Sequence[Rule]] = field(default_factory=dict)

    def published(self, ours: str) -> str:
        """Return the published name; an unknown name stays (callers refuse it)."""
        matching = (rule for rule in self.starts if re.match(rule[0], ours))
        pattern, replacement = next(matching, ("$", ""))
        name = re.sub("^" + pattern, replacement, ours)
        for start, rules in self.inside.items():
            if name.startswith(start):
                for old, new in rules:
                    name = re.sub(old, new, name)
        return name
