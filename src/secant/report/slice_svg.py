"""A slice of a network's pieces as SVG text: every cell at its place, coloured.

Holds: ``slice_picture``, ``directions``, ``classes``, ``wheel``, ``CSS``.
May import: torch, ``secant.report.charts``, ``secant.slices``.

Cells of one colour are one path of whole numbers, so that twenty thousand cells are under a
megabyte. A cell smaller than a step of that grid, a fifth of a pixel, may vanish.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from secant.report.charts import escape
from secant.slices import SlicePieces

SIZE = 2400
"""The picture's side in its own units; it is some 500 pixels wide."""

HUES = 18
FLAT = -1
FEW_EDGES, MOST_EDGES = 9_000, 40_000
"""Edges are drawn thinner past the first number, and not past the second: they would cover all."""

CSS = """
svg.slice{display:block;width:100%;height:auto;max-width:560px;border:1px solid var(--rule);
border-radius:6px}
.cell{fill:hsl(var(--h) var(--s,58%) 66%);stroke:hsl(var(--h) var(--s,58%) 66%);stroke-width:5;
stroke-linejoin:round}
.edges{fill:none;stroke:#1b1f26;stroke-opacity:.45;stroke-width:3}
.edges.fine{stroke-width:1.6;stroke-opacity:.32}
.flat{--s:0%}
.spot{fill:#fff;stroke:#000;stroke-width:9}
.spotname{font:600 84px/1 var(--sans);fill:#000;text-anchor:middle;dominant-baseline:central}
@media (prefers-color-scheme:dark){.cell{fill:hsl(var(--h) var(--s,42%) 42%);
stroke:hsl(var(--h) var(--s,42%) 42%)}.edges{stroke:#000;stroke-opacity:.55}}
.key{display:inline-block;width:.85rem;height:.85rem;border-radius:3px;vertical-align:-.1rem;
background:hsl(var(--h) 58% 66%)}
@media (prefers-color-scheme:dark){.key{background:hsl(var(--h) 42% 42%)}}
svg.wheel{width:64px;height:64px;flex:none}
.wheelrow{display:flex;align-items:center;gap:.8rem;margin:.4rem 0}
"""


def directions(cut: SlicePieces) -> list[int]:
    """For each cell the way in the plane along which its output changes most, in `HUES` turns.

    Half a turn is the same way; `FLAT` where nothing changes.
    """
    squares = torch.einsum("cwi,cwj->cij", cut.slopes, cut.slopes)
    angle = torch.atan2(2 * squares[:, 0, 1], squares[:, 0, 0] - squares[:, 1, 1]) / 2
    turn = (angle / math.pi % 1 * HUES).long() % HUES
    size = squares[:, 0, 0] + squares[:, 1, 1]
    flat = size <= (1e-9 * size.max().sqrt()) ** 2
    return torch.where(flat, FLAT, turn).tolist()


def classes(cut: SlicePieces) -> list[int]:
    """For each cell the largest output in its middle, the mean of its corners."""
    owner = torch.arange(cut.cells).repeat_interleave(cut.start.diff())
    sums = cut.values.new_zeros(cut.cells, cut.values.shape[1])
    sums.index_add_(0, owner, cut.values[cut.loop])
    return sums.argmax(1).tolist()


def _grid(cut: SlicePieces) -> Tensor:
    """Every vertex in the picture's units; the second coordinate grows upwards."""
    (left, right), (low, high) = cut.window
    scale = torch.tensor([SIZE / (right - left), -SIZE / (high - low)], dtype=torch.float64)
    start = torch.tensor([left, high], dtype=torch.float64)
    return ((cut.at - start) * scale).round().long()


def _step(x: int, y: int) -> str:
    return f"{x} {y}" if y >= 0 else f"{x}{y}"


def slice_picture(
    cut: SlicePieces, colours: Sequence[int], hues: dict[int, float], points: Sequence[Any],
    title: str,
) -> str:  # fmt: skip
    """The window with its cells; `colours` a key of `hues` (degrees) each, `FLAT` for grey.

    `points` are dicts of `name` and `at`; those outside the window are left out.
    """
    place = _grid(cut)
    corners, start = place[cut.loop].tolist(), cut.start.tolist()
    paths: dict[int, list[str]] = {}
    for cell, colour in enumerate(colours):
        x, y = corners[start[cell]]
        steps = []
        for to_x, to_y in corners[start[cell] + 1 : start[cell + 1]]:
            if (to_x, to_y) != (x, y):
                steps.append(_step(to_x - x, to_y - y))
                x, y = to_x, to_y
        if len(steps) > 1:
            first = corners[start[cell]]
            paths.setdefault(colour, []).append(
                f"M{_step(*first)}l{' '.join(steps)}z".replace(" -", "-")
            )
    parts = [
        f'<svg class="slice" viewBox="0 0 {SIZE} {SIZE}" role="img" aria-label="{escape(title)}">'
    ]
    for colour in sorted(paths):
        look = "cell flat" if colour == FLAT else "cell"
        hue = hues.get(colour, 0.0)
        parts.append(f'<path class="{look}" style="--h:{hue:g}" d="{"".join(paths[colour])}"/>')
    ends, _ = cut.edges
    if len(ends) <= MOST_EDGES:
        lines = []
        for (x, y), (to_x, to_y) in zip(
            place[ends[:, 0]].tolist(), place[ends[:, 1]].tolist(), strict=True
        ):
            if (x, y) != (to_x, to_y):
                lines.append(f"M{_step(x, y)}l{_step(to_x - x, to_y - y)}")
        look = "edges" if len(ends) <= FEW_EDGES else "edges fine"
        parts.append(f'<path class="{look}" d="{"".join(lines)}"/>')
    parts += [_spot(cut, point) for point in points]
    return "".join([*parts, "</svg>"])


def _spot(cut: SlicePieces, point: Any) -> str:
    (left, right), (low, high) = cut.window
    a, b = point["at"]
    if not (left <= a <= right and low <= b <= high):
        return ""
    x, y = SIZE * (a - left) / (right - left), SIZE * (high - b) / (high - low)
    return (
        f'<circle class="spot" cx="{x:.0f}" cy="{y:.0f}" r="62"/>'
        f'<text class="spotname" x="{x:.0f}" y="{y:.0f}">{escape(point["name"])}</text>'
    )


def hues_of(count: int) -> dict[int, float]:
    """Hues for `count` classes or turns, evenly about the circle."""
    return {i: round(360 * i / count, 1) for i in range(count)}


def wheel() -> str:
    """The key to `directions`: a disc whose sectors have the colour of the way they point."""
    parts = ['<svg class="wheel" viewBox="-50 -50 100 100" aria-hidden="true">']
    for i in range(2 * HUES):
        ends = [math.pi * (i + k) / HUES for k in (0, 1)]
        (a, b), (c, d) = ((46 * math.cos(e), -46 * math.sin(e)) for e in ends)
        parts.append(
            f'<path class="cell" style="--h:{360 * (i % HUES) / HUES:g};stroke-width:.6" '
            f'd="M0 0L{a:.1f} {b:.1f}L{c:.1f} {d:.1f}Z"/>'
        )
    return "".join([*parts, "</svg>"])
