"""Write runs as one HTML page that needs no other file and no network."""

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import jinja2

from util.config import Config, flatten, to_dict
from util.data.image_io import UnreadableFile, read_image
from util.data.leaks import leak_notes, leak_table
from util.evaluate.visualize import COLORS, GALLERIES
from util.report.charts import Chart, bar_chart, line_chart
from util.report.runs import Record
from util.runtime.errors import UserError
from util.runtime.progress import clock

SCORES = {
    "val/miou_final": "final mIoU",
    "val/miou_meta": "meta mIoU",
    "val/miou_base": "base mIoU",
    "val/fb_iou": "FB-IoU",
    "val/fb_iou_meta": "meta FB-IoU",
    "val/p_iou": "pIoU",
}
EPOCHS = {
    "epoch/train_miou": "mIoU",
    "epoch/train_macc": "mean accuracy",
    "epoch/train_allacc": "accuracy",
}
LOSSES = {
    "train/loss_g": "Generator: total loss",
    "train/main": "Generator: main (final masks)",
    "train/aux": "Generator: auxiliary (mean of its three masks)",
    "train/distillation": "Generator: distillation",
    "train/adversarial_g": "Generator: adversarial",
    "train/loss_d": "Discriminator: total loss",
    "train/adversarial_d": "Discriminator: adversarial",
    "train/diversity": "Discriminator: diversity of the parts",
    "train/base": "Base learner (only monitored)",
    "train/loss": "Base learner: loss",
    "val/loss": "Validation: loss",
}
SUMMARY = ("final mIoU", "final FB-IoU", "meta mIoU", "base mIoU", "prior mIoU")
KINDS = ("final", "meta", "prior")
PICTURES = GALLERIES | {"predictions": "Predictions of the base learner"}
CONFUSION = {
    "predicted": "What the pixels predicted as the object are, in percent of them",
    "object": "What the object's pixels are taken for, in percent of them",
}
CONTROL_HEADS = ["", "right support", "false support", "difference", "kept", "episodes"]
RARE = 0.01  # base classes below this share in every row are added up in one column
JPEG_QUALITY = 82


@dataclass(frozen=True)
class HeatMap:
    """Shares from 0 to 1, drawn as a shaded table: row -> one share per column."""

    title: str
    columns: list[str]
    rows: dict[str, list[float]]


def render_page(runs: Sequence[Record], now: datetime) -> str:
    """Return the page about one run, or about several runs side by side, as HTML.

    Raises `UserError` if a picture of a run is torn.
    """
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, autoescape=True,  # names of runs are not ours
    )  # fmt: skip
    every_key = _rows(flatten(run.config) for run in runs)
    defaults = {key: str(value) for key, value in flatten(to_dict(Config())).items()}
    tested = [run for run in runs if run.environment]
    return templates.get_template("page.html.j2").render(
        title=f"AMFormer: {len(runs)} runs" if len(runs) > 1 else f"AMFormer: {runs[0].name}",
        now=now,
        runs=runs,
        names=[run.name for run in runs],
        scores={
            "heads": ["run", *SUMMARY, "seeds x episodes", "checkpoint"],
            "rows": [_scores(run.name, run.result) for run in runs if run.result],
        },
        base_learners={
            "heads": ["run", "base mIoU", "loss", "validation images", "epoch"],
            "rows": [_base_scores(run.name, run.base_learner) for run in runs if run.base_learner],
        },
        curves=_curves(runs),
        class_chart=_class_chart,
        control_heads=CONTROL_HEADS,
        controls=_controls,
        absent=_absent,
        protocols=_protocols,
        confusion=_confusion,
        leak_table=leak_table,
        leak_notes=leak_notes,
        rare=RARE,
        pictures=_pictures,
        mask_colors=COLORS,
        costs=_rows(_costs(run) for run in runs),
        config=every_key,
        changed=[row for row in every_key if set(row[1:]) != {defaults.get(row[0])}],
        tested=[run.name for run in tested],
        environment=_rows(flatten(run.environment or {}) for run in tested),
    )


