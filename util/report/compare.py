"""Compare settings on the same episodes: differences with intervals, and where scores vary.

A setting is a folder with the episodes and results of one or more training runs, which differ in
seeds only. The first setting is the reference. `util.report.bootstrap` has the statistics.
"""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from util.config import flatten
from util.evaluate.records import read_records
from util.report import bootstrap
from util.report.bootstrap import Episodes, Variance
from util.report.cells import for_csv, for_latex, for_markdown
from util.report.runs import held_in, name_folders
from util.report.table import group_of, setting_keys
from util.reproduce.compare import tree_differences
from util.reproduce.verify import read_result
from util.runtime.errors import UserError

FILES = ("episodes.parquet", "episodes.csv")
SAME = ("query", "class_id", "class_name", "supports", "height", "width", "object_pixels")
KINDS = ("final", "meta")
POINT = 0.01  # the difference that is planned for, of scores in 0..1


@dataclass(frozen=True)
class Run:
    """One tested run."""

    folder: Path
    result: dict[str, Any]
    table: pa.Table  # its episodes with the right support, by (seed, number)


@dataclass(frozen=True)
class Setting:
    """Runs that differ in seeds only."""

    name: str
    runs: list[Run]

    def pixels(self, kind: str) -> np.ndarray:
        """Return object I and U, background I and U: [runs, episodes, 4]."""
        names = [f"{kind}_{area}" for area in ("i", "u", "bg_i", "bg_u")]
        return np.stack(
            [np.stack([run.table[name].to_numpy() for name in names], -1) for run in self.runs]
        ).astype(float)


@dataclass(frozen=True)
class Line:
    """A score of two settings, and its difference; in percent, and points."""

    kind: str  # final or meta
    score: str  # mIoU, FB-IoU, or the name of a class
    images: int  # number of query images
    first: float
    second: float
    difference: float
    half: float  # half width of the interval for new query images; inf: too few images
    half_seeds: float | None  # the same for new training seeds, too


@dataclass(frozen=True)
class Pair:
    """A setting against the reference."""

    name: str
    changed: list[str]  # keys of the config, `name reference -> setting`
    lines: list[Line]
    detectable: float  # the smallest difference of mIoU in points that is seen with 80 %
    images: int  # query images that one point needs, with as many episodes each
    episodes: float | None  # episodes that it needs on the same images; inf: the images limit
    runs: int | None  # training runs of each setting that it needs, were the images no limit


@dataclass(frozen=True)
class Comparison:
    """All that is known of some settings."""

    reference: Setting
    pairs: list[Pair]
    images: int
    episodes: int
    parts: dict[str, tuple[int, float, Variance]]  # setting -> runs, mIoU in percent, variance

    def intervals(self) -> tuple[str, dict[str, dict[str, tuple[float, float, float | None]]]]:
        """Return a title, and score -> setting -> difference and half widths, for the picture."""
        rows: dict[str, dict[str, tuple[float, float, float | None]]] = {}
        for pair in self.pairs:
            for line in pair.lines:
                if line.kind == "final":
                    half = (line.difference, line.half, line.half_seeds)
                    rows.setdefault(line.score, {})[pair.name] = half
        title = f"Difference to {self.reference.name} in points, 95 % interval"
        if any(pair.lines[0].half_seeds is not None for pair in self.pairs):
            title += "\nthick: for new query images; thin: for new training seeds, too"
        return title, rows


def read_settings(folders: Sequence[Path]) -> list[Setting]:
    """Read the runs in each folder and below.

    Raises `UserError` if a folder has no run or runs of different settings, a file is missing or
    torn, or the runs were not tested on the same episodes.
    """
    names = name_folders(folders)
    settings = [_read_setting(*pair) for pair in zip(folders, names, strict=True)]
    first = settings[0].runs[0]
    for setting in settings:
        for run in setting.runs:
            require_same_episodes(first, run)
    return settings


