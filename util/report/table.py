"""Results of folds and seeds -> the paper's table: a row a setting, a column a fold.

Runs of the same setting share a row: all keys that may change a number are equal but the fold and
the seeds. A fold's cell is mean and standard deviation (of the population) over its runs' test
seeds, all pooled; "mean" is the mean of the folds, its standard deviation that of the seeds' means
over the folds. It needs every fold, and the deviation the same seeds in each.
"""

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from util.folds import FOLDS
from util.report.runs import read_result
from util.reproduce.compare import numeric_keys
from util.runtime.errors import UserError

PER_RUN = {"Data.split", "Data.novel", "Train.seed", "Base.seed", "Eval.seeds"}
PUBLISHED = Path(__file__).with_name("published.yaml")

Seeds = tuple[int, int]  # of the training, of the test
Cell = tuple[float, float | None] | None  # (mean, standard deviation)


@dataclass
class Row:
    """One line of the table; scores in percent.

    Attributes:
        data: the folder of fold lists that was tested on, such as pascal, coco, demo.
        setting: the keys in which it differs from other rows of the same data, backbone and shots.
        folds: fold -> cell.
        mean, fb_iou: over all folds.
        runs: how many results are in it; 0: published.
    """

    data: str
    backbone: str
    shot: int
    setting: str = ""
    folds: dict[int, Cell] = field(default_factory=dict)
    mean: Cell = None
    fb_iou: Cell = None
    runs: int = 0

    @property
    def source(self) -> str:
        return f"ours, {self.runs} run{'s' * (self.runs > 1)}" if self.runs else "published"


def gather(folder: Path) -> list[Row]:
    """The rows of every `result.json` below a folder, with the published rows beside them.

    Raises:
        UserError: there is none, one is torn, or two are of the same fold, seeds and setting.
    """
    paths = sorted(folder.rglob("result.json"))
    if not paths:
        raise UserError(
            f"{folder}: no result.json is below; test.sh writes one into a run's folder"
        )
    groups: dict[tuple, list[tuple[Path, dict]]] = {}
    for path in paths:
        result = read_result(path)
        groups.setdefault(_label(result), []).append((path, result))
    published, rows = published_rows(), []
    by_name = sorted(groups.items(), key=lambda group: group[0])
    for (data, shot), results in _by_data(by_name).items():
        rows += results
        rows += [row for row in published if (row.data, row.shot) == (data, shot)]
    return rows


def published_rows() -> list[Row]:
    """The paper's rows."""
    rows = []
    for entry in yaml.safe_load(PUBLISHED.read_text(encoding="utf-8")):
        folds = {fold: (score, None) for fold, score in enumerate(entry["folds"])}
        fb_iou = (entry["fb_iou"], None) if "fb_iou" in entry else None
        names = {name: entry[name] for name in ("data", "backbone", "shot")}
        rows.append(Row(**names, folds=folds, mean=(entry["mean"], None), fb_iou=fb_iou))
    return rows


def _label(result: dict[str, Any]) -> tuple[str, int, str]:
    """(data, shots, backbone) of a result."""
    data, method = result["config"]["Data"], result["config"]["Method"]
    trained_on = f"{data['trained_on']}2" if data.get("trained_on") else ""
    return f"{trained_on}{Path(data['list_dir']).name}", data["shot"], method["backbone"]


def _by_data(groups: Sequence[tuple[tuple, list]]) -> dict[tuple[str, int], list[Row]]:
    """(data, shots) -> our rows, one a backbone and setting."""
    rows: dict[tuple[str, int], list[Row]] = {}
    for (data, shot, backbone), results in groups:
        settings: dict[str, list[tuple[Path, dict]]] = {}
        keys = [_setting(result) for _, result in results]
        differing = sorted(
            name
            for name in {name for key in keys for name in key}
            if len({repr(key.get(name)) for key in keys}) > 1
        )
        for key, result in zip(keys, results, strict=True):
            told = " ".join(f"{name}={key.get(name, '(absent)')}" for name in differing)
            settings.setdefault(told, []).append(result)
        for told, members in sorted(settings.items()):
            row = _row(Row(data, backbone, shot, told, runs=len(members)), members)
            rows.setdefault((data, shot), []).append(row)
    return rows


def _setting(result: dict[str, Any]) -> dict[str, Any]:
    """The keys that may change a number, but fold and seeds; and which checkpoint it was."""
    keys = {n: v for n, v in numeric_keys(result["config"]).items() if n not in PER_RUN}
    return keys | {"checkpoint": Path(result["checkpoint"]).stem}