def _scores(name: str, result: Mapping[str, Any]) -> list[str]:
    """Return a row of the table of scores."""
    cells = [_text(*_mean_and_std(result, score)) for score in SUMMARY]
    seeds = result["seeds"]
    episodes = next(iter(seeds.values()))["episodes"]
    checkpoint = f"{Path(result['checkpoint']).name}, iteration {result.get('iteration')}"
    return [name, *cells, f"{len(seeds)} x {episodes:,}", checkpoint]


def _base_scores(name: str, scores: Mapping[str, Any]) -> list[str]:
    """Return a row of the table of base learners."""
    if "miou" not in scores:
        return [name, "not validated", "-", "-", str(scores["epoch"])]
    miou, loss = f"{scores['miou']:.2f}", f"{scores['loss']:.4f}"
    return [name, miou, loss, f"{scores['images']:,}", str(scores["epoch"])]


def _class_chart(run: Record) -> Chart:
    """Draw the IoU of each novel class of a tested run, or of each base class of stage one."""
    if run.base_learner:
        classes = run.base_learner.get("classes") or {}
        bars = {name: {"base learner": (iou, 0.0)} for name, iou in classes.items()}
        return bar_chart("IoU of each base class", bars)
    result = run.result
    assert result is not None
    groups = {
        name: {kind: _mean_and_std(result, f"  {kind} {name}") for kind in KINDS}
        for name in next(iter(result["seeds"].values()))["final"]["classes"]
    }
    return bar_chart("IoU of each novel class", groups)


def _mean_and_std(result: Mapping[str, Any], score: str) -> tuple[float, float]:
    return result["summary"][score]["mean"], result["summary"][score]["std"]


def _text(mean: float, deviation: float) -> str:
    return f"{mean:.2f}" + (f" ± {deviation:.2f}" if deviation else "")


def _controls(run: Record) -> dict[str, list[list[str]]]:
    """Return the rows of each control: all classes together, then one by one."""

    def row(name: str, part: Mapping[str, Any]) -> list[str]:
        kept = "-" if part["kept"] is None else f"{part['kept']:.0f} %"
        values = [f"{part['right']:.2f}", f"{part['false']:.2f}", f"{part['difference']:+.2f}"]
        return [name, *values, kept, f"{part['episodes']:,}"]

    controls = (run.result or {}).get("controls") or {}
    return {
        kind: [row("mIoU", scores), *(row(name, part) for name, part in scores["classes"].items())]
        for kind, scores in controls.items()
    }


def _absent(run: Record) -> list[list[str]]:
    """Return the rows about absent objects; empty if none were tested."""
    scores = (run.result or {}).get("absent") or {}
    if not scores.get("episodes"):
        return []
    area = scores["false_positive_area"]
    return [
        ["episodes without the object", f"{scores['episodes']:,}"],
        ["AUROC of presence", f"{scores['auroc']:.2f}"],
        ["false positive area, final", f"{area['final']:.2f} %"],
        ["false positive area, meta", f"{area['meta']:.2f} %"],
        [f"threshold (of {scores['threshold_of']})", f"{scores['threshold']:.3f}"],
        ["absent found absent", f"{scores['absent_found_absent']:.1f} %"],
        ["present found present", f"{scores['present_found_present']:.1f} %"],
    ]


def _protocols(run: Record) -> dict[str, list[list[str]]]:
    """Return the scores by each other protocol that the run was tested by."""
    tables = {}
    for protocol, result in run.protocols.items():
        episodes = next(iter(result["seeds"].values()))["episodes"]
        tables[f"{protocol}, {len(result['seeds'])} x {episodes:,} episodes"] = [
            [score, _text(*_mean_and_std(result, score))] for score in result["summary"]
        ]
    return tables


