"""Line charts as SVG text, drawn here so that a page needs no script and no network.

Holds: ``escape``, ``number``, ``Point``, ``Series``, ``Axis``, ``Frame``, ``plot``, ``legend``,
``outside``, ``decades``, ``rug``.
May import: the standard library.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

TURN_FROM = 5
"""Labels of so many letters are turned, so that neighbours do not run into each other."""
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
    """One value of a series; ``x`` in [0, 1], ``value`` None where there is no number.

    ``arrow`` up or down marks a censored value: it lies beyond ``value`` on that side.
    """

    x: float
    value: float | None
    low: float | None
    high: float | None
    title: str
    arrow: str = ""


@dataclass(frozen=True)
class Series:
    """Points of one name; ``colour`` a CSS variable.

    ``look``: solid (dots and whiskers), curve (small dots and a band), faint (a thin line),
    dashed or dotted (controls), hollow (open dots alone).
    """

    name: str
    points: tuple[Point, ...]
    colour: str
    look: str = "solid"


@dataclass(frozen=True)
class Axis:
    """The drawn range of values; what lies outside becomes an arrow at the edge.

    `scale`: plain, log, or root, which has a 0 as log has not and still opens what lies near it.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    name: str
    scale: Literal["plain", "log", "root"] = "plain"

    def share(self, value: float) -> float:
        """Where a value lies between the ends, held inside the range."""
        value = min(max(value, self.low), self.high)
        if self.scale == "log":
            return math.log(value / self.low) / math.log(self.high / self.low)
        if self.scale == "root":
            return math.sqrt((value - self.low) / (self.high - self.low))
        return (value - self.low) / (self.high - self.low)

    def holds(self, value: float) -> bool:
        """Whether a value lies in the drawn range."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Frame:
    """Size and margins of a drawing, in its own units."""

    width: float = 540
    height: float = 292
    left: float = 72
    right: float = 14
    top: float = 16
    bottom: float = 48
    pad: float = 30

    def across(self, x: float) -> float:
        """The horizontal place of ``x`` in [0, 1]."""
        return self.left + self.pad + x * (self.width - self.left - self.right - 2 * self.pad)

    def up(self, axis: Axis, value: float) -> float:
        """The height of a value on the axis."""
        floor = self.height - self.bottom
        return floor - axis.share(value) * (floor - self.top)


PLAIN = Frame()
TURNED = Frame(height=340, bottom=96)
SMALL = Frame(width=240, height=150, left=36, right=6, top=10, bottom=26, pad=8)


def plot(
    series: list[Series],
    axis: Axis,
    ticks: list[tuple[float, str]],
    foot: str,
    title: str,
    *,
    threshold: float | None = None,
    is_small: bool = False,
) -> str:
    """One chart; ``ticks`` are places in [0, 1] with labels, ``foot`` names the x axis.

    ``threshold`` is drawn as a level line. A small chart names neither axis.
    """
    turned = any(len(label) >= TURN_FROM for _, label in ticks) and not is_small
    frame = SMALL if is_small else TURNED if turned else PLAIN
    kind = "plot small" if is_small else "plot"
    parts = [
        f'<svg class="{kind}" viewBox="0 0 {frame.width} {frame.height}" role="img" '
        f'aria-label="{escape(title)}">'
    ]
    parts += _frame(frame, axis)
    if not is_small:
        parts += _names(frame, axis, foot)
    parts += _labels(frame, ticks, turned)
    if threshold is not None and axis.holds(threshold):
        y = frame.up(axis, threshold)
        parts.append(f'<path class="level" d="M{frame.left} {y:.1f}H{frame.width - frame.right}"/>')
    parts += [_draw(one, axis, frame) for one in series]
    parts.append("</svg>")
    return "".join(parts)


def legend(series: list[Series]) -> str:
    """The names of the series, each beside a sample of its look; one name is said once."""
    items = []
    for one in {one.name: one for one in series}.values():
        line = "" if one.look == "hollow" else '<path class="line" d="M1 7H27"/>'
        dot = '<circle class="dot" cx="14" cy="7" r="4"/>'
        items.append(
            f'<li><svg width="28" height="14" aria-hidden="true"><g class="{one.look}" '
            f'style="--c:var({one.colour})">{line}{dot}</g></svg>'
            f"<span>{escape(one.name)}</span></li>"
        )
    return f'<ul class="legend">{"".join(items)}</ul>'


def outside(series: list[Series], axis: Axis) -> int:
    """How many points lie beyond the drawn range; censored ones, whose place is known, do not."""
    points = [point for one in series if one.look != "faint" for point in one.points]
    return sum(p.value is not None and not p.arrow and not axis.holds(p.value) for p in points)


def decades(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis: powers of ten inside, or the two ends if fewer than two."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    powers = [10.0**power for power in range(first, last + 1)]
    return powers if len(powers) > 1 else [low, high]


def rug(places: Sequence[float], title: str) -> str:
    """A strip from 0 to 1 with a tick at each place; ticks on one tenth of a unit are one."""
    frame = Frame(height=74, top=10, bottom=30, pad=10)
    top, floor = frame.top, frame.height - frame.bottom
    marks = sorted({round(frame.across(place), 1) for place in places if 0 <= place <= 1})
    ticks = "".join(f"M{x} {top}V{floor}" for x in marks)
    left, right = frame.across(0), frame.across(1)
    labels = "".join(
        f'<text x="{x:.0f}" y="{frame.height - 8}" text-anchor="middle">{text}</text>'
        for x, text in ((left, "0"), ((left + right) / 2, "0.5"), (right, "1"))
    )
    return (
        f'<svg class="plot" viewBox="0 0 {frame.width} {frame.height}" role="img" '
        f'aria-label="{escape(title)}"><path class="base" d="M{left:.0f} {floor}H{right:.0f}"/>'
        f'<path class="rug" d="{ticks}"><title>{escape(title)}</title></path>{labels}</svg>'
    )


def _frame(frame: Frame, axis: Axis) -> list[str]:
    parts = []
    for tick in axis.ticks:
        y = frame.up(axis, tick)
        kind = "base" if tick == 0 else "grid"
        parts.append(
            f'<path class="{kind}" d="M{frame.left} {y:.1f}H{frame.width - frame.right}"/>'
        )
        label = f"{tick:g}".replace("-", "−")
        parts.append(f'<text x="{frame.left - 7}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    return parts


def _names(frame: Frame, axis: Axis, foot: str) -> list[str]:
    middle = (frame.top + frame.height - frame.bottom) / 2
    return [
        f'<text transform="translate(14 {middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(axis.name)}</text>",
        f'<text x="{(frame.left + frame.width - frame.right) / 2:.0f}" y="{frame.height - 6}" '
        f'text-anchor="middle">{escape(foot)}</text>',
    ]


def _labels(frame: Frame, ticks: list[tuple[float, str]], turned: bool) -> list[str]:
    step = max(1, math.ceil(len(ticks) / MOST_LABELS))
    parts = []
    for x, label in ticks[::step]:
        short = label if len(label) <= LABEL_LENGTH else "…" + label[1 - LABEL_LENGTH :]
        place = f"translate({frame.across(x):.1f} {frame.height - frame.bottom + 19})"
        pose = f'{place} rotate(-38)" text-anchor="end' if turned else f'{place}"'
        pose += "" if turned else ' text-anchor="middle'
        full = f"<title>{escape(label)}</title>" if short != label else ""
        parts.append(f'<text transform="{pose}">{escape(short)}{full}</text>')
    return parts


def _draw(one: Series, axis: Axis, frame: Frame) -> str:
    parts = [f'<g class="{one.look}" style="--c:var({one.colour})">']
    if one.look == "curve":
        parts.append(_band(one.points, axis, frame))
    if one.look != "hollow":
        parts.append(_line(one.points, axis, frame))
    if one.look == "faint":
        parts.append(f"<title>{escape(one.name)}</title>")
    else:
        parts += [_mark(point, axis, frame, one.look) for point in one.points]
    parts.append("</g>")
    return "".join(parts)


def _runs(points: tuple[Point, ...], is_banded: bool = False) -> list[list[Point]]:
    """Neighbouring points that have what a line, or a band, needs."""
    runs: list[list[Point]] = [[]]
    for point in points:
        ends = (point.low, point.high) if is_banded else ()
        if point.value is None or point.arrow or None in ends:
            runs.append([])
        else:
            runs[-1].append(point)
    return [run for run in runs if run]


def _line(points: tuple[Point, ...], axis: Axis, frame: Frame) -> str:
    path = "".join(
        "M" + "L".join(f"{frame.across(p.x):.1f} {frame.up(axis, p.value or 0):.1f}" for p in run)
        for run in _runs(points)
        if len(run) > 1
    )
    return f'<path class="line" d="{path}"/>' if path else ""


def _band(points: tuple[Point, ...], axis: Axis, frame: Frame) -> str:
    paths = []
    for run in _runs(points, is_banded=True):
        edge = [(p.x, p.high or 0) for p in run] + [(p.x, p.low or 0) for p in run[::-1]]
        paths.append(
            "M" + "L".join(f"{frame.across(x):.1f} {frame.up(axis, y):.1f}" for x, y in edge) + "Z"
        )
    return f'<path class="band" d="{"".join(paths)}"/>' if paths else ""


def _mark(point: Point, axis: Axis, frame: Frame, look: str) -> str:
    x, title = frame.across(point.x), f"<title>{escape(point.title)}</title>"
    if point.value is None:
        if look not in ("solid", "curve"):
            return ""
        return (
            f'<text class="na" x="{x:.1f}" y="{frame.height - frame.bottom - 6}">n/a{title}</text>'
        )
    y = frame.up(axis, point.value)
    parts = ["<g>", title]
    if look == "solid" and point.low is not None and point.high is not None:
        low, high = frame.up(axis, point.low), frame.up(axis, point.high)
        parts.append(
            f'<path class="whisker" d="M{x:.1f} {low:.1f}V{high:.1f}'
            f'M{x - 4:.1f} {low:.1f}h8M{x - 4:.1f} {high:.1f}h8"/>'
        )
    is_up = point.arrow == "up" or (not point.arrow and point.value > axis.high)
    if axis.holds(point.value) and not point.arrow:
        radius = 2.4 if look == "curve" or frame is SMALL else 4.2
        parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>')
    else:
        tip = -7 if is_up else 7
        kind = "out open" if point.arrow else "out"
        parts.append(
            f'<path class="{kind}" d="M{x - 6:.1f} {y - tip:.1f}h12L{x:.1f} {y + tip / 2:.1f}Z"/>'
        )
    if look in ("solid", "hollow"):
        parts.append(f'<circle class="hit" cx="{x:.1f}" cy="{y:.1f}" r="9"/>')
    return "".join([*parts, "</g>"])
