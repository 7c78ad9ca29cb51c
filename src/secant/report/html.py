"""A report as one HTML page: no network, no script, every control beside its reading.

Holds: ``render_html``.
May import: the standard library, ``secant.report.charts``,
``secant.report.fields``, ``secant.report.style``.
"""

from __future__ import annotations

import json
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
    LONGEST_REASON,
    Model,
    Reading,
    control_of,
    finite,
    fits_of,
    interval_of,
    readings_of,
    reason_of,
    shown,
    sites_of,
    text_at,
    variables_of,
)
from secant.report.style import CHART_CSS, PAGE_CSS

NEAR_ONE = 0.95
"""From here on the residual alone explains the output so well that raw R² says little."""
COLOURS = ("--c1", "--c2", "--c3", "--c4", "--c5", "--c6")
BEYOND_AXIS = Axis(-0.25, 1.0, (-0.25, 0, 0.25, 0.5, 0.75, 1), "beyond")

RAW_WORDS = (
    "Share of a site's output that one affine map of its input explains on held-out data. "
    "Near 1 an affine map does almost all of it; near 0 it does no better than the mean. "
    "Where the residual alone (hollow) is already near 1, a raw R² near 1 says little: "
    "scaling the input would score almost the same. Read it against the dashed controls."
)
BEYOND_WORDS = (
    "What the affine map adds to merely scaling the input. 1 is exactly affine; 0 means the best "
    "affine map is no better than scaling the input; below 0 it is worse on held-out data. "
    "A residual path cannot flatter this number, so it is the headline where input and output "
    "have one shape."
)


def render_html(report: dict[str, Any]) -> str:
    """The report as one self-contained page; every text in it is escaped."""
    models: list[Model] = list(report.get("models") or [])
    names = ", ".join(text_at(model, "name") for model in models) or "no models"
    several = len(models) > 1
    cards = "".join(_card(model, models) for model in models)
    tables = "".join(_table(model) for model in models)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>Secant report: {escape(names)}</title><style>{PAGE_CSS}{CHART_CSS}</style></head>"
        f"<body>{_header(report)}<main>{_summary(models)}"
        f"{_comparison(models) if several else ''}"
        f'<div class="cards">{cards}</div>'
        f'<section class="card"><h2>Every reading</h2>{tables or "<p>No readings.</p>"}</section>'
        f"</main>{_footer(report)}</body></html>\n"
    )


# Plots -----------------------------------------------------------------------------------


def _point(x: float, label: str, holder: dict[str, Any], reading: Reading | None = None) -> Point:
    value = finite(holder.get("value"))
    low, high = interval_of(holder)
    title = f"{label}: {shown(holder)}"
    if value is None and reading is not None:
        title += f" ({reason_of(reading)})"
    return Point(x, value, low, high, title)


def _places(sites: list[str]) -> list[tuple[float, str]]:
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
        points = tuple(_point(x, f"{s}, {label}", control_of(r, control)) for x, s, r in here)
        wanted = any(point.value is not None for point in points)
        if wanted and not (control == "residual" and name == "beyond"):
            look = "hollow" if control == "residual" else "dashed"
            series.append(Series(label, points, css, look))
    points = tuple(_point(x, f"{site}, {name}", r, r) for x, site, r in here)
    return [*series, Series(name, points, colour)]


def _raw_axis(models: list[Model]) -> Axis:
    """One range for the raw plots of all models, so that they can be laid side by side."""
    values = [
        finite(holder.get("value"))
        for model in models
        for one in readings_of(model)
        if one.get("gauge") == "fit" and one.get("variant") == "raw"
        for holder in (one, *(control_of(one, c) for c in ("residual", "fresh", "shuffled")))
    ]
    ticks = (0.0, 0.25, 0.5, 0.75, 1.0)
    if any(value is not None and value < 0 for value in values):
        return Axis(-0.25, 1.0, (-0.25, *ticks), "raw R²")
    return Axis(0.0, 1.0, ticks, "raw R²")