def _read_setting(folder: Path, name: str) -> Setting:
    paths = sorted(path for file in FILES for path in folder.rglob(file))
    if not paths:
        remedy = "run test.sh, which writes it into the folder of a run"
        raise UserError(f"{folder}: no episodes.parquet or episodes.csv in it or below; {remedy}")
    runs = [read_run(path) for path in paths]
    first, keys = runs[0], setting_keys(runs[0].result)
    for index, run in enumerate(runs):
        if changed := tree_differences(keys, setting_keys(run.result)):
            remedy = "the runs of one setting differ in seeds only, so name each setting's folder"
            what = f"{run.folder} and {first.folder} differ in {changed[0]}"
            raise UserError(f"--compare: {what}; {remedy}")
        for other in runs[:index]:
            if other.result["checkpoint_sha256"] == run.result["checkpoint_sha256"]:
                what = f"{run.folder} and {other.folder} are tests of the same checkpoint"
                raise UserError(f"--compare: {what}; move one of them elsewhere")
    return Setting(name, runs)


def read_run(path: Path) -> Run:
    """Read the episodes of a run and the result beside them; raises as `read_settings`."""
    wanted = ("checkpoint", "checkpoint_sha256", "seeds", "config", "environment")
    result = read_result(path.with_name("result.json"), wanted)
    table = read_records(path)
    table = table.filter(pc.equal(table["control"], ""))
    table = table.sort_by([("seed", "ascending"), ("number", "ascending")])
    counts = table["seed"].value_counts().to_pylist()
    found = {str(each["values"]): each["counts"] for each in counts}
    with held_in(path.with_name("result.json")):
        told = {seed: scores["episodes"] for seed, scores in result["seeds"].items()}
        group_of(result), setting_keys(result), flatten(result["environment"]["lists"])
        fits = found == told and _has_scores(table, result["seeds"])
    if not fits:
        what = "its seeds, episodes or scores are not those of result.json beside it"
        raise UserError(f"{path}: {what}; run test.sh again")
    return Run(path.parent, result, table.combine_chunks())


def _has_scores(table: pa.Table, seeds: dict[str, dict[str, Any]]) -> bool:
    """Return whether the episodes give the IoU of each class that a result tells of its seeds."""
    for seed, kind in product(seeds, KINDS):
        rows, areas = table.filter(pc.equal(table["seed"], int(seed))), (f"{kind}_i", f"{kind}_u")
        sums = rows.group_by("class_name").aggregate([(area, "sum") for area in areas])
        names, *sums = (sums[n].to_pylist() for n in ("class_name", *(f"{a}_sum" for a in areas)))
        found = {n: 100 * i / max(1, u) for n, i, u in zip(names, *sums, strict=True)}
        told = seeds[seed].get(kind, {}).get("classes", {})
        if any(abs(found.get(name, 0.0) - value) > 1e-6 for name, value in told.items()):
            return False
    return True


def require_same_episodes(first: Run, run: Run) -> None:
    """Refuse a run whose episodes are not those of the first one, in one line with the reason."""
    what = f"--compare: {run.folder} and {first.folder} were tested on different episodes"
    then, now = (each.result["environment"]["lists"] for each in (first, run))
    if changed := tree_differences(then, now):
        raise UserError(f"{what}: checksum of the list {changed[0]}; test both on the same lists")
    numbers = [each.table.select(["seed", "number"]) for each in (first, run)]
    if not numbers[0].equals(numbers[1]):
        seeds = (sorted(each.result["seeds"].items()) for each in (run, first))
        shown = " and ".join(_count(each) for each in seeds)
        remedy = "test both with the same Eval.seeds and Eval.episodes"
        raise UserError(f"{what}: {shown}; {remedy}")
    for name in SAME:
        left, right = first.table[name], run.table[name]
        if not left.equals(right):
            pairs = zip(left.to_pylist(), right.to_pylist(), strict=True)
            row = next(i for i, (a, b) in enumerate(pairs) if a != b)
            seed, number = (first.table[key][row].as_py() for key in ("seed", "number"))
            values = f"{name} is {right[row].as_py()} and {left[row].as_py()}"
            where = f"in episode {number} of seed {seed}"
            raise UserError(
                f"{what}: {where}, {values}; test both with the same Data and Eval keys"
            )


def _count(seeds: list[tuple[str, dict[str, Any]]]) -> str:
    names = ", ".join(seed for seed, _ in seeds)
    return f"{seeds[0][1]['episodes']:,} episodes of seed {names}"


