"""A tracked training run: a table for the terminal and a page with its curves.

Holds: ``render_track``, ``track_table``, ``track_words``.
May import: the standard library, rich, ``secant.report`` (charts, fields, profiles, style).
"""

from __future__ import annotations

import math
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape as escape_markup
from rich.table import Table

from secant.report.charts import Axis, Point, Series, escape, number
from secant.report.fields import finite
from secant.report.profiles import COLOURS, common_path, figure
from secant.report.style import CHART_CSS, PAGE_CSS

COLUMNS = {
    "displacement": "|w − w₀| / |w₀|",
    "first_order": "first-order error",
    "drift": "kernel drift",
    "velocity": "drift a step",
    "alignment": "alignment",
    "richness": "lazy 0 to rich 1",
}
WORDS = {
    "displacement": "How far the weights have moved, over their length at the start.",
    "first_order": "How far the outputs are from those of the linearisation at the start with the "
    "same weights, over how far they have moved. 0: linear in the weights over this distance; 1: "
    "off by as much as they moved.",
    "drift": "One less the cosine between the kernel now and at the start. 0: the same but for "
    "scale.",
    "alignment": "Centred alignment of the kernel with that of the labels. 1: they are one.",
}
MOST_ROWS = 24
MOST_LAYERS = 6


def _shown(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All records, or so many at even distances, the last among them."""
    if len(records) <= MOST_ROWS:
        return records
    places = [round(i * (len(records) - 1) / (MOST_ROWS - 1)) for i in range(MOST_ROWS)]
    return [records[place] for place in places]


def track_table(track: dict[str, Any]) -> Table:
    """One line a record; of many, some at even distances."""
    shown = _shown(track["records"])
    left = len(track["records"]) - len(shown)
    table = Table(
        title=escape_markup(f"{track['model']}, measured on {track['rows']} rows"),
        caption=f"{left} records are not shown; the page has all." if left else None,
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for head in ("step", *COLUMNS.values()):
        table.add_column(head, justify="right", overflow="fold")
    for one in shown:
        table.add_row(str(one["step"]), *(number(finite(one[name])) for name in COLUMNS))
    return table


def track_words(track: dict[str, Any]) -> str:
    """The last record and what tracking cost, in a sentence or two."""
    last, cost = track["records"][-1], track["cost"]
    said = (
        f"After {last['step']} steps the weights have moved by "
        f"{number(finite(last['displacement']))} of their length, the first order misses "
        f"{number(finite(last['first_order']))} of the change of the outputs, and the kernel has "
        f"drifted by {number(finite(last['drift']))}."
    )
    if cost["run_seconds"] > 0:
        share = cost["own_seconds"] / cost["run_seconds"]
        said += f" Tracking took {100 * share:.1f} % of the time of the steps."
    if track["sketched"] is not None:
        said += f" {track['outputs']:,} outputs a row were sketched into {track['sketched']}."
    return said


def render_track(track: dict[str, Any]) -> str:
    """The run as one self-contained page; every text in it is escaped."""
    title = escape(f"Training of {track['model']}")
    records = track["records"]
    last = records[-1]["step"]
    plots = [_layers(records)]
    plots += [
        _plot(name, COLUMNS[name], [Series(COLUMNS[name], _points(records, name), "--c1")], last)
        for name in ("first_order", "drift", "alignment")
        if any(finite(one[name]) is not None for one in records)
    ]
    heads = "".join(f'<th class="n">{escape(head)}</th>' for head in ("step", *COLUMNS.values()))
    rows = "".join(
        f'<tr><td class="n">{one["step"]}</td>'
        + "".join(f'<td class="n">{escape(number(finite(one[name])))}</td>' for name in COLUMNS)
        + "</tr>"
        for one in records
    )
    foot = " · ".join([
        f"Schema {track['schema']}", f"seed {track['seed']}",
        ", ".join(f"{name} {one}" for name, one in track["versions"].items()), track["hardware"],
    ])  # fmt: skip
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{PAGE_CSS}{CHART_CSS}</style></head><body>"
        f"<header><h1>{title}</h1><p>{escape(track_words(track))}</p></header><main>"
        f'<section class="card"><div class="plots">{"".join(plots)}</div></section>'
        f'<section class="card"><h2>Every record</h2><div class="box" tabindex="0"><table><thead>'
        f"<tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div></section></main>"
        f"<footer><p>{escape(foot)}</p></footer></body></html>\n"
    )


def _across(step: int, last: int) -> float:
    """Steps on a logarithmic axis that has a 0: records lie close at the start."""
    return math.log1p(step) / math.log1p(last) if last else 0.0


def _ticks(last: int) -> list[tuple[float, str]]:
    """0, powers of ten, and the last step unless a power is just before it."""
    powers = [10**i for i in range(len(str(last))) if 10**i < 0.6 * last]
    return [(_across(step, last), f"{step}") for step in dict.fromkeys((0, *powers, last))]


def _points(
    records: list[dict[str, Any]], name: str, layer: str | None = None
) -> tuple[Point, ...]:
    last = records[-1]["step"]
    points = []
    for one in records:
        value = finite(one[name] if layer is None else one["layers"][layer])
        if value is not None:
            title = f"{layer or COLUMNS[name]}, step {one['step']}: {number(value)}"
            points.append(Point(_across(one["step"], last), value, None, None, title))
    return tuple(points)


def _layers(records: list[dict[str, Any]]) -> str:
    """The displacement of all weights, of the layers that moved most, and of the others faintly."""
    last = records[-1]["layers"]
    known = [name for name in last if finite(last[name]) is not None]
    order = sorted(known, key=lambda name: -last[name])
    most = order[: MOST_LAYERS - 1] if len(known) > 1 else []
    others = [name for name in order if name not in most] if most else []
    prefix = common_path(known)
    series = [
        Series(f"{len(others)} other layers", _points(records, "layers", name), "--soft", "faint")
        for name in others
    ]
    series += [
        Series(name[len(prefix) :], _points(records, "layers", name), colour, "curve")
        for name, colour in zip(most, COLOURS[1:], strict=False)
    ]
    series.append(Series("all weights", _points(records, "displacement"), COLOURS[0]))
    under = f" (layers under {prefix[:-1]})" if prefix else ""
    return _plot("displacement", f"Displacement{under}", series, records[-1]["step"])


def _plot(name: str, title: str, series: list[Series], last: int) -> str:
    values = [point.value or 0.0 for one in series for point in one.points]
    low, high = min([0.0, *values]), max([1e-12, *values])
    unit = 10.0 ** math.floor(math.log10(high))
    top = next(edge * unit for edge in (1, 2, 5, 10) if high <= edge * unit * (1 + 1e-9))
    if low < 0:
        low = -top
    axis = Axis(low, top, tuple(low + (top - low) * i / 4 for i in range(5)), COLUMNS[name])
    return figure(
        f"{title[0].upper()}{title[1:]}", series, axis, "step, on a log scale with a 0",
        ticks=_ticks(last), note=f'<p class="words">{escape(WORDS[name])}</p>',
    )  # fmt: skip
