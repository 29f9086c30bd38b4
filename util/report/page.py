"""Runs -> one HTML page that needs nothing but itself."""

import base64
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

import cv2

from util.config import Config, to_dict
from util.evaluate.visualize import COLORS, GALLERIES
from util.report.charts import Line, bar_chart, heat_map, line_chart
from util.report.runs import Record
from util.runtime.errors import UserError
from util.runtime.progress import clock

SCORES = {
    "val/miou_final": "final mIoU",
    "val/miou_meta": "meta mIoU",
    "val/miou_base": "base mIoU",
    "val/fb_iou": "FB-IoU",
}
LOSSES = {
    "train/loss_g": "G: what its steps minimise",
    "train/main": "G: main (final masks)",
    "train/aux": "G: aux (mean of its three masks)",
    "train/distillation": "G: distillation",
    "train/adversarial_g": "G: adversarial",
    "train/loss_d": "D: what its steps minimise",
    "train/adversarial_d": "D: adversarial",
    "train/diversity": "D: diversity of the parts",
    "train/base": "base learner, only watched",
}
KINDS = ("final", "meta", "prior")
RARE = 0.01  # base classes that no row has this share of become one column
JPEG_QUALITY = 82
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fafafa; margin: 0; }
main { max-width: 1500px; margin: 0 auto; padding: 16px 28px 60px; background: #fff; }
h1 { font-size: 26px; margin: 12px 0 0; } h2 { font-size: 20px; margin: 36px 0 8px; }
h3 { font-size: 16px; margin: 22px 0 4px; } p, .note { margin: 4px 0 10px; color: #555; }
h2 { border-bottom: 1px solid #ddd; padding-bottom: 4px; }
nav a { margin-right: 16px; } a { color: #0072b2; }
table { border-collapse: collapse; margin: 8px 0; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 12px 3px 0; text-align: left; vertical-align: top; }
th { font-weight: 600; border-bottom: 1px solid #ccc; } td { border-bottom: 1px solid #eee; }
td.differs { background: #fff3d6; } .scroll { overflow-x: auto; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(400px, 1fr)); gap: 14px; }
figure { margin: 0 0 8px; } svg { width: 100%; height: auto; display: block; }
svg text { font-size: 12px; fill: #333; } svg text.title { font-size: 14px; font-weight: 600; }
svg text.label { fill: #666; } svg text.small { font-size: 11px; } svg text.light { fill: #fff; }
svg .grid { stroke: #e6e6e6; } svg .axis { stroke: #888; }
.legend span { margin-right: 16px; font-size: 13px; }
.legend i { display: inline-block; width: 12px; height: 12px; margin-right: 5px; }
img { max-width: 100%; display: block; }
"""


def page(runs: Sequence[Record], now: datetime) -> str:
    """The whole page, as text."""
    several = len(runs) > 1
    title = f"AMFormer: {len(runs)} runs" if several else f"AMFormer: {runs[0].name}"
    parts = [f"<h1>{escape(title)}</h1>", f"<p>Written {now:%Y-%m-%d %H:%M}.</p>"]
    sections = {
        "Scores": _scores(runs),
        "Curves": _curves(runs),
        "Classes": _each(runs, _classes),
        "Confusion with base classes": _each(runs, _confusion),
        "Episodes": _each(runs, _pictures),
        "Cost": _cost(runs),
        "Config": _config(runs),
        "Environment": _environment(runs),
    }
    links = (f'<a href="#{_anchor(name)}">{name}</a>' for name in sections)
    parts.append(f"<nav>{''.join(links)}</nav>")
    for name, content in sections.items():
        parts.append(f'<section id="{_anchor(name)}"><h2>{name}</h2>{content}</section>')
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    body = "\n".join(parts)
    html = f'<html lang="en"><head>{head}</head><body><main>{body}</main></body></html>'
    return f"<!doctype html>\n{html}\n"


def _anchor(name: str) -> str:
    return name.partition(" ")[0].lower()


def _each(runs: Sequence[Record], part) -> str:
    """A part of every run, under its name where there are several."""
    heads = [f"<h3>{escape(run.name)}</h3>" if len(runs) > 1 else "" for run in runs]
    return "".join(head + part(run) for head, run in zip(heads, runs, strict=True))


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], mark: bool = False) -> str:
    """A table of text; `mark`: shade the rows whose cells, but for the first, are not all equal."""
    lines = ["<tr>" + "".join(f"<th>{escape(head)}</th>" for head in heads) + "</tr>"]
    for first, *cells in rows:
        style = ' class="differs"' if mark and len(set(cells)) > 1 else ""
        told = "".join(f"<td{style}>{escape(cell)}</td>" for cell in cells)
        lines.append(f"<tr><td>{escape(first)}</td>{told}</tr>")
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


# --- scores -------------------------------------------------------------------------------------


def _scores(runs: Sequence[Record]) -> str:
    heads = ["run", "final mIoU", "final FB-IoU", "meta mIoU", "base mIoU", "prior mIoU"]
    rows, untested = [], []
    for run in runs:
        if run.result is None:
            untested.append(run.name)
            continue
        summary = run.result["summary"]
        cells = [_spread(summary[name]) for name in heads[1:]]
        seeds = run.result["seeds"]
        episodes = next(iter(seeds.values()))["episodes"]
        tested = f"{Path(run.result['checkpoint']).name}, iteration {run.result.get('iteration')}"
        rows.append([run.name, *cells, f"{len(seeds)} x {episodes:,}", tested])
    told = _table([*heads, "seeds x episodes", "checkpoint"], rows) if rows else ""
    told += _note(
        "In percent: mean over the seeds of the test and, of several, standard deviation. Meta is "
        "G before the ensemble with the base learner, which may lower it; prior is the "
        "training-free prior at its best threshold."
    )
    return told + "".join(_note(f"{name}: not tested yet; test.sh does it.") for name in untested)


def _spread(cell: Mapping[str, float]) -> str:
    return f"{cell['mean']:.2f}" + (f" ± {cell['std']:.2f}" if cell["std"] else "")


def _classes(run: Record) -> str:
    if run.result is None:
        return _note("Not tested yet.")
    summary = run.result["summary"]
    names = next(iter(run.result["seeds"].values()))["final"]["classes"]

    def bar(kind: str, name: str) -> tuple[float, float]:
        cell = summary[f"  {kind} {name}"]
        return cell["mean"], cell["std"]

    rows = {name: {kind: bar(kind, name) for kind in KINDS} for name in names}
    return bar_chart("IoU of each novel class", rows)


def _confusion(run: Record) -> str:
    confusion = (run.result or {}).get("confusion")
    if not confusion:
        return _note("Not in this run's result.json: test it again with test.sh.")
    titles = {
        "predicted": "What the pixels predicted as the object are, in percent of them",
        "object": "What the object's pixels are taken for, in percent of them",
    }
    base = [name for kinds in confusion.values() for part in kinds.values() for name in part]
    fixed = ["hit", "background", "another novel class"]
    base = [name for name in dict.fromkeys(base) if name not in fixed]
    told = _note(
        "Missed pixels of the object are counted by what the base learner sees there; "
        f"base classes below {100 * RARE:.0f} % in every row are taken together."
    )
    for kind, title in titles.items():
        shares = {}
        for novel, kinds in confusion.items():
            pixels = max(1, sum(kinds[kind].values()))
            shares[novel] = {name: count / pixels for name, count in kinds[kind].items()}
        common = [n for n in base if any(row.get(n, 0) >= RARE for row in shares.values())]
        columns = [n for n in fixed if any(n in row for row in shares.values())] + sorted(common)
        rows = {}
        for novel, row in shares.items():
            cells = [row.get(name, 0.0) for name in columns]
            rest = sum(share for name, share in row.items() if name not in columns)
            rows[novel] = [*cells, rest]
        columns.append("other base classes")
        if not any(row[-1] > 0 for row in rows.values()):
            columns, rows = columns[:-1], {name: row[:-1] for name, row in rows.items()}
        told += heat_map(title, columns, rows)
    return told


def _pictures(run: Record) -> str:
    if not run.pictures:
        return _note("None were drawn: test.sh ... Eval.visualize=6 draws them.")
    marks = (f'<span><i style="background:{c}"></i>{name}</span>' for name, c in COLORS.items())
    told = f'<div class="legend">{"".join(marks)}</div>'
    for name, path in run.pictures.items():
        picture = cv2.imread(str(path))
        if picture is None:
            raise UserError(f"{path}: torn, or no PNG; run test.sh again")
        _, coded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        source = base64.b64encode(coded.tobytes()).decode()
        image = f'<img alt="{name}" src="data:image/jpeg;base64,{source}">'
        told += f"<h3>{GALLERIES[name]}</h3>{image}"
    return told


# --- curves -------------------------------------------------------------------------------------


def _curves(runs: Sequence[Record]) -> str:
    rates = sorted({t for run in runs for t in run.curves if t.startswith("train/lr_")})
    several = len(runs) > 1
    charts = []
    if several:
        charts += [_chart(runs, name, [tag], "percent") for tag, name in SCORES.items()]
    else:
        charts.append(_chart(runs, "Validation", SCORES, "percent"))
    charts += [_chart(runs, name, [tag], "loss") for tag, name in LOSSES.items()]
    groups = [[tag] for tag in rates] if several else [rates]
    names = [
        f"learning rate {g[0].removeprefix('train/')}" if several else "learning rates"
        for g in groups
        if g
    ]
    charts += [_chart(runs, n, g, "rate") for n, g in zip(names, groups, strict=False)]
    told = "".join(charts)
    return f'<div class="charts">{told}</div>' if told else _note("No curves in the folder.")


def _chart(runs: Sequence[Record], title: str, tags, y_label: str) -> str:
    """One chart: of several tags of one run, or of one tag of every run; '' without a point."""
    names = {tag: SCORES.get(tag, tag.rpartition("/")[2]) for tag in tags}
    lines = [
        Line(run.name if len(runs) > 1 else names[tag], run.curves[tag])
        for run in runs
        for tag in tags
        if run.curves.get(tag)
    ]
    return line_chart(title, lines, y_label) if lines else ""


# --- cost, config, environment --------------------------------------------------------------------


def _cost(runs: Sequence[Record]) -> str:
    rows: list[list[str]] = []
    costs = [_costs(run) for run in runs]
    for name in costs[0]:
        rows.append([name, *(cost[name] for cost in costs)])
    return _table(["", *(run.name for run in runs)], rows)


def _costs(run: Record) -> dict[str, str]:
    def last(tag: str) -> float | None:
        points = run.curves.get(f"cost/{tag}")
        return points[-1][1] if points else None

    def total(tag: str) -> float | None:
        points = run.curves.get(f"cost/{tag}")
        return sum(value for _, value in points) if points else None

    def shown(value: float | None, text: str) -> str:
        return "not recorded" if value is None else text.format(value)

    steps = [points[-1][0] for tag, points in run.curves.items() if tag.startswith("train/")]
    test = (run.result or {}).get("cost", {})
    train_s, validation_s = total("train_s"), total("validation_s")
    rate = last("iterations_per_s")
    return {
        "iterations": f"{max(steps):,}" if steps else "not recorded",
        "curves, first to last point": clock(run.seconds) if run.curves else "not recorded",
        "training": "not recorded" if train_s is None else clock(train_s),
        "validations": "not recorded" if validation_s is None else clock(validation_s),
        "iterations per second, at the end": shown(rate, "{:.2f}"),
        "peak memory of training (rank 0)": shown(last("peak_memory_gb"), "{:.2f} GB"),
        "test": clock(test["seconds"]) if test else "not recorded",
        "episodes per second of the test": shown(test.get("episodes_per_s"), "{:.2f}"),
        "peak memory of the test (rank 0)": shown(test.get("peak_memory_gb"), "{:.2f} GB"),
    }


def _flat(tree: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Nested mappings -> `a.b` -> value as text."""
    flat: dict[str, str] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{above}{name}.")
        else:
            flat[above + name] = str(value)
    return flat


def _columns(columns: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """A row a key, in the order in which the keys first come, '-' where a column lacks it."""
    keys = dict.fromkeys(key for column in columns for key in column)
    return [[key, *(column.get(key, "-") for column in columns)] for key in keys]


def _config(runs: Sequence[Record]) -> str:
    defaults = _flat(to_dict(Config()))
    rows = _columns([_flat(run.config) for run in runs])
    changed = [row for row in rows if any(cell != defaults.get(row[0]) for cell in row[1:])]
    heads = ["key", *(run.name for run in runs)]
    told = _note("Keys that are not at their defaults; shaded: the runs differ.")
    told += _table(heads, changed, mark=True)
    every = _table(heads, rows, mark=True)
    return f"{told}<details><summary>All keys</summary>{every}</details>"


def _environment(runs: Sequence[Record]) -> str:
    columns = {run.name: _flat(run.environment) for run in runs if run.environment}
    if not columns:
        return _note("test.py records it with its result; none is here.")
    return _table(["", *columns], _columns(list(columns.values())), mark=True)