def compare_settings(settings: Sequence[Setting]) -> Comparison:
    """Compare each setting with the first one."""
    first = settings[0]
    table = first.runs[0].table
    names, episodes = episodes_of(table)
    parts = {}
    for setting in settings:
        pixels = setting.pixels("final")
        miou = 100 * float(bootstrap.scores(episodes, pixels)[:, 0].mean())
        parts[setting.name] = (len(setting.runs), miou, bootstrap.split(episodes, pixels))
    pairs = [_pair(first, other, names, episodes) for other in settings[1:]]
    return Comparison(first, pairs, episodes.sizes[0], len(table), parts)


def episodes_of(table: pa.Table) -> tuple[list[str], Episodes]:
    """Return the names of the classes, by id, and which episode has which."""
    ids, which = np.unique(table["class_id"].to_numpy(), return_inverse=True)
    by_id = dict(zip(table["class_id"].to_pylist(), table["class_name"].to_pylist(), strict=True))
    _, query = np.unique(table["query"].to_numpy().astype(str), return_inverse=True)
    _, seed = np.unique(table["seed"].to_numpy(), return_inverse=True)
    return [by_id[int(each)] for each in ids], Episodes(query, which, seed)


def _pair(first: Setting, second: Setting, names: Sequence[str], episodes: Episodes) -> Pair:
    images = [len(np.unique(episodes.query[episodes.class_id == i])) for i in range(len(names))]
    images = [episodes.sizes[0]] * 2 + images
    lines = []
    for kind in KINDS:
        sides = [setting.pixels(kind) for setting in (first, second)]
        found = bootstrap.compare(episodes, *sides)
        values = [bootstrap.scores(episodes, side).mean(0) for side in sides]
        for row, score in enumerate(("mIoU", "FB-IoU", *names)):
            numbers = (values[0][row], values[1][row], found.value[row], found.half[row])
            first_score, second_score, change, half = (100 * float(n) for n in numbers)
            seeds = None if found.half_seeds is None else 100 * float(found.half_seeds[row])
            scored = first_score, second_score, change, half, seeds
            lines.append(Line(kind, score, images[row], *scored))
    then, now = (setting_keys(setting.runs[0].result) for setting in (first, second))
    return Pair(
        second.name,
        tree_differences(then, now),
        lines,
        *_plan(first, second, episodes, lines[0].half),
    )


def _plan(
    first: Setting, second: Setting, episodes: Episodes, half: float
) -> tuple[float, int, float | None, int | None]:
    """Return the last fields of a `Pair`: what a difference of one point of mIoU needs.

    `half` is that of the interval of mIoU in points, to which the variance is scaled: by
    linearization alone it is too small for few images.
    """
    sides = [setting.pixels("final") for setting in (first, second)]
    weights = np.concatenate(
        [np.full(len(s), w / len(s)) for s, w in zip(sides, (-1, 1), strict=True)]
    )
    runs = np.concatenate(sides)
    variance = bootstrap.split_change(episodes, runs, weights).scaled_to(half / 100)
    detectable = 100 * bootstrap.detectable(variance.query + (variance.support or 0))
    images, more = bootstrap.needed(POINT, variance, episodes.sizes[0], len(episodes.query))
    known = [v for s in sides if (v := bootstrap.split(episodes, s).seed) is not None]
    target = bootstrap.variance_for(POINT)
    trainings = max(1, math.ceil(2 * float(np.mean(known)) / target)) if known else None
    return detectable, images, more, trainings


# --- text ---------------------------------------------------------------------------------------


def _around(line: Line, half: float | None) -> str:
    """Return an interval as the tables show it."""
    if half is None or math.isinf(half):
        return "-"
    return f"{line.difference - half:+.1f} to {line.difference + half:+.1f}"


def as_markdown(comparison: Comparison) -> str:
    """Return everything as Markdown."""
    return "\n".join(_markdown_lines(comparison)) + "\n"


def _markdown_lines(comparison: Comparison) -> Iterator[str]:
    first = comparison.reference.name
    for pair in comparison.pairs:
        yield f"## {pair.name} against {first}\n"
        yield f"Changed: {'; '.join(pair.changed) or 'no key that may change a number'}.\n"
        seeds = pair.lines[0].half_seeds is not None
        heads = ["score", "query images", first, pair.name, "difference", "95 % interval"]
        heads += ["with new training seeds"] * seeds
        rows = []
        for line in pair.lines:
            cells = [f"{line.kind} {line.score}", f"{line.images:,}", f"{line.first:.1f}"]
            cells += [f"{line.second:.1f}", f"{line.difference:+.1f}", _around(line, line.half)]
            rows.append(cells + [_around(line, line.half_seeds)] * seeds)
        yield _markdown_table(heads, rows)
        yield from _plan_lines(comparison, pair)
    yield "## Standard deviation of final mIoU, in points\n"
    heads = ["setting", "training runs", "mIoU", "query images", "supports", "training seeds"]
    rows = [
        [name, str(runs), f"{miou:.1f}", *map(_deviation, (v.query, v.support, v.seed))]
        for name, (runs, miou, v) in comparison.parts.items()
    ]
    yield _markdown_table(heads, rows)


