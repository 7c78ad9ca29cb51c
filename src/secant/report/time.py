"""A recurrent layer in time: the eigenvalues of its linear state, its horizons, its memory.

Holds: ``time_plots``, ``eigenvalue_plane``.
May import: the standard library, ``secant.report.charts``, ``secant.report.fields``,
``secant.report.profiles``.
"""

from __future__ import annotations

import math

from secant.report.charts import Axis, Frame, Series, escape, number
from secant.report.fields import (
    Model,
    Reading,
    control_of,
    details_of,
    finite,
    readings_of,
    shown,
    sites_of,
    text_at,
)
from secant.report.profiles import figure, point_of

LOOKS = (
    ("shuffled", "shuffled weights", "dotted", "--shuffled"),
    ("fresh", "fresh weights", "dashed", "--fresh"),
    ("residual", "the state's own decay alone", "hollow", "--residual"),
    ("input", "from today's input alone", "hollow", "--residual"),
)
"""A control, its name on the page, its look and colour."""
SQUARE = Frame(width=400, height=400, left=0, right=0, top=0, bottom=0, pad=0)
FARTHEST = 1.5
"""No eigenvalue is drawn farther out: beyond it a state grows tenfold in six steps."""


def time_plots(model: Model) -> str:
    """The figures of every recurrent layer, under one heading; empty if there is none."""
    found: dict[str, list[Reading]] = {}
    for one in readings_of(model):
        if one.get("variable") == "time":
            found.setdefault(text_at(one, "site"), []).append(one)
    parts = []
    words = []
    for site in (site for site in sites_of(model) if site in found):
        words += _words(site, found[site])
        parts += _planes(site, found[site])
        parts += _curve(site, found[site], "horizon", "steps", "steps ahead")
        parts += _curve(site, found[site], "memory", "lag", "steps ago")
    if not parts:
        return ""
    return f'<h3>In time</h3>{"".join(words)}<div class="plots">{"".join(parts)}</div>'


def _words(site: str, readings: list[Reading]) -> list[str]:
    """What one step of the layer is, linearly."""
    raw, beyond = (
        next((one for one in readings if (one.get("gauge"), one.get("variant")) == key), None)
        for key in (("fit", "raw"), ("fit", "beyond"))
    )
    if raw is None or beyond is None:
        return []
    alone, driven = (
        escape(shown(control_of(raw, name))) for name in ("state alone", "input alone")
    )
    return [
        f'<p class="figure"><code>{escape(site)}</code>: one linear step of state and input '
        f"explains {escape(shown(raw))} of the next state (the state alone {alone}, the input "
        f"alone {driven}), and {escape(shown(beyond))} of what a plain decay of the state "
        "leaves.</p>"
    ]


def _planes(site: str, readings: list[Reading]) -> list[str]:
    return [
        eigenvalue_plane(site, one) for one in readings if one.get("variant") == "spectral radius"
    ]


def _pairs(reading: Reading) -> list[tuple[float, float]]:
    listed = details_of(reading).get("eigenvalues")
    found = []
    for pair in listed if isinstance(listed, list) else []:
        if isinstance(pair, (list, tuple)) and len(pair) == 2:
            real, imaginary = finite(pair[0]), finite(pair[1])
            if real is not None and imaginary is not None:
                found.append((real, imaginary))
    return found