def _figure(
    title: str, series: list[Series], axis: Axis, foot: str, words: str, **more: Any
) -> str:
    """A plot under its title and legend, above what it means and what it leaves out."""
    gone = outside(series, axis)
    note = ""
    if gone:
        are = "1 point lies" if gone == 1 else f"{gone} points lie"
        span = f"{number(axis.low, 2)} to {number(axis.high, 2)}"
        note = f'<p class="note">{are} outside the drawn {span}: the arrows at the edge.</p>'
    drawn = plot(series, axis, more["ticks"], foot, title)
    return (
        f"<figure><h3>{escape(title)}</h3>{legend(series[::-1])}{drawn}"
        f'<figcaption>{note}<p class="words">{escape(words)}</p></figcaption></figure>'
    )


def _common(sites: list[str]) -> str:
    """The dotted path that every site starts with, to be said once, not at every tick."""
    parts = [site.split(".") for site in sites]
    shared = []
    for level in zip(*(one[:-1] for one in parts), strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return ".".join(shared) + "." if shared and len(sites) > 1 else ""


def _plots(model: Model, models: list[Model]) -> str:
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
            prefix = _common(sites)
            ticks = [(x, site[len(prefix) :]) for x, site in _places(sites)]
            name = "raw R²" if variant == "raw" else "beyond"
            title = f"{'Raw R²' if variant == 'raw' else 'Beyond the residual'} by site{tail}"
            foot = f"site under {prefix[:-1]}, first to last" if prefix else "site, first to last"
            series = _profile(found, _places(sites), name, colour)
            figures.append(_figure(title, series, axis, foot, words, ticks=ticks))
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


def _comparison(models: list[Model]) -> str:
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
            places = [(x, site) for x, site in _places(sites_of(model)) if site in found]
            points = tuple(_point(x, f"{name}, {s}", found[s], found[s]) for x, s in places)
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
    figure = _figure(title, series[::-1], axis, foot, words, ticks=ticks)
    return f'<section class="card"><h2>All models</h2><div class="single">{figure}</div></section>'


# Words and tables ------------------------------------------------------------------------


def _header(report: dict[str, Any]) -> str:
    return (
        "<header><h1>Secant report</h1><p>In which sense, where and how far these networks are "
        "linear: straight lines laid against each model, the gap read on held-out data, with "
        f'95&nbsp;% intervals and beside controls.</p><p class="meta">'
        f"{escape(text_at(report, 'created'))}</p></header>"
    )


def _footer(report: dict[str, Any]) -> str:
    versions = report.get("versions") or {}
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    seconds = finite((report.get("cost") or {}).get("seconds"))
    cost = "cost not recorded" if seconds is None else f"{seconds:,.1f} s"
    parts = (
        f"Schema {text_at(report, 'schema')}",
        f"seed {text_at(report, 'seed')}",
        listed or "versions not recorded",
        text_at(report, "hardware"),
        cost,
    )
    return f"<footer><p>{escape(' · '.join(parts))}</p></footer>"


def _summary(models: list[Model]) -> str:
    items = [
        f"<li>{_headline(model, variable)}</li>"
        for model in models
        for variable in variables_of(model) or ["?"]
    ]
    body = f"<ul>{''.join(items)}</ul>" if items else "<p>The report holds no models.</p>"
    return f'<section class="card"><h2>In short</h2>{body}</section>'


def _range(found: dict[str, Reading]) -> str:
    """The lowest and highest value with the sites that hold them, as escaped words."""
    values = {site: finite(one.get("value")) for site, one in found.items()}
    known = sorted((value, site) for site, value in values.items() if value is not None)
    if not known:
        return "n/a at every site"
    (low, low_site), (high, high_site) = known[0], known[-1]
    if len(known) == 1:
        return f"{number(low)} at <code>{escape(low_site)}</code>"
    return (
        f"{number(low)} (<code>{escape(low_site)}</code>) to "
        f"{number(high)} (<code>{escape(high_site)}</code>)"
    )


def _headline(model: Model, variable: str) -> str:
    raw, beyond = fits_of(model, variable, "raw"), fits_of(model, variable, "beyond")
    words = [f"<strong>{escape(text_at(model, 'name'))}</strong>, linear in {escape(variable)}?"]
    if beyond:
        words.append(f"Beyond the residual an affine map reads {_range(beyond)}.")
    if raw:
        words.append(f"Raw R² runs {_range(raw)}.")
        residuals = [finite(control_of(one, "residual").get("value")) for one in raw.values()]
        near = sum(value is not None and value >= NEAR_ONE for value in residuals)
        if near:
            words.append(
                f"At {near} of {len(raw)} sites the residual alone reads {NEAR_ONE} or more: "
                "there raw R² says little."
            )
    words.append(_against_fresh(beyond or raw, "beyond" if beyond else "raw R²"))
    if not raw and not beyond:
        words.append("No fit readings; see the table.")
    return " ".join(word for word in words if word)


def _against_fresh(found: dict[str, Reading], name: str) -> str:
    """At how many sites the interval lies wholly above or below that of fresh weights."""
    above = below = compared = 0
    for one in found.values():
        (low, high), (fresh_low, fresh_high) = (
            interval_of(one),
            interval_of(control_of(one, "fresh")),
        )
        if low is None or high is None or fresh_low is None or fresh_high is None:
            continue
        compared += 1
        above += low > fresh_high
        below += high < fresh_low
    if not compared:
        return ""
    unclear = compared - above - below
    return (
        f"In {name}, of {compared} sites with both intervals, {above} are more linear than with "
        f"fresh weights, {below} less, and at {unclear} the intervals overlap."
    )


def _card(model: Model, models: list[Model]) -> str:
    counts = ", ".join(f"{text_at(model, key)} {key}" for key in ("units", "rows"))
    sites = len(sites_of(model))
    about = f"{text_at(model, 'data')}: {counts}, {sites} site{'' if sites == 1 else 's'}"
    notes = "".join(f'<p class="words">{escape(str(n))}</p>' for n in model.get("notes") or [])
    return (
        f'<section class="card"><h2>{escape(text_at(model, "name"))}</h2>'
        f'<p class="meta">{escape(about)}</p>{notes}'
        f"{_plots(model, models)}{_warnings(model)}</section>"
    )


def _warnings(model: Model) -> str:
    """Warnings under their site; one that several readings share is said once."""
    found: dict[str, dict[str, list[str]]] = {}
    for one in readings_of(model):
        for warning in one.get("warnings") or []:
            at = found.setdefault(text_at(one, "site"), {}).setdefault(str(warning), [])
            at.append(f"{text_at(one, 'gauge')} {text_at(one, 'variant')}")
    if not found:
        return '<p class="words">No warnings.</p>'
    items = []
    for site in (site for site in sites_of(model) if site in found):
        lines = "".join(
            f'<li>{escape(warning)} <span class="meta">({escape(", ".join(dict.fromkeys(at)))})'
            "</span></li>"
            for warning, at in found[site].items()
        )
        items.append(f"<li><code>{escape(site)}</code><ul>{lines}</ul></li>")
    return f'<h3>Warnings</h3><ul class="warnings">{"".join(items)}</ul>'


def _table(model: Model) -> str:
    heads = ("Site", "Variable", "Gauge", "Variant")
    numbers = ("Value", "95 % interval", "Residual alone", "Fresh", "Shuffled", "Units", "Rows")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    head += "".join(f'<th scope="col" class="n">{name}</th>' for name in numbers)
    head += '<th scope="col">Warnings</th><th scope="col">Details</th>'
    rows = "".join(_row(one) for one in readings_of(model))
    name = escape(text_at(model, "name"))
    return (
        f'<h3>{name}</h3><div class="box" tabindex="0" role="region" '
        f'aria-label="Readings of {name}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _row(reading: Reading) -> str:
    value = finite(reading.get("value"))
    low, high = interval_of(reading)
    known = low is not None and high is not None
    samples = reading.get("samples") or {}
    cells = [
        number(value, 4),
        f"{number(low, 4)} to {number(high, 4)}" if known else "n/a",
        *(shown(control_of(reading, name)) for name in ("residual", "fresh", "shuffled")),
        text_at(samples, "units"),
        text_at(samples, "rows"),
    ]
    told = reason_of(reading) if value is None or reading.get("warnings") else ""
    details = json.dumps(reading.get("details") or {}, ensure_ascii=False, default=str)
    if len(details) > LONGEST_REASON:
        details = details[: LONGEST_REASON - 1] + "…"
    words = "".join(
        f"<td>{escape(text_at(reading, key))}</td>"
        for key in ("site", "variable", "gauge", "variant")
    )
    figures = "".join(f'<td class="n">{escape(cell)}</td>' for cell in cells)
    tail = "" if details == "{}" else f"<code>{escape(details)}</code>"
    return f'<tr>{words}{figures}<td class="w">{escape(told)}</td><td class="w">{tail}</td></tr>'
