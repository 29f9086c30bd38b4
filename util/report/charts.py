"""Draw charts with matplotlib: as inline SVG for the page, without a script, or as PNG.

A pointer that rests on a point or a bar shows its value.
"""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

# Colors of Okabe and Ito, which color-blind readers can tell apart; without yellow, too light.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#555555")
MAX_POINTS = 300  # per line; a longer line shows means of neighbors
MAX_DOTS = 40  # a line of at most this many points shows a dot for each
STYLE = Path(__file__).with_suffix(".mplstyle")

Points = Sequence[tuple[float, float]]  # (x, y), ascending x
Spot = tuple[float, float, float, str]  # x from and to, y, and the text that a pointer shows there


@dataclass(frozen=True)
class Chart:
    """One chart of the page."""

    title: str
    svg: Markup  # the drawing, safe to place into HTML
    legend: dict[str, str]  # label -> color; empty if there is only one line


def line_chart(title: str, lines: Mapping[str, Points], y_label: str = "") -> Chart:
    """Draw lines over iterations: label -> points, at least one line with at least one point."""
    colors, spots = _colors(lines), []
    with matplotlib.rc_context(fname=STYLE):
        figure = _figure(480, 230)
        axes = figure.subplots()
        for label, points in lines.items():
            points = thin(points)
            x, y = zip(*points, strict=True)
            dots = "o" if len(points) <= MAX_DOTS else ""
            axes.plot(x, y, dots + "-", color=colors[label], lw=1.7, ms=4, clip_on=False)
            spots += [(x, x, y, f"{label}, iteration {x:,.0f}: {y:,.4g}") for x, y in points]
        axes.grid(axis="y", clip_on=False)
        axes.set(xlabel="iteration", ylabel=y_label, xlim=(0, max(1, *(x for x, _, _, _ in spots))))
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        svg = _svg(figure, axes, title, spots)
    return Chart(title, svg, colors if len(lines) > 1 else {})


def bar_chart(title: str, groups: Mapping[str, Mapping[str, tuple[float, float]]]) -> Chart:
    """Draw horizontal bars from 0 to 100 percent.

    `groups`: group -> label of a bar -> (mean, standard deviation), the same labels in every group.
    """
    colors, spots = _colors(next(iter(groups.values()))), []
    height = 0.8 / len(colors)
    with matplotlib.rc_context(fname=STYLE):
        figure = _figure(860, 55 + 14 * len(groups) * (len(colors) + 1))
        axes = figure.subplots()
        for index, label in enumerate(colors):
            for group, (name, bars) in enumerate(groups.items()):
                mean, deviation = bars[label]
                row = group - 0.4 + height * (index + 0.5)
                spread = f" ± {deviation:.1f}" if deviation else ""
                bar = axes.barh(row, mean, 0.85 * height, color=colors[label], clip_on=False)
                axes.bar_label(bar, [f"{mean:.1f}{spread}"], padding=5, fontsize=11)
                spots.append((0, mean, row, f"{name}, {label}: {mean:.2f}{spread}"))
        axes.grid(axis="x", clip_on=False)
        axes.set(xlabel="IoU in percent", xlim=(0, 100), ylim=(len(groups) - 0.4, -0.6))
        axes.set_yticks(range(len(groups)), list(groups))
        axes.spines["bottom"].set_visible(False)
        svg = _svg(figure, axes, title, spots)
    return Chart(title, svg, colors)


def interval_chart(
    title: str, rows: Mapping[str, Mapping[str, tuple[float, float, float | None]]]
) -> bytes:
    """Draw differences with their intervals around zero (forest plot); return a PNG.

    `rows`: row -> label -> (difference, half width, wider half width or None), the same labels in
    every row. The wider interval is a thin line. An infinite half width is not drawn.
    """
    colors = _colors(next(iter(rows.values())))
    step = 0.6 / len(colors)
    with matplotlib.rc_context(fname=STYLE):
        figure = _figure(640, 85 + 14 * len(rows) * (len(colors) + 1))
        axes = figure.subplots()
        axes.axvline(0, color="#888888", lw=1)
        for row, marks in enumerate(rows.values()):
            for index, (label, (middle, half, wider)) in enumerate(marks.items()):
                y, color = row + step * (index - (len(colors) - 1) / 2), colors[label]
                for reach, width in ((wider, 1.2), (half, 3.5)):
                    if reach is not None and math.isfinite(reach):
                        ends = [middle - reach, middle + reach]
                        axes.plot(ends, [y, y], color=color, lw=width, solid_capstyle="butt")
                axes.plot(middle, y, "o", color=color, ms=6, label=None if row else label)
        axes.grid(axis="x")
        axes.set(xlabel=title, ylim=(len(rows) - 0.4, -0.6))
        axes.set_yticks(range(len(rows)), list(rows))
        if len(colors) > 1:
            figure.legend(loc="outside upper left", ncols=2, frameon=False)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=144, facecolor="white")
    return file.getvalue()


def thin(points: Points) -> list[tuple[float, float]]:
    """Return at most `MAX_POINTS` points: each is the mean of equally many neighbors."""
    size = -(-len(points) // MAX_POINTS)
    parts = (points[i : i + size] for i in range(0, len(points), size))
    return [(sum(x for x, _ in p) / len(p), sum(y for _, y in p) / len(p)) for p in parts]


def _colors(labels: Iterable[str]) -> dict[str, str]:
    return dict(zip(labels, cycle(PALETTE), strict=False))


def _figure(width: float, height: float) -> Figure:
    """Return a figure whose pixels are the units of its SVG."""
    return Figure((width / 72, height / 72), dpi=72, layout="constrained")


def _svg(figure: Figure, axes: Axes, title: str, spots: Iterable[Spot]) -> Markup:
    """Return the drawing of a figure, with an invisible shape over each spot for the pointer."""
    file, unset = io.StringIO(), dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(file, format="svg", metadata=unset)
    text = file.getvalue()
    drawing = Markup(text[text.index("<g ") : text.rindex("</svg>")])
    box = '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="10" rx="5">'
    hit = Markup(box + "<title>{}</title></rect>")
    width, height = figure.canvas.get_width_height()
    hits = []
    for x_from, x_to, y, shown in spots:
        (left, up), (right, _) = axes.transData.transform([(x_from, y), (x_to, y)])
        hits.append(hit.format(left - 5, height - up - 5, right - left + 10, shown))
    svg = Markup('<svg viewBox="0 0 {0} {1}" style="max-width: {0}px" role="img" aria-label="{2}">')
    return svg.format(width, height, title) + drawing + Markup("").join(hits) + Markup("</svg>")