def _row(row: Row, results: list[tuple[Path, dict]]) -> Row:
    """The row with its cells."""
    scores: dict[int, dict[Seeds, tuple[float, float]]] = {}
    taken: dict[tuple[int, Seeds], Path] = {}
    for path, result in results:
        config = result["config"]
        fold = config["Data"]["split"]
        for seed, found in result["seeds"].items():
            seeds = (config["Train"]["seed"], int(seed))
            if other := taken.get((fold, seeds)):
                raise UserError(
                    f"{path}: fold {fold} with training seed {seeds[0]} and test seed {seeds[1]} "
                    f"is in {other} too, of the same setting; move one out of the way"
                )
            taken[fold, seeds] = path
            final = found["final"]
            scores.setdefault(fold, {})[seeds] = (final["miou"], final["fb_iou"])
    row.folds = {fold: _cell([miou for miou, _ in of.values()]) for fold, of in scores.items()}
    if set(scores) == set(range(FOLDS)):
        row.mean, row.fb_iou = (_over_folds(scores, which) for which in (0, 1))
    return row


def _cell(values: list[float]) -> Cell:
    """Mean and deviation; one value alone has none."""
    return statistics.fmean(values), statistics.pstdev(values) if len(values) > 1 else None


def _over_folds(scores: dict[int, dict[Seeds, tuple[float, float]]], which: int) -> Cell:
    """Mean of the folds' means; the deviation over seeds that every fold has alike, else None."""
    means = [statistics.fmean(v[which] for v in of.values()) for of in scores.values()]
    seeds = [set(of) for of in scores.values()]
    if any(each != seeds[0] for each in seeds):
        return statistics.fmean(means), None
    of_seed = [statistics.fmean(of[s][which] for of in scores.values()) for s in sorted(seeds[0])]
    return statistics.fmean(means), _cell(of_seed)[1]


# --- forms --------------------------------------------------------------------------------------


def _heads(rows: Sequence[Row]) -> tuple[list[str], list[int]]:
    folds = sorted({fold for row in rows for fold in row.folds} | set(range(FOLDS)))
    names = ["data", "shots", "backbone", "setting", "source"]
    return [*names, *(f"fold {fold}" for fold in folds), "mean", "FB-IoU"], folds


def _texts(row: Row, folds: Sequence[int], dash: str, plus: str) -> list[str]:
    def text(cell: Cell) -> str:
        if cell is None:
            return dash
        return f"{cell[0]:.1f}" + (f"{plus}{cell[1]:.1f}" if cell[1] is not None else "")

    cells = [*(row.folds.get(fold) for fold in folds), row.mean, row.fb_iou]
    names = [row.data, str(row.shot), row.backbone, row.setting or dash, row.source]
    return [*names, *map(text, cells)]


def as_markdown(rows: Sequence[Row]) -> str:
    """The table in Markdown."""
    heads, folds = _heads(rows)
    lines = [heads, ["---"] * len(heads), *(_texts(row, folds, "-", " ± ") for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def as_latex(rows: Sequence[Row]) -> str:
    """The table as a LaTeX tabular."""
    heads, folds = _heads(rows)
    escapes = str.maketrans({"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#"})

    def line(cells: list[str]) -> str:
        return " & ".join(cells) + r" \\" + "\n"

    told = [r"\begin{tabular}{llllr" + "r" * (len(heads) - 5) + "}\n", r"\hline", "\n"]
    told += [line([head.translate(escapes) for head in heads]), r"\hline", "\n"]
    for row in rows:
        cells = _texts(row, folds, "--", r" $\pm$ ")
        told.append(line([cell.translate(escapes) for cell in cells[:5]] + cells[5:]))
    return "".join([*told, r"\hline", "\n", r"\end{tabular}", "\n"])


def as_csv(rows: Sequence[Row]) -> str:
    """The table as CSV: all digits, mean and deviation in columns of their own."""
    heads, folds = _heads(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*heads[:5], *(n for head in heads[5:] for n in (head, f"{head} std"))])
    for row in rows:
        cells = [*(row.folds.get(fold) for fold in folds), row.mean, row.fb_iou]
        names = [row.data, row.shot, row.backbone, row.setting, row.source]
        numbers = [number for cell in cells for number in (cell or (None, None))]
        writer.writerow([*names, *("" if n is None else repr(n) for n in numbers)])
    return text.getvalue()
