"""A study's finding as a page, and in the terminal.

Holds: ``render_finding``, ``finding_table``.
May import: the standard library, rich, ``secant.report`` (charts, profiles, style, fields).
"""

from __future__ import annotations

import itertools
import math
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape as escape_markup
from rich.table import Table

from secant.report.charts import Axis, Point, Series, escape, number
from secant.report.fields import finite
from secant.report.profiles import COLOURS, figure
from secant.report.style import CHART_CSS, PAGE_CSS

HEADS = ("figure", "measured", "95 % interval", "published", "verdict")


def finding_table(finding: dict[str, Any]) -> Table:
    """The figures, each beside the published one."""
    table = Table(
        title=escape_markup(f"{finding['study']}: {finding['verdict']}"),
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for place, head in enumerate(HEADS):
        table.add_column(head, justify="right" if 0 < place < 4 else "left", overflow="fold")
    for one in finding["figures"]:
        table.add_row(*map(escape_markup, _cells(one)))
    return table


def _cells(one: dict[str, Any]) -> list[str]:
    ends = one["interval"]
    span = "none" if ends is None else f"{number(ends[0])} to {number(ends[1])}"
    published = "none" if one["published"] is None else number(one["published"])
    return [one["name"], number(one["value"]), span, published, one["verdict"]]


def render_finding(finding: dict[str, Any]) -> str:
    """The finding as one self-contained page; every text in it is escaped."""
    title = escape(f"Study {finding['study']}: {finding['verdict']}")
    rows = "".join(
        "<tr>"
        + "".join(
            f'<td class="n">{escape(cell)}</td>' if 0 < place < 4 else f"<td>{escape(cell)}</td>"
            for place, cell in enumerate(_cells(one))
        )
        + "</tr>"
        for one in finding["figures"]
    )
    heads = "".join(f"<th>{head}</th>" for head in HEADS)
    plots = "".join(
        _plot(name, [one for one in finding["curves"] if one["plot"] == name], finding["foot"])
        for name in dict.fromkeys(one["plot"] for one in finding["curves"])
    )
    versions = ", ".join(f"{name} {one}" for name, one in finding["versions"].items())
    foot = " · ".join([
        f"Schema {finding['schema']}", f"seed {finding['seed']}", versions, finding["hardware"],
        f"{finding['cost']['seconds']:,.0f} s",
    ])  # fmt: skip
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{PAGE_CSS}{CHART_CSS}</style></head><body>"
        f"<header><h1>{title}</h1><p>{escape(finding['claim'])}</p>"
        f'<p class="meta">{escape(finding["source"])}</p>'
        f"<p><code>{escape(finding['command'])}</code></p></header><main>"
        f'<section class="card"><p>{escape(finding["words"])}</p>'
        f'<div class="box"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        f'<div class="plots">{plots}</div></section></main>'
        f"<footer><p>{escape(foot)}</p></footer></body></html>\n"
    )


def _plot(name: str, curves: list[dict[str, Any]], foot: str) -> str:
    """Curves on two log axes; the interval of each point is a whisker."""
    places = sorted({place for one in curves for place in one["places"]})
    known = [
        value
        for one in curves
        for value in [*one["values"], *(end for ends in one["intervals"] for end in ends or ())]
        if finite(value) is not None
    ]
    if not known or places[0] == places[-1]:
        return ""
    low = 10.0 ** math.floor(math.log10(min(known)))
    high = 10.0 ** max(math.ceil(math.log10(max(known))), math.floor(math.log10(min(known))) + 1)
    powers = range(round(math.log10(low)), round(math.log10(high)) + 1)
    axis = Axis(low, high, tuple(10.0**power for power in powers), name, "log")

    def across(place: float) -> float:
        return math.log(place / places[0]) / math.log(places[-1] / places[0])

    series = []
    for one, colour in zip(curves, itertools.cycle(COLOURS), strict=False):
        points = []
        for place, value, ends in zip(one["places"], one["values"], one["intervals"], strict=True):
            left, right = ends or (None, None)
            title = f"{one['name']}, {place:g}: {number(finite(value))}"
            points.append(Point(across(place), finite(value), left, right, title))
        series.append(Series(one["name"], tuple(points), colour))
    title = f"{name[0].upper()}{name[1:]}"
    ticks = [(across(place), f"{place:g}") for place in places]
    return figure(title, series, axis, foot, ticks=ticks)
