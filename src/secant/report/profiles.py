"""Layer profiles: the fit at each site, beside its controls, and all models on one depth.

Holds: ``plots``, ``comparison``, ``figure``, ``point_of``, ``places_of``, ``common_path``.
May import: the standard library, ``secant.report.charts``, ``secant.report.fields``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from secant.report.charts import (
    Axis,
    Point,
    Series,
    escape,
    legend,
    number,
    outside,
    plot,
)
from secant.report.fields import (
    Model,
    Reading,
    control_of,
    depth_of,
    finite,
    fits_of,
    interval_of,
    missing_of,
    readings_of,
    reason_of,
    shown,
    sites_of,
    text_at,
    variables_of,
)

COLOURS = ("--c1", "--c2", "--c3", "--c4", "--c5", "--c6")
BEYOND_AXIS = Axis(-0.25, 1.0, (-0.25, 0, 0.25, 0.5, 0.75, 1), "beyond")
CONTROLS = (
    ("shuffled", "shuffled weights", "dotted"),
    ("fresh", "fresh weights", "dashed"),
    ("residual", "residual alone", "hollow"),
)
"""A control, its name on the page and its look; the last lies on top."""


def point_of(x: float, label: str, holder: dict[str, Any], reading: Reading | None = None) -> Point:
    """A value with its interval as a point; `reading` says why where there is no number."""
    value = finite(holder.get("value"))
    low, high = interval_of(holder)
    title = f"{label}: {shown(holder)}"
    if missing_of(holder):
        title += f" ({missing_of(holder)})"
    if value is None and reading is not None:
        title += f" ({reason_of(reading)})"
    return Point(x, value, low, high, title)


def places_of(sites: list[str]) -> list[tuple[float, str]]:
    """The sites spread over [0, 1] in their order."""
    last = max(1, len(sites) - 1)
    middle = len(sites) == 1
    return [(0.5 if middle else i / last, site) for i, site in enumerate(sites)]


def _profile(
    readings: dict[str, Reading],
    places: list[tuple[float, str]],
    name: str,
    colour: str,
    variant: str,
) -> list[Series]:
    """The reading's series and, first so that it lies on top, its controls'."""
    here = [(x, site, readings[site]) for x, site in places if site in readings]
    series = []
    for control, label, look in CONTROLS:
        points = tuple(point_of(x, f"{s}, {label}", control_of(r, control)) for x, s, r in here)
        wanted = any(point.value is not None for point in points)
        if wanted and not (control == "residual" and variant == "beyond"):
            series.append(Series(label, points, f"--{control}", look))
    points = tuple(point_of(x, f"{site}, {name}", r, r) for x, site, r in here)
    return [*series, Series(name, points, colour)]


def _context(
    model: Model, variable: str, variant: str, places: list[tuple[float, str]]
) -> Series | None:
    """The same fit with context, where the survey took it."""
    found = fits_of(model, variable, f"context {variant}")
    points = tuple(
        point_of(x, f"{site}, with context", found[site], found[site])
        for x, site in places
        if site in found
    )
    return Series("with context", points, "--context") if points else None


def _raw_axis(models: list[Model]) -> Axis:
    """One range for the raw plots of all models, so that they can be laid side by side."""
    values = [
        finite(holder.get("value"))
        for model in models
        for one in readings_of(model)
        if one.get("gauge") == "fit" and one.get("variant") in ("raw", "context raw")
        for holder in (one, *(control_of(one, c) for c in ("residual", "fresh", "shuffled")))
    ]
    ticks = (0.0, 0.25, 0.5, 0.75, 1.0)
    if any(value is not None and value < 0 for value in values):
        return Axis(-0.25, 1.0, (-0.25, *ticks), "raw R²")
    return Axis(0.0, 1.0, ticks, "raw R²")


def figure(title: str, series: list[Series], axis: Axis, foot: str, **more: Any) -> str:
    """A plot under its title and legend, above what it leaves out.

    `more`: `ticks`, and `threshold` as for `plot`; `note`, a line of HTML below it.
    """
    gone = outside(series, axis)
    note = more.get("note", "")
    if gone:
        are = "1 point lies" if gone == 1 else f"{gone} points lie"
        span = f"{number(axis.low, 2)} to {number(axis.high, 2)}"
        note += f'<p class="note">{are} outside the drawn {span}: the arrows at the edge.</p>'
    drawn = plot(series, axis, more["ticks"], foot, title, threshold=more.get("threshold"))
    return (
        f"<figure><h3>{escape(title)}</h3>{legend(series[::-1])}{drawn}"
        + (f"<figcaption>{note}</figcaption>" if note else "")
        + "</figure>"
    )


def common_path(sites: list[str]) -> str:
    """The dotted path that every site starts with, to be said once, not at every tick."""
    parts = [site.split(".") for site in sites]
    shared = []
    for level in zip(*(one[:-1] for one in parts), strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return ".".join(shared) + "." if shared and len(sites) > 1 else ""


def plots(model: Model, models: list[Model]) -> str:
    """The fit's profiles of one model, raw R² and beyond, with what they leave out."""
    figures = []
    several = len(variables_of(model)) > 1
    for variable in variables_of(model):
        tail = f", linear in {variable}" if several else ""
        for variant, axis, colour in (
            ("raw", _raw_axis(models), "--c1"),
            ("beyond", BEYOND_AXIS, "--c2"),
        ):
            found = fits_of(model, variable, variant)
            if not found:
                continue
            sites = [site for site in sites_of(model) if site in found]
            prefix = common_path(sites)
            ticks = [(x, site[len(prefix) :]) for x, site in places_of(sites)]
            name = "raw R²" if variant == "raw" else "beyond"
            title = f"{'Raw R²' if variant == 'raw' else 'Beyond the residual'} by site{tail}"
            foot = f"site under {prefix[:-1]}, first to last" if prefix else "site, first to last"
            series = _profile(found, places_of(sites), name, colour, variant)
            context = _context(model, variable, variant, places_of(sites))
            if context:
                series.insert(-1, context)
            figures.append(figure(title, series, axis, foot, ticks=ticks))
    if not figures:
        return '<p class="words">No fit readings to plot; see the table.</p>'
    return f'<div class="plots">{"".join(figures)}</div>{_undrawn(model)}'


