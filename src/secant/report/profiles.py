"""Layer profiles: the fit at each site, beside its controls, and all models on one depth.

Holds: ``plots``, ``comparison``, ``figure``, ``point_of``, ``places_of``, ``common_path``.
May import: the standard library, ``secant.report.charts``, ``secant.report.fields``.
"""

from __future__ import annotations

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


RAW_WORDS = (
    "Share of a site's output that one affine map of its input explains on held-out data. "
    "Near 1 an affine map does almost all of it; near 0 it does no better than the mean. "
    "Where the residual alone (hollow) is already near 1, a raw R² near 1 says little: "
    "scaling the input would score almost the same. Read it against the dashed and dotted controls."
)
BEYOND_WORDS = (
    "What the affine map adds to merely scaling the input. 1 is exactly affine; 0 means the best "
    "affine map is no better than scaling the input; below 0 it is worse on held-out data. "
    "A residual path cannot flatter this number, so it is the headline where input and output "
    "have one shape."
)
CONTEXT_WORDS = (
    " With context, the fit also sees neighbours (the sequence mean and the previous row; in "
    "images the pixels that the block can see): what it gains is context, not nonlinearity."
)


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
    readings: dict[str, Reading], places: list[tuple[float, str]], name: str, colour: str
) -> list[Series]:
    """The reading's series and, first so that it lies on top, its controls'."""
    here = [(x, site, readings[site]) for x, site in places if site in readings]
    series = []
    for control, label, css in (
        ("shuffled", "shuffled weights", "--shuffled"),
        ("fresh", "fresh weights", "--fresh"),
        ("residual", "residual alone", "--residual"),
    ):
        points = tuple(point_of(x, f"{s}, {label}", control_of(r, control)) for x, s, r in here)
        wanted = any(point.value is not None for point in points)
        if wanted and not (control == "residual" and name == "beyond"):
            look = {"residual": "hollow", "fresh": "dashed"}.get(control, "dotted")
            series.append(Series(label, points, css, look))
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


def figure(title: str, series: list[Series], axis: Axis, foot: str, words: str, **more: Any) -> str:
    """A plot under its title and legend, above what it means and what it leaves out.

    `more`: `ticks`, and `threshold` as for `plot`; `note`, a line of HTML above the words.
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
        f'<figcaption>{note}<p class="words">{escape(words)}</p></figcaption></figure>'
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
        for variant, axis, words, colour in (
            ("raw", _raw_axis(models), RAW_WORDS, "--c1"),
            ("beyond", BEYOND_AXIS, BEYOND_WORDS, "--c2"),
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
            series = _profile(found, places_of(sites), name, colour)
            context = _context(model, variable, variant, places_of(sites))
            if context:
                series.insert(-1, context)
                words += CONTEXT_WORDS
            figures.append(figure(title, series, axis, foot, words, ticks=ticks))
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
    """All models on one relative depth, in ``beyond`` where any has it, else in raw R²."""
    has = any(fits_of(m, v, "beyond") for m in models for v in variables_of(m))
    variant, axis = ("beyond", BEYOND_AXIS) if has else ("raw", _raw_axis(models))
    series: list[Series] = []
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
                drawn = True
        if not drawn:
            without.append(name)
    if not series:
        return ""
    words = BEYOND_WORDS if has else RAW_WORDS
    if without:
        words += f" Without such a reading, so not drawn: {', '.join(without)}."
    ticks = [(0.0, "0"), (0.25, "0.25"), (0.5, "0.5"), (0.75, "0.75"), (1.0, "1")]
    title = f"{'Beyond the residual' if has else 'Raw R²'} against relative depth"
    foot = "relative depth, first site to last"
    body = figure(title, series[::-1], axis, foot, words, ticks=ticks)
    return f'<section class="card"><h2>All models</h2><div class="single">{body}</div></section>'
