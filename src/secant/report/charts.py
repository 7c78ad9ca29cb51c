"""Line charts as SVG text, drawn here so that a page needs no script and no network.

Holds: ``escape``, ``number``, ``Point``, ``Series``, ``Axis``, ``plot``, ``legend``,
``outside``.
May import: the standard library.
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass

WIDTH, HEIGHT = 540, 340
LEFT, RIGHT, TOP, BOTTOM = 72, 14, 16, 96
PAD = 30
FLAT = 48
"""How much lower the drawing is where no label has to be turned."""
TURN_FROM = 5
MOST_LABELS = 10
LABEL_LENGTH = 13


def escape(value: object) -> str:
    """Any value as text that is safe in HTML, in attributes, and to write as UTF-8."""
    text = str(value).encode("utf-8", "replace").decode("utf-8")
    return html.escape(text, quote=True)


def number(value: float | None, digits: int = 3) -> str:
    """A number for reading, ``n/a`` where there is none."""
    if value is None:
        return "n/a"
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.{digits - 1}e}".replace("-", "−")
    return f"{value:.{digits}f}".replace("-", "−")


@dataclass(frozen=True)
class Point:
    """One value of a series; ``x`` in [0, 1], ``value`` None where there is no number."""

    x: float
    value: float | None
    low: float | None
    high: float | None
    title: str


@dataclass(frozen=True)
class Series:
    """Points of one name; ``colour`` a CSS variable, ``look`` solid, dashed or hollow."""

    name: str
    points: tuple[Point, ...]
    colour: str
    look: str = "solid"


@dataclass(frozen=True)
class Axis:
    """The drawn range of values; what lies outside becomes an arrow at the edge."""

    low: float
    high: float
    ticks: tuple[float, ...]
    name: str

    def place(self, value: float) -> float:
        """The height of a value in the drawing, held inside the range."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)

    def holds(self, value: float) -> bool:
        """Whether a value lies in the drawn range."""
        return self.low <= value <= self.high


def across(x: float) -> float:
    """The horizontal place of ``x`` in [0, 1]."""
    return LEFT + PAD + x * (WIDTH - LEFT - RIGHT - 2 * PAD)


def plot(
    series: list[Series], axis: Axis, ticks: list[tuple[float, str]], foot: str, title: str
) -> str:
    """One chart; ``ticks`` are places in [0, 1] with labels, ``foot`` names the x axis."""
    turned = any(len(label) >= TURN_FROM for _, label in ticks)
    height = HEIGHT if turned else HEIGHT - FLAT
    parts = [
        f'<svg class="plot" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
    ]
    parts += _frame(axis, foot, height)
    parts += _labels(ticks, turned)
    parts += [_draw(one, axis) for one in series]
    parts.append("</svg>")
    return "".join(parts)


def legend(series: list[Series]) -> str:
    """The names of the series, each beside a sample of its look."""
    items = []
    for one in series:
        line = "" if one.look == "hollow" else '<path class="line" d="M1 7H27"/>'
        items.append(
            f'<li><svg width="28" height="14" aria-hidden="true"><g class="{one.look}" '
            f'style="--c:var({one.colour})">{line}<circle class="dot" cx="14" cy="7" r="4"/></g>'
            f"</svg><span>{escape(one.name)}</span></li>"
        )
    return f'<ul class="legend">{"".join(items)}</ul>'


def outside(series: list[Series], axis: Axis) -> int:
    """How many points lie beyond the drawn range."""
    values = [point.value for one in series for point in one.points]
    return sum(value is not None and not axis.holds(value) for value in values)


def _frame(axis: Axis, foot: str, height: int) -> list[str]:
    parts = []
    for tick in axis.ticks:
        y = axis.place(tick)
        kind = "base" if tick == 0 else "grid"
        parts.append(f'<path class="{kind}" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        label = f"{tick:g}".replace("-", "−")
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text transform="translate(14 {middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(axis.name)}</text>"
    )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{height - 6}" text-anchor="middle">'
        f"{escape(foot)}</text>"
    )
    return parts


def _labels(ticks: list[tuple[float, str]], turned: bool) -> list[str]:
    step = max(1, math.ceil(len(ticks) / MOST_LABELS))
    parts = []
    for x, label in ticks[::step]:
        short = label if len(label) <= LABEL_LENGTH else "…" + label[1 - LABEL_LENGTH :]
        place = f"translate({across(x):.1f} {HEIGHT - BOTTOM + 16})"
        pose = f'{place} rotate(-38)" text-anchor="end' if turned else f'{place}"'
        pose += "" if turned else ' text-anchor="middle'
        full = f"<title>{escape(label)}</title>"
        parts.append(f'<text transform="{pose}">{escape(short)}{full}</text>')
    return parts


def _draw(one: Series, axis: Axis) -> str:
    parts = [f'<g class="{one.look}" style="--c:var({one.colour})">']
    if one.look != "hollow":
        parts.append(_line(one.points, axis))
    for point in one.points:
        parts.append(_mark(point, axis, one.look))
    parts.append("</g>")
    return "".join(parts)


def _line(points: tuple[Point, ...], axis: Axis) -> str:
    path, pen = [], "M"
    for point in points:
        if point.value is None:
            pen = "M"
            continue
        path.append(f"{pen}{across(point.x):.1f} {axis.place(point.value):.1f}")
        pen = "L"
    return f'<path class="line" d="{"".join(path)}"/>' if path else ""


def _mark(point: Point, axis: Axis, look: str) -> str:
    x, title = across(point.x), f"<title>{escape(point.title)}</title>"
    if point.value is None:
        if look != "solid":
            return ""
        return f'<text class="na" x="{x:.1f}" y="{HEIGHT - BOTTOM - 6}">n/a{title}</text>'
    y = axis.place(point.value)
    parts = ["<g>", title]
    if look == "solid" and point.low is not None and point.high is not None:
        low, high = axis.place(point.low), axis.place(point.high)
        parts.append(
            f'<path class="whisker" d="M{x:.1f} {low:.1f}V{high:.1f}'
            f'M{x - 4:.1f} {low:.1f}h8M{x - 4:.1f} {high:.1f}h8"/>'
        )
    if axis.holds(point.value):
        parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4.2"/>')
    else:
        tip = 7 if point.value < axis.low else -7
        parts.append(
            f'<path class="out" d="M{x - 6:.1f} {y - tip:.1f}h12L{x:.1f} {y + tip / 2:.1f}Z"/>'
        )
    parts.append(f'<circle class="hit" cx="{x:.1f}" cy="{y:.1f}" r="9"/></g>')
    return "".join(parts)
