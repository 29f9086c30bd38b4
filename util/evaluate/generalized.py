"""Generalized few-shot segmentation: base and novel classes in one label map.

The episodes are those of BAM (Lang et al., "Learning What Not to Segment", CVPR 2022) or of DIaM
(Hajimiri et al., "A Strong Baseline for Generalized Few-Shot Semantic Segmentation", CVPR 2023).
docs/protocol.md says what differs from them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean, harmonic_mean

from torch import Tensor

from util.data import EpisodePlan, EpisodeSampler
from util.data.episodes import GENERALIZED, QUERY_ORDER, SUPPORT_SET, ShuffledPasses, generator
from util.data.tables import Table
from util.evaluate.label_maps import MapTotals
from util.evaluate.scores import Confusion
from util.folds import Fold
from util.runtime import UserError


@dataclass
class GeneralizedScores:
    """The scores of one seed, in percent. A class counts if a label or a prediction holds it."""

    base_miou: float  # mean over base classes, without background
    novel_miou: float  # mean over novel classes
    all_miou: float  # mean over both
    mean: float  # of base_miou and novel_miou
    harmonic_mean: float  # of the two
    base_classes: dict[str, float]  # IoU of each of them
    novel_classes: dict[str, float]
    episodes: int  # their number
    confusion: Confusion  # kind -> true label -> predicted label -> pixels

    def line(self) -> str:
        """Return the scores in one line."""
        means = f"all {self.all_miou:.2f}  harmonic mean {self.harmonic_mean:.2f}"
        return f"base {self.base_miou:.2f}  novel {self.novel_miou:.2f}  {means}"

    def columns(self) -> dict[str, float]:
        """Return the name of each score in tables -> its value in percent."""
        columns = {"base mIoU": self.base_miou, "novel mIoU": self.novel_miou}
        columns |= {"mIoU of all classes": self.all_miou, "mean of base and novel": self.mean}
        columns["harmonic mean"] = self.harmonic_mean
        columns |= {f"  base {name}": iou for name, iou in self.base_classes.items()}
        return columns | {f"  novel {name}": iou for name, iou in self.novel_classes.items()}


class Generalized:
    """What both protocols share; see `label_maps.MapProtocol`.

    `images` are the test images, `table` says what their masks hold. Queries are those of them that
    hold a base class, or a novel class of the sampler's list.
    """

    name = ""

    def __init__(
        self, sampler: EpisodeSampler, fold: Fold, table: Table, images: Iterable[str], tau: float
    ):
        self.sampler, self.tau = sampler, tau
        self.base = [fold.names[c - 1] for c in fold.base]
        self.classes = sorted(sampler.fold.by_class)
        self.base_of = {i: [c for c in fold.base if c in table[i]] for i in images}
        self.novel_of = {i: [c for c in self.classes if c in table[i]] for i in self.base_of}
        self.images = [i for i in self.base_of if self.base_of[i] or self.novel_of[i]]
        if not self.images:
            raise UserError("no test image holds a class; check Data.data_root")

    def scores(self, totals: MapTotals, names: list[str], episodes: int) -> GeneralizedScores:
        """Return the scores of complete totals; `names` are those of all labels."""
        final = totals.kinds["final"]
        _, union = final.areas()
        found = _percent(final.iou(), union, names)
        base = {name: found[name] for name in self.base if name in found}
        novel = {name: iou for name, iou in found.items() if name not in base}
        means = [fmean(ious.values()) if ious else 0.0 for ious in (base, novel)]
        return GeneralizedScores(
            base_miou=means[0],
            novel_miou=means[1],
            all_miou=fmean(found.values()) if found else 0.0,
            mean=fmean(means),
            harmonic_mean=harmonic_mean(means),
            base_classes=base,
            novel_classes=novel,
            episodes=episodes,
            confusion=totals.confusion(names),
        )


def _percent(iou: Tensor, union: Tensor, names: list[str]) -> dict[str, float]:
    """Return the IoU in percent of each class with U > 0, without the background, by name."""
    each = zip(names[1:], iou[1:].tolist(), union[1:].tolist(), strict=True)
    return {name: 100 * value for name, value, pixels in each if pixels}


class GeneralizedBam(Generalized):
    """As BAM: each episode has one novel class; pixels of other novel classes are background."""

    name = "gfss_bam"

    def count(self, wanted: int) -> int:
        """Return the number of episodes of each seed."""
        return wanted

    def report(self, wanted: int) -> list[str]:
        """Return what to say before the test."""
        return [f"{self.name}: {len(self.images)} test images hold a class of the fold"]

    def episodes(self, seed: int) -> Callable[[int], list[EpisodePlan]]:
        """Return the function from number to episode of a seed.

        Without a base class in the query, its class is one of the query's novel classes; else any
        novel class, in the query or not. Each is equally probable.
        """
        sampler, count = self.sampler.with_seed(seed), len(self.images)
        passes = ShuffledPasses(count, seed)

        def plans(number: int) -> list[EpisodePlan]:
            in_list = sampler.draw.order == "list"
            query = self.images[number % count if in_list else passes(number)]
            rng = generator(seed, GENERALIZED, number)
            choice = self.classes if self.base_of[query] else self.novel_of[query]
            class_id = int(rng.choice(choice))
            supports = sampler.draw_supports(query, class_id, rng)
            return [EpisodePlan(number, query, class_id, supports)]

        return plans


class GeneralizedDiam(Generalized):
    """As DIaM: each query once, with all novel classes; one set of supports for each seed."""

    name = "gfss_diam"

    def count(self, wanted: int) -> int:
        """Return the number of queries of each seed."""
        return min(wanted, len(self.images) - len(self.classes) * self.sampler.shot)

    def report(self, wanted: int) -> list[str]:
        """Return what to say before the test."""
        supports = len(self.classes) * self.sampler.shot
        what = f"{self.name}: {len(self.images)} test images hold a class of the fold"
        left = len(self.images) - supports
        if self.count(wanted) == left:
            return [f"{what}; {supports} of them are supports, the other {left} are the queries"]
        remedy = f"set Eval.episodes to {left} or more for all of them"
        return [f"{what}; {wanted} of the {left} that are no supports are queries; {remedy}"]

    def episodes(self, seed: int) -> Callable[[int], list[EpisodePlan]]:
        """Return the function from number to episode of a seed: all have the same supports."""
        supports = self.support_set(seed)
        taken = {name for names in supports.values() for name in names}
        queries = [name for name in self.images if name not in taken]
        if self.sampler.draw.order == "permuted":
            order = generator(seed, QUERY_ORDER, 0).permutation(len(queries))
            queries = [queries[i] for i in order]
        return lambda number: [
            EpisodePlan(number, queries[number], c, names) for c, names in supports.items()
        ]

    def support_set(self, seed: int) -> dict[int, tuple[str, ...]]:
        """Return K supports of each novel class; none holds another novel class.

        Raises `UserError` if a class has too few such images.
        """
        fold, shot, drawn = self.sampler.fold, self.sampler.shot, {}
        for c in self.classes:
            alone = [i for i in fold.by_class[c] if self.novel_of[i] == [c]]
            if len(alone) < shot:
                mistake = f"class {c} ({fold.name(c)}) has {len(alone)} supports without another"
                remedy = "lower Data.shot, or add images"
                raise UserError(f"{self.name}: {mistake} novel class, not {shot}; {remedy}")
            chosen = generator(seed, SUPPORT_SET, c).choice(len(alone), shot, replace=False)
            drawn[c] = tuple(alone[i] for i in chosen)
        return drawn