def _undrawn(model: Model) -> str:
    """Says so when a site has several readings of one plotted kind, of which one is drawn."""
    keys = ("variable", "site", "variant")
    fits = [
        tuple(text_at(one, key) for key in keys)
        for one in readings_of(model)
        if one.get("gauge") == "fit" and one.get("variant") in ("raw", "beyond")
    ]
    more = len(fits) - len(set(fits))
    if not more:
        return ""
    return (
        f'<p class="note">{more} further readings share a site and variant with a drawn one; '
        "they stand in the table only.</p>"
    )


def comparison(models: list[Model]) -> str:
    """All models on one relative depth, in ``beyond`` where any has it, else in raw R².

    Beside them stands each model with its controls, on the same axis: in one plot with the
    others' they could not be told apart.
    """
    has = any(fits_of(m, v, "beyond") for m in models for v in variables_of(m))
    variant, axis = ("beyond", BEYOND_AXIS) if has else ("raw", _raw_axis(models))
    series: list[Series] = []
    panels: list[tuple[str, list[Series]]] = []
    without: list[str] = []
    for model in models:
        name = text_at(model, "name")
        drawn = False
        for variable in variables_of(model):
            found = fits_of(model, variable, variant)
            places = [(x, site) for x, site in places_of(depth_of(model)) if site in found]
            points = tuple(point_of(x, f"{name}, {s}", found[s], found[s]) for x, s in places)
            if points:
                look = "solid" if len(series) < len(COLOURS) else "dashed"
                label = name if len(variables_of(model)) == 1 else f"{name}, {variable}"
                series.append(Series(label, points, COLOURS[len(series) % len(COLOURS)], look))
                # One colour for all: some of theirs are those of the controls.
                panels.append((label, _profile(found, places, "trained", "--c1", variant)))
                drawn = True
        if not drawn:
            without.append(name)
    if not series:
        return ""
    gone = f"Without such a reading, so not drawn: {', '.join(without)}." if without else ""
    note = f'<p class="note">{escape(gone)}</p>' if gone else ""
    ticks = [(0.0, "0"), (0.25, "0.25"), (0.5, "0.5"), (0.75, "0.75"), (1.0, "1")]
    title = f"{'Beyond the residual' if has else 'Raw R²'} against relative depth"
    foot = "relative depth, first site to last"
    body = figure(title, series[::-1], axis, foot, ticks=ticks, note=note)
    return (
        f'<section class="card"><h2>All models</h2><div class="plots">{body}'
        f"{_beside_controls(panels, axis, variant)}</div></section>"
    )


def _beside_controls(panels: list[tuple[str, list[Series]]], axis: Axis, variant: str) -> str:
    """A small plot for each model with its controls; empty where there are none."""
    if all(len(series) == 1 for _, series in panels):
        return ""
    small = replace(axis, ticks=(0.0, 1.0))
    drawn = "".join(
        f"<div><code>{escape(name)}</code>"
        f"{plot(series, small, [(0.0, '0'), (1.0, '1')], '', name, is_small=True)}</div>"
        for name, series in panels
    )
    words = "Across: relative depth. "
    words += "The residual alone stands at 0." if variant == "beyond" else ""
    looks = {one.name: one for _, series in panels for one in series}
    return (
        "<figure><h3>Each model beside its controls</h3>"
        f'{legend(list(looks.values())[::-1])}<div class="panels wide">{drawn}</div>'
        f'<figcaption class="words">{words}</figcaption></figure>'
    )