def _confusion(run: Record) -> list[HeatMap]:
    """Return the confusion of the novel classes with all others; empty if it was not counted."""
    confusion = (run.result or {}).get("confusion") or {}
    first = ["hit", "background", "another novel class"]
    maps = []
    for kind, title in CONFUSION.items() if confusion else ():
        shares = {}
        for novel, kinds in confusion.items():
            pixels = max(1, sum(kinds[kind].values()))
            shares[novel] = {name: count / pixels for name, count in kinds[kind].items()}
        present = {name for row in shares.values() for name in row}
        common = {n for n in present if any(row.get(n, 0) >= RARE for row in shares.values())}
        columns = [n for n in first if n in present] + sorted(common.difference(first))
        rows = {novel: [row.get(n, 0.0) for n in columns] for novel, row in shares.items()}
        rest = {n: sum(v for k, v in row.items() if k not in columns) for n, row in shares.items()}
        if any(rest.values()):
            columns.append("other base classes")
            rows = {novel: [*cells, rest[novel]] for novel, cells in rows.items()}
        maps.append(HeatMap(title, columns, rows))
    return maps


def _pictures(run: Record) -> dict[str, str]:
    """Return the pictures that test or stage one drew: title -> base64 of a JPEG."""
    found = {}
    paths = {title: run.folder / f"{name}.png" for name, title in PICTURES.items()}
    for title, path in ((title, path) for title, path in paths.items() if path.is_file()):
        try:
            picture = cv2.cvtColor(read_image(path), cv2.COLOR_RGB2BGR)
        except UnreadableFile:
            what = "torn, or not a PNG; run test.sh again, or delete it"
            raise UserError(f"{path}: {what}") from None
        _, coded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        found[title] = base64.b64encode(coded.tobytes()).decode()
    return found


def _curves(runs: Sequence[Record]) -> list[Chart]:
    """Draw the curves: for one run, related ones share a chart; for several, a chart per curve."""
    short = {tag: tag.rpartition("/")[2] for run in runs for tag in run.curves} | SCORES | EPOCHS
    rates = sorted(tag for tag in short if tag.startswith("train/lr"))
    groups = [([tag], title, "loss") for tag, title in LOSSES.items()]
    if len(runs) > 1:
        scores = [([tag], title, "percent") for tag, title in SCORES.items()]
        groups = scores + groups + [([tag], f"Learning rate {short[tag]}", "rate") for tag in rates]
        groups += [([tag], f"Training images: {title}", "percent") for tag, title in EPOCHS.items()]
    else:
        groups.insert(0, (list(SCORES), "Validation", "percent"))
        groups.append((rates, "Learning rates", "rate"))
        groups.append((list(EPOCHS), "Training images, by epoch", "percent"))
    charts = []
    for tags, title, y_label in groups:
        lines = {
            run.name if len(runs) > 1 else short[tag]: run.curves[tag]
            for run, tag in product(runs, tags)
            if tag in run.curves
        }
        if lines:
            charts.append(line_chart(title, lines, y_label))
    return charts


def _costs(run: Record) -> dict[str, str]:
    """Return what the run cost: name -> text."""
    taken = {tag: [value for _, value in points] for tag, points in run.curves.items()}

    def total(tag: str) -> float | None:
        return sum(taken[tag]) if tag in taken else None

    def last(tag: str) -> float | None:
        return taken[tag][-1] if tag in taken else None

    steps = [points[-1][0] for tag, points in run.curves.items() if tag.startswith("train/")]
    test = (run.result or {}).get("cost", {})
    costs: dict[str, tuple[float | None, Callable[[float], str]]] = {
        "iterations": (max(steps, default=None), "{:,}".format),
        "curves, first to last point": (run.seconds if run.curves else None, clock),
        "training": (total("cost/train_s"), clock),
        "validations": (total("cost/validation_s"), clock),
        "iterations per second, at the end": (last("cost/iterations_per_s"), "{:.2f}".format),
        "peak memory of training (rank 0)": (last("cost/peak_memory_gb"), "{:.2f} GB".format),
        "test": (test.get("seconds"), clock),
        "episodes per second of the test": (test.get("episodes_per_s"), "{:.2f}".format),
        "peak memory of the test (rank 0)": (test.get("peak_memory_gb"), "{:.2f} GB".format),
    }
    return {n: "not recorded" if v is None else text(v) for n, (v, text) in costs.items()}


def _rows(columns: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Return one row per key, in order of first appearance; "-" where a column lacks the key."""
    columns = list(columns)
    keys = dict.fromkeys(key for column in columns for key in column)
    return [[key, *(str(column.get(key, "-")) for column in columns)] for key in keys]
