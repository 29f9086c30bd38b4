"""Gather the results of folds and seeds into a table as in the paper.

A row is a setting, a column a fold. Runs share a row if all keys that may change a number are
equal, apart from the fold and the seeds.

- The cell of a fold: mean and standard deviation (of the population) over the test seeds of all its
  runs together.
- The column "mean": the mean of the folds; empty until every fold is there. Its deviation: average
  each seed over the folds, then take the deviation of these means. It needs the same seeds in every
  fold.
"""

import csv
import io
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from util.folds import FOLDS
from util.report.cells import for_csv, for_latex, for_markdown
from util.report.runs import held_in, is_base_learner, read_result
from util.reproduce.compare import numeric_keys
from util.runtime.errors import UserError

PER_RUN = {"Data.split", "Data.novel", "Data.known", "Train.seed", "Base.seed", "Eval.seeds"}
BESIDE = {"Eval.control", "Eval.control_share", "Eval.absent"}  # they change no score of the table
PUBLISHED = Path(__file__).with_name("published.yaml")

Seeds = tuple[int, int]  # (training seed, test seed)
Cell = tuple[float, float | None]  # (mean, standard deviation)
Result = tuple[Path, dict[str, Any]]  # a result.json and its content
Difference = tuple[float, tuple[float, float] | None]  # (mean, 95 % interval)


@dataclass
class Row:
    """One row of the table; scores in percent."""

    data: str  # name of the fold lists of the test, such as pascal, coco, demo
    backbone: str  # such as resnet50
    shot: int  # number of supports
    setting: str = ""  # keys and values that differ between rows that are otherwise alike
    folds: dict[int, Cell] = field(default_factory=dict)  # fold -> mIoU
    mean: Cell | None = None  # mIoU over all folds
    fb_iou: Cell | None = None  # FB-IoU over all folds
    difference: Difference | None = None  # of the mIoU to another row, in a sweep
    method: str = "amformer"  # `Method.name`
    runs: int = 0  # number of results in this row; 0 for a published row

    @property
    def source(self) -> str:
        """Where the numbers come from, as the table shows it."""
        return f"ours, {self.runs} run{'s' * (self.runs > 1)}" if self.runs else "published"


def gather(folder: Path) -> list[Row]:
    """Return the rows of every `result.json` below a folder, and the published rows beside them.

    Those of stage one are left out.

    Raises `UserError` if there is none, one is torn, or two have the same fold, seeds and setting.
    """
    paths = sorted(p for p in folder.rglob("result.json") if not is_base_learner(p))
    if not paths:
        remedy = "test.sh writes one into the folder of a run"
        raise UserError(f"{folder}: no result.json in it or below; {remedy}")
    groups: dict[tuple[str, int, str, str], list[Result]] = {}
    for path in paths:
        result = read_result(path)
        with held_in(path):
            group, _ = group_of(result), min(result["seeds"])
            as_markdown(_rows(*group, [(path, result)]))  # what it holds can be used
            groups.setdefault(group, []).append((path, result))
    ours: dict[tuple[str, int], list[Row]] = {}
    for group, results in sorted(groups.items(), key=lambda group: group[0]):
        ours.setdefault(group[:2], []).extend(_rows(*group, results))
    published, rows = published_rows(), []
    for key, own in ours.items():
        rows += own + [row for row in published if (row.data, row.shot) == key]
    return rows


def published_rows() -> list[Row]:
    """Return the rows of the paper."""
    rows = []
    for entry in yaml.safe_load(PUBLISHED.read_text(encoding="utf-8")):
        folds: dict[int, Cell] = {fold: (score, None) for fold, score in enumerate(entry["folds"])}
        fb_iou = (entry["fb_iou"], None) if "fb_iou" in entry else None
        names = {name: entry[name] for name in ("data", "backbone", "shot")}
        rows.append(Row(**names, folds=folds, mean=(entry["mean"], None), fb_iou=fb_iou))
    return rows


def group_of(result: dict[str, Any]) -> tuple[str, int, str, str]:
    """Return (data, shot, backbone, method) of a result."""
    data, method = result["config"]["Data"], result["config"]["Method"]
    trained_on = f"{data['trained_on']}2" if data.get("trained_on") else ""
    name = f"{trained_on}{Path(data['list_dir']).name}"
    return name, data["shot"], method["backbone"], method.get("name", "amformer")


def _rows(data: str, shot: int, backbone: str, method: str, results: Sequence[Result]) -> list[Row]:
    """Return one row per setting."""
    keys = [setting_keys(result) for _, result in results]
    names = {name for key in keys for name in key}
    differing = sorted(n for n in names if len({repr(key.get(n)) for key in keys}) > 1)
    settings: dict[str, list[Result]] = {}
    for key, result in zip(keys, results, strict=True):
        setting = " ".join(f"{name}={key.get(name, '(absent)')}" for name in differing)
        settings.setdefault(setting, []).append(result)
    named = sorted(settings.items())
    return [
        fill(Row(data, backbone, shot, setting, method=method), members)
        for setting, members in named
    ]


def setting_keys(result: dict[str, Any]) -> dict[str, Any]:
    """Return the keys that may change a number, without fold and seeds; and the checkpoint."""
    keys = {n: v for n, v in numeric_keys(result["config"]).items() if n not in PER_RUN | BESIDE}
    return keys | {"checkpoint": Path(result["checkpoint"]).stem}