def eigenvalue_plane(site: str, reading: Reading) -> str:
    """The eigenvalues of the fitted state map in the complex plane, with the unit circle."""
    title = f"Eigenvalues of the linear state ({site})"
    pairs = _pairs(reading)
    reach = 1.08 * min(max([1.0, *(math.hypot(*pair) for pair in pairs)]), FARTHEST)
    middle, scale = SQUARE.width / 2, (SQUARE.width / 2 - 14) / reach
    axes = (
        f'<path class="grid" d="M0 {middle}H{SQUARE.width}M{middle} 0V{SQUARE.height}"/>'
        f'<circle class="base" fill="none" cx="{middle}" cy="{middle}" r="{scale:.1f}"/>'
        f'<text x="{middle + scale - 4:.0f}" y="{middle - 6}" text-anchor="end">1</text>'
        f'<text x="{middle - scale + 4:.0f}" y="{middle - 6}">−1</text>'
        f'<text x="{middle + 6}" y="{middle - scale + 16:.0f}">i</text>'
    )
    dots, gone = [], 0
    for real, imaginary in pairs:
        size = math.hypot(real, imaginary)
        if size > FARTHEST:
            gone += 1
            continue
        turn = math.degrees(math.atan2(imaginary, real))
        told = f"{number(real)} {'+' if imaginary >= 0 else '−'} {number(abs(imaginary))}i: "
        told += f"modulus {number(size)}, turns by {number(turn, 1)}° a step"
        dots.append(
            f'<circle class="dot" cx="{middle + scale * real:.1f}" '
            f'cy="{middle - scale * imaginary:.1f}" r="4"><title>{escape(told)}</title></circle>'
        )
    note = f'<p class="figure">{escape(_radius_words(reading, len(pairs)))}</p>'
    if gone:
        are = "1 lies" if gone == 1 else f"{gone} lie"
        note += f'<p class="note">{are} farther out than {FARTHEST} and are not drawn.</p>'
    return (
        f"<figure><h3>{escape(title)}</h3>"
        f'<svg class="plot plane" viewBox="0 0 {SQUARE.width} {SQUARE.height}" role="img" '
        f'aria-label="{escape(title)}">{axes}<g style="--c:var(--c1)">{"".join(dots)}</g></svg>'
        f"<figcaption>{note}</figcaption></figure>"
    )


def _radius_words(reading: Reading, count: int) -> str:
    """The largest modulus, and in how many steps what lies along it has halved."""
    value = finite(reading.get("value"))
    words = f"{count} eigenvalues; the largest modulus is {shown(reading)}"
    if value is not None and 0 < value < 1:
        words += f", which halves in {number(math.log(0.5) / math.log(value), 1)} steps"
    elif value is not None and value >= 1:
        words += ": along it the fitted state does not fade"
    return f"{words}."


def _curve(site: str, readings: list[Reading], what: str, place: str, foot: str) -> list[str]:
    """R² against steps ahead or ago, beside its controls; nothing where it was not read."""
    points = [
        (finite(details_of(one).get(place)), one)
        for one in readings
        if what in (one.get("variant"), one.get("gauge"))
    ]
    held = sorted(((at, one) for at, one in points if at is not None), key=lambda pair: pair[0])
    if not held:
        return []
    places = [i / max(1, len(held) - 1) for i in range(len(held))]
    series = []
    for control, label, look, colour in LOOKS:
        of_control = tuple(
            point_of(x, f"{label}, {at:g} {foot}", control_of(one, control))
            for x, (at, one) in zip(places, held, strict=True)
        )
        if any(point.value is not None for point in of_control):
            series.append(Series(label, of_control, colour, look))
    own = tuple(
        point_of(x, f"{at:g} {foot}", one, one) for x, (at, one) in zip(places, held, strict=True)
    )
    series.append(Series("trained", own, "--c1"))
    values = [p.value for one in series for p in one.points if p.value is not None]
    is_below = any(value < -0.05 for value in values)
    ticks = (0.0, 0.25, 0.5, 0.75, 1.0)
    axis = Axis(-0.5, 1.0, (-0.5, -0.25, *ticks), "R²") if is_below else Axis(0.0, 1.0, ticks, "R²")
    names = {"horizon": "How far the linear state goes alone", "memory": "What the state remembers"}
    labels = [(x, f"{at:g}") for x, (at, _) in zip(places, held, strict=True)]
    title = f"{names[what]} ({site})"
    return [figure(title, series, axis, foot, ticks=labels)]
