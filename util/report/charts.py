"""Charts as inline SVG: no script, nothing fetched; a pointer resting on a mark shows its value."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

# Okabe and Ito's colours, which stay apart for colour-blind readers; yellow, too light, left out.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#555555")
WIDTH, HEIGHT = 480, 270
LEFT, RIGHT, TOP, BOTTOM = 62, 22, 34, 44  # margins around the plot
MOST = 300  # points of a line; more are averaged
DOTS = 40  # a line of at most so many points shows each


@dataclass
class Line:
    """A named line: (x, y) points with ascending x."""

    label: str
    points: Sequence[tuple[float, float]]


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers from at most `low` to at least `high`."""
    span = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / 5))
    step = next(k * power for k in (1, 2, 5, 10) if span / (k * power) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, max(last, first + 1) + 1)]


def number(value: float, small: bool = False) -> str:
    """A number as an axis or a mark shows it; `small`: as a power of ten."""
    if value and (small or not 1e-3 <= abs(value) < 1e6):
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MOST` points: means of as many neighbours each."""
    size = -(-len(points) // MOST)
    parts = (points[i : i + size] for i in range(0, len(points), size))
    return [(sum(x for x, _ in p) / len(p), sum(y for _, y in p) / len(p)) for p in parts]


def line_chart(title: str, lines: Sequence[Line], y_label: str = "") -> str:
    """A chart of lines over iterations, with a legend when there are several."""
    lines = [Line(line.label, thinned(line.points)) for line in lines if line.points]
    every = [point for line in lines for point in line.points]
    longest = max(x for x, _ in every)
    x_ticks = [tick for tick in ticks(0, longest) if tick <= longest]
    y_ticks = ticks(min(y for _, y in every), max(y for _, y in every))
    small = max(map(abs, y_ticks)) < 0.01  # then all in powers of ten, for one look

    def place(x: float, y: float) -> tuple[float, float]:
        across = x / max(longest, 1)
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (
            HEIGHT - TOP - BOTTOM
        )

    legend = _legend([line.label for line in lines]) if len(lines) > 1 else ""
    parts = [_text(WIDTH / 2, 16, title, "middle", "title")]
    for tick in y_ticks:
        _, y = place(0, tick)
        parts += [_line(LEFT, y, WIDTH - RIGHT, y, "grid")]
        parts += [_text(LEFT - 6, y + 4, number(tick, small), "end")]
    for tick in x_ticks:
        x, y = place(tick, y_ticks[0])
        parts += [_line(x, y, x, y + 4, "axis"), _text(x, y + 17, number(tick), "middle")]
    base = HEIGHT - BOTTOM
    parts += [_line(LEFT, base, WIDTH - RIGHT, base, "axis")]
    parts += [_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "iteration", "middle", "label")]
    if y_label:
        turned = f'<text class="label" transform="translate(13 {(TOP + base) / 2:.0f}) rotate(-90)"'
        parts += [f'{turned} text-anchor="middle">{escape(y_label)}</text>']
    for index, line in enumerate(lines):
        color = PALETTE[index % len(PALETTE)]
        placed = [place(*point) for point in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts += [f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.7"/>']
        shown = 2.4 if len(placed) <= DOTS else 0
        for (x, y), (at, value) in zip(placed, line.points, strict=True):
            told = escape(f"{line.label}, iteration {at:,.0f}: {number(value)}")
            dot = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{shown}" fill="{color}"/>' if shown else ""
            hit = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill-opacity="0">'
            parts += [f"{dot}{hit}<title>{told}</title></circle>"]
    return f"<figure>{_svg(WIDTH, HEIGHT, parts, title)}{legend}</figure>"


def bar_chart(title: str, rows: dict[str, dict[str, tuple[float, float]]]) -> str:
    """Horizontal bars of 0 to 100: row -> label of the bar -> (mean, standard deviation)."""
    labels = list(next(iter(rows.values())))
    left, width, thick = 8 + 7 * max(map(len, rows)), 860, 11
    group = thick * len(labels) + 9
    height = 30 + group * len(rows) + 40
    scale = (width - left - 110) / 100
    parts = [_text(left, 16, title, "start", "title")]
    for tick in range(0, 101, 20):
        x = left + scale * tick
        parts += [_line(x, 26, x, height - 36, "grid"), _text(x, height - 22, str(tick), "middle")]
    parts += [_text(left + 50 * scale, height - 5, "IoU in percent", "middle", "label")]
    for row, (name, bars) in enumerate(rows.items()):
        top = 30 + row * group
        parts += [_text(left - 8, top + (group - 9) / 2 + 4, name, "end")]
        for index, (label, (mean, std)) in enumerate(bars.items()):
            y, end = top + index * thick, left + scale * mean
            spread = f" ± {std:.1f}" if std else ""
            told = escape(f"{name}, {label}: {mean:.2f}{spread}")
            parts += [
                f'<rect x="{left}" y="{y}" width="{scale * mean:.1f}" height="{thick - 2}" '
                f'fill="{PALETTE[index]}"><title>{told}</title></rect>',
                _text(end + 5, y + 8, f"{mean:.1f}{spread}", "start", "small"),
            ]
    return f"<figure>{_svg(width, height, parts, title)}{_legend(labels)}</figure>"


def heat_map(title: str, columns: list[str], rows: dict[str, list[float]]) -> str:
    """A table of shares (0 to 1) as shades; a share of half a percent or more is written out."""
    left, cell = 8 + 7 * max(map(len, rows)), 34
    head = 34 + 5 * max(map(len, columns))
    width, height = max(560, left + cell * len(columns) + 70), head + 24 * len(rows) + 8
    parts = [_text(8, 16, title, "start", "title")]
    for index, name in enumerate(columns):
        x = left + cell * index + cell / 2
        turn = f'transform="translate({x + 4:.0f} {head - 6}) rotate(-50)"'
        parts += [f"<text {turn}>{escape(name)}</text>"]
    for row, (name, shares) in enumerate(rows.items()):
        y = head + 24 * row
        parts += [_text(left - 8, y + 16, name, "end")]
        for index, share in enumerate(shares):
            x, shade = left + cell * index, min(1.0, share**0.5)
            told = escape(f"{name}, {columns[index]}: {100 * share:.2f} %")
            parts += [
                f'<rect x="{x}" y="{y}" width="{cell - 2}" height="22" fill="#0072b2" '
                f'fill-opacity="{shade:.3f}" stroke="#dde"><title>{told}</title></rect>'
            ]
            if share >= 0.005:
                style = "small light" if shade > 0.6 else "small"
                parts += [_text(x + cell / 2 - 1, y + 15, f"{100 * share:.0f}", "middle", style)]
    return f"<figure>{_svg(width, height, parts, title)}</figure>"


def _svg(width: float, height: float, parts: list[str], title: str) -> str:
    head = f'viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:{width:.0f}px" role="img"'
    return f'<svg {head} aria-label="{escape(title)}">{"".join(parts)}</svg>'


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} class="{style}"/>'


def _text(x: float, y: float, text: str, anchor: str, style: str = "") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{style}"'
    return f"<text {place}>{escape(text)}</text>"


def _legend(labels: list[str]) -> str:
    marks = (
        f'<span><i style="background:{PALETTE[i % len(PALETTE)]}"></i>{escape(label)}</span>'
        for i, label in enumerate(labels)
    )
    return f'<figcaption class="legend">{"".join(marks)}</figcaption>'