def _plan_lines(comparison: Comparison, pair: Pair) -> Iterator[str]:
    """Say what a difference of one point of mIoU needs."""
    images, episodes = comparison.images, comparison.episodes
    seen = "is seen with a chance of 80 % (5 % level)"
    have = f"On these {images:,} query images and {episodes:,} episodes"
    yield f"- {have}, a true difference of {pair.detectable:.1f} points of final mIoU {seen}."
    each = f"{episodes / images:.1f} episodes each"
    yield f"- One point needs {pair.images:,} query images with {each}."
    if pair.episodes == math.inf:
        yield "- On these images no number of episodes is enough: the images are the limit."
    elif pair.episodes is not None:
        yield f"- On these images one point needs {pair.episodes:,} episodes."
    if pair.runs is None:
        yield "- What other training seeds would change is unknown: each setting has one run."
    else:
        known = [comparison.parts[name][0] for name in (comparison.reference.name, pair.name)]
        rests = f"rests on {known[0]} and {known[1]} runs"
        yield f"- The interval with new training seeds {rests}; with two or three it is wide."
        need = f"one point needs about {pair.runs:,} run{'s' * (pair.runs > 1)} of each setting"
        yield f"- Were the query images no limit, {need}. This is rough, as it {rests}."
    yield ""


def _deviation(variance: float | None) -> str:
    return "-" if variance is None else f"{100 * math.sqrt(variance):.2f}"


def _markdown_table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(map(for_markdown, line))} |\n" for line in lines)


def as_latex(comparison: Comparison) -> str:
    """Return the differences as a LaTeX tabular; +- is half the width of the 95 % interval."""
    pairs = comparison.pairs
    rows = [["score", for_latex(comparison.reference.name)]]
    for pair in pairs:
        rows[0] += [for_latex(pair.name), "difference"]
        rows[0] += ["with seeds"] * (pair.lines[0].half_seeds is not None)
    for index, line in enumerate(pairs[0].lines):
        row = [for_latex(f"{line.kind} {line.score}"), f"{line.first:.1f}"]
        for each in (pair.lines[index] for pair in pairs):
            row += [f"{each.second:.1f}", _latex_change(each, each.half)]
            row += [_latex_change(each, each.half_seeds)] * (each.half_seeds is not None)
        rows.append(row)
    text = [" & ".join(row) + r" \\" for row in rows]
    head = r"\begin{tabular}{l" + "r" * (len(rows[0]) - 1) + "}"
    lines = [head, r"\hline", text[0], r"\hline", *text[1:], r"\hline", r"\end{tabular}"]
    return "\n".join(lines) + "\n"


def _latex_change(line: Line, half: float | None) -> str:
    change = f"${line.difference:+.1f}"
    return change + ("$" if half is None or math.isinf(half) else rf" \pm {half:.1f}$")


def as_csv(comparison: Comparison) -> str:
    """Return the differences as CSV, with all digits; an empty cell is not known."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    heads = ["reference", "setting", "kind", "score", "query_images"]
    heads += ["reference_score", "setting_score", "difference", "low", "high"]
    heads += ["low_with_seeds", "high_with_seeds"]
    writer.writerow(heads)
    for pair in comparison.pairs:
        for line in pair.lines:
            ends: list[str] = []
            for half in (line.half, line.half_seeds):
                if half is None or math.isinf(half):
                    ends += ["", ""]
                else:
                    ends += [repr(line.difference - half), repr(line.difference + half)]
            texts = (comparison.reference.name, pair.name, line.kind, line.score)
            names = [*map(for_csv, texts), line.images]
            numbers = [line.first, line.second, line.difference]
            writer.writerow([*names, *map(repr, numbers), *ends])
    return text.getvalue()