def fill(
    row: Row,
    results: Sequence[Result],
    folds: Iterable[int] = range(FOLDS),
    scored: str = "final",
) -> Row:
    """Return the row with its cells filled in: a mean if all `folds` are there.

    `scored` is final, meta or prior. Raises `UserError` if two results are of the same fold and
    seeds.
    """
    row.runs = len(results)
    scores: dict[int, dict[Seeds, tuple[float, float]]] = {}
    taken: dict[tuple[int, Seeds], Path] = {}
    for path, result in results:
        config = result["config"]
        fold = config["Data"]["split"]
        for seed, found in result["seeds"].items():
            seeds = (config["Train"]["seed"], int(seed))
            if other := taken.get((fold, seeds)):
                which = f"fold {fold} with training seed {seeds[0]} and test seed {seeds[1]}"
                mistake = f"{which} is also in {other}, with the same setting"
                raise UserError(f"{path}: {mistake}; move one of them elsewhere")
            taken[fold, seeds] = path
            score = found[scored]
            scores.setdefault(fold, {})[seeds] = (score["miou"], score["fb_iou"])
    row.folds = {fold: _cell([miou for miou, _ in of.values()]) for fold, of in scores.items()}
    if set(scores) == set(folds):
        row.mean, row.fb_iou = (_over_folds(scores, which) for which in (0, 1))
    return row


def _cell(values: list[float]) -> Cell:
    """Return mean and deviation; a single value has no deviation."""
    return statistics.fmean(values), statistics.pstdev(values) if len(values) > 1 else None


def _over_folds(scores: dict[int, dict[Seeds, tuple[float, float]]], which: int) -> Cell:
    """Return the mean of the folds' means, and the deviation if all folds have the same seeds."""
    means = [statistics.fmean(v[which] for v in of.values()) for of in scores.values()]
    seeds = [set(of) for of in scores.values()]
    if any(each != seeds[0] for each in seeds):
        return statistics.fmean(means), None
    of_seed = [statistics.fmean(of[s][which] for of in scores.values()) for s in sorted(seeds[0])]
    return statistics.fmean(means), _cell(of_seed)[1]


def _heads(rows: Sequence[Row], folds: Iterable[int]) -> tuple[list[str], list[int]]:
    """Return the titles of the columns, and the folds among them."""
    shown = sorted({fold for row in rows for fold in row.folds} | set(folds))
    names = ["data", "shots", "backbone", "method", "setting", "source"]
    return [*names, *(f"fold {fold}" for fold in shown), "mean", "FB-IoU"], shown


def _names(row: Row) -> tuple[str, ...]:
    return row.data, str(row.shot), row.backbone, row.method, row.setting, row.source


def _texts(
    row: Row, folds: Sequence[int], dash: str, plus: str, escape: Callable[[str], str]
) -> list[str]:
    """Return the cells of a row; `dash` stands for an empty one, `plus` for plus-minus."""

    def text(cell: Cell | None) -> str:
        if cell is None:
            return dash
        return f"{cell[0]:.1f}" + (f"{plus}{cell[1]:.1f}" if cell[1] is not None else "")

    cells = [*(row.folds.get(fold) for fold in folds), row.mean, row.fb_iou]
    names = [*map(escape, _names(row))]
    names[4] = names[4] or dash
    return [*names, *map(text, cells)]


def _difference(row: Row, dash: str) -> str:
    if row.difference is None:
        return dash
    mean, interval = row.difference
    return f"{mean:+.1f}" + (f" [{interval[0]:+.1f}, {interval[1]:+.1f}]" if interval else "")


def as_markdown(rows: Sequence[Row], folds: Iterable[int] = range(FOLDS)) -> str:
    """Return the table in Markdown; with a column for differences if a row has one."""
    heads, folds = _heads(rows, folds)
    lines = [_texts(row, folds, "-", " ± ", for_markdown) for row in rows]
    if any(row.difference for row in rows):
        heads.append("difference")
        lines = [[*line, _difference(row, "-")] for row, line in zip(rows, lines, strict=True)]
    lines = [heads, ["---"] * len(heads), *lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def as_latex(rows: Sequence[Row]) -> str:
    """Return the table as a LaTeX tabular."""
    heads, folds = _heads(rows, range(FOLDS))

    def line(cells: list[str]) -> str:
        return " & ".join(cells) + r" \\" + "\n"

    lines = [r"\begin{tabular}{lllllr" + "r" * (len(heads) - 6) + "}\n", r"\hline", "\n"]
    lines += [line([for_latex(head) for head in heads]), r"\hline", "\n"]
    for row in rows:
        lines.append(line(_texts(row, folds, "--", r" $\pm$ ", for_latex)))
    return "".join([*lines, r"\hline", "\n", r"\end{tabular}", "\n"])


def as_csv(rows: Sequence[Row], folds: Iterable[int] = range(FOLDS)) -> str:
    """Return the table as CSV: all digits, a column for each mean and each deviation.

    If a row has a difference, three more columns hold it and the ends of its interval.
    """
    heads, folds = _heads(rows, folds)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    differ = any(row.difference for row in rows)
    more = ["difference", "difference low", "difference high"] if differ else []
    writer.writerow([*heads[:6], *(n for head in heads[6:] for n in (head, f"{head} std")), *more])
    for row in rows:
        cells = [*(row.folds.get(fold) for fold in folds), row.mean, row.fb_iou]
        names = map(for_csv, _names(row))
        numbers = [number for cell in cells for number in (cell or (None, None))]
        if differ:
            mean, interval = row.difference or (None, None)
            numbers += [mean, *(interval or (None, None))]
        writer.writerow([*names, *("" if n is None else repr(n) for n in numbers)])
    return text.getvalue()
