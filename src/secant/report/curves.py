"""Curves against t and ρ, the radius by site, and pieces along a line.

Holds: ``curve_plots``, ``Family``, ``families``, ``radii_of``, ``LENGTHS``.
May import: the standard library, ``secant.report.charts``, ``secant.report.fields``,
``secant.report.profiles``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from secant.report.charts import Axis, Point, Series, decades, escape, legend, number, plot, rug
from secant.report.fields import (
    Model,
    Reading,
    bounds_of,
    censored_of,
    control_of,
    details_of,
    finite,
    missing_of,
    readings_of,
    shown,
    sites_of,
    text_at,
)
from secant.report.profiles import common_path, figure, places_of, point_of

CURVES = ("chord", "tangent", "sum", "homogeneity")
HIGHLIGHTS = ("--c1", "--c2", "--c3")
CONTROLS = (("shuffled", "shuffled weights", "dotted"), ("fresh", "fresh weights", "dashed"))
TICKS = (0.0, 0.1, 0.5, 1.0, 2.0)
LENGTHS = {
    "inputs": "median distances between two points",
    "weights": "norms of each tensor of weights",
}
"""What ρ = 1 is, by variable; in features as in inputs."""
TOP = 4.0
"""No curve is drawn higher: an error of four times the change says no more than an arrow does."""


@dataclass(frozen=True)
class Family:
    """The curves of one gauge and variant in one variable, by site, each in order of its place."""

    variable: str
    gauge: str
    direction: str
    variant: str
    curves: dict[str, list[tuple[float, Reading]]]

    @property
    def places(self) -> list[float]:
        """Every t or ρ at which some site was read."""
        return sorted({at for curve in self.curves.values() for at, _ in curve})

    @property
    def is_log(self) -> bool:
        """ρ has a logarithmic axis, t a plain one."""
        return self.gauge != "chord"


def families(model: Model) -> list[Family]:
    """The curves of a model: gauge by gauge, `raw` before `beyond`, sites in the model's order."""
    found: dict[tuple[str, str, str, str], dict[str, list[tuple[float, Reading]]]] = {}
    for one in readings_of(model):
        gauge, variant = one.get("gauge"), text_at(one, "variant")
        if gauge not in CURVES or variant not in ("raw", "beyond"):
            continue
        details = details_of(one)
        at = finite(details.get("t" if gauge == "chord" else "rho"))
        if at is None or (gauge != "chord" and at <= 0):
            continue
        direction = str(details.get("direction") or "")
        key = (text_at(one, "variable"), gauge, direction, variant)
        found.setdefault(key, {}).setdefault(text_at(one, "site"), []).append((at, one))
    made = []
    for (variable, gauge, direction, variant), curves in found.items():
        ordered = {
            site: sorted(curves[site], key=lambda pair: pair[0])
            for site in sites_of(model)
            if site in curves
        }
        made.append(Family(variable, gauge, direction, variant, ordered))
    return sorted(made, key=lambda one: CURVES.index(one.gauge))


def radii_of(model: Model, family: Family) -> dict[str, Reading]:
    """The radius readings that belong to a family of curves, by site."""
    variant = "radius" if family.variant == "raw" else "radius beyond"
    found: dict[str, Reading] = {}
    for one in readings_of(model):
        key = (one.get("variable"), one.get("gauge"), one.get("variant"))
        # A sum's curve may name no direction where its radius does: only two names can clash.
        direction = str(details_of(one).get("direction") or "")
        is_same = direction == family.direction or not (direction and family.direction)
        if key == (family.variable, family.gauge, variant) and is_same:
            found.setdefault(text_at(one, "site"), one)
    return found


def curve_plots(model: Model, models: list[Model]) -> str:
    """Every curve of a model; where `beyond` exists it is drawn and `raw` folded away."""
    tops = _tops(models)
    grouped: dict[tuple[str, str, str], dict[str, Family]] = {}
    for family in families(model):
        key = (family.variable, family.gauge, family.direction)
        grouped.setdefault(key, {})[family.variant] = family
    parts = []
    for of_variant in grouped.values():
        shown_first = of_variant.get("beyond") or of_variant["raw"]
        parts.append(_family(model, shown_first, tops))
        if len(of_variant) > 1:
            inner = _family(model, of_variant["raw"], tops)
            parts.append(
                f"<details><summary>{escape(_title(of_variant['raw']))}, the residual path "
                f"counted (raw)</summary>{inner}</details>"
            )
    for gauge, draw in (("pieces", _pieces), ("kernel", _kernel)):
        parts += [draw(one) for one in readings_of(model) if one.get("gauge") == gauge]
    body = "".join(parts)
    return f'<div class="plots">{body}</div>' if body else ""


# A family ----------------------------------------------------------------------------------


def _tops(models: list[Model]) -> dict[tuple[str, str, str], float]:
    """One range for each gauge over all models, so that they can be laid side by side."""
    tops: dict[tuple[str, str, str], float] = {}
    for family in (family for model in models for family in families(model)):
        key = (family.variable, family.gauge, family.variant)
        values = [finite(one.get("value")) for curve in family.curves.values() for _, one in curve]
        known = [value for value in values if value is not None]
        tops[key] = max([tops.get(key, 0.0), *known])
    return {key: _round_up(min(top, TOP)) for key, top in tops.items()}


def _round_up(top: float) -> float:
    return next(edge for edge in (0.2, 0.5, 1.0, 2.0, TOP) if top <= edge)


def _title(family: Family) -> str:
    names = {
        "chord": "Off the chord, against t",
        "tangent": "Off the tangent, against the step",
        "sum": "Changes that do not add, against the step",
        "homogeneity": "Changes that do not scale, against the step",
    }
    way = f", {family.direction}" if family.direction else ""
    way += " directions" if family.direction in ("data", "random") else ""
    return f"{names[family.gauge]} ({family.variable}{way})"


def _family(model: Model, family: Family, tops: dict[tuple[str, str, str], float]) -> str:
    top = tops[family.variable, family.gauge, family.variant]
    name = family.gauge + (" beyond" if family.variant == "beyond" else "")
    ticks = (*(tick for tick in TICKS if tick < 0.8 * top), top)
    axis = Axis(0.0, top, ticks, f"{name}, root scale", "root")
    radii = radii_of(model, family)
    threshold = _threshold(radii)
    series = _overview(family)
    series += _crossings(family, radii, series, threshold)
    drawn = figure(
        _title(family), series, axis, _foot(family),
        ticks=_ticks(family), threshold=threshold, note=_radius_note(family, radii),
    )  # fmt: skip
    parts = [drawn]
    if radii and len(family.curves) > 1:
        parts.append(_radius_profile(family, radii))
    if len(family.curves) > 1:
        parts.append(_panels(family, axis, threshold))
    return "".join(parts)


def _foot(family: Family) -> str:
    if not family.is_log:
        return "t, along the chord"
    return f"step ρ, in {LENGTHS.get(family.variable, LENGTHS['inputs'])}"


def _across(family: Family, at: float) -> float:
    places = family.places
    if not family.is_log:
        return at
    low, high = places[0], places[-1]
    return 0.5 if low == high else math.log(at / low) / math.log(high / low)


def _ticks(family: Family) -> list[tuple[float, str]]:
    if not family.is_log:
        return [(0.0, "0"), (0.25, ".25"), (0.5, ".5"), (0.75, ".75"), (1.0, "1")]
    places = family.places
    return [
        (_across(family, at), f"{at:.2g}".replace("0.", "."))
        for at in decades(places[0], places[-1])
    ]


def _curve(family: Family, site: str, name: str, control: str = "") -> tuple[Point, ...]:
    letter = "ρ" if family.is_log else "t"
    points = []
    for at, one in family.curves[site]:
        holder = control_of(one, control) if control else one
        label = f"{name}, {letter} = {at:.3g}"
        points.append(point_of(_across(family, at), label, holder, None if control else one))
    return tuple(points)


def _controls(family: Family, site: str, colour: str = "") -> list[Series]:
    made = []
    for control, label, look in CONTROLS:
        points = _curve(family, site, f"{site}, {label}", control)
        if any(point.value is not None for point in points):
            made.append(Series(label, points, colour or f"--{control}", look))
    return made


def _overview(family: Family) -> list[Series]:
    """One site beside its controls; of several the first, middle and last with fresh weights."""
    sites = list(family.curves)
    if len(sites) == 1:
        (site,) = sites
        return [*_controls(family, site), Series(site, _curve(family, site, site), "--c1", "curve")]
    chosen = dict.fromkeys((sites[0], sites[len(sites) // 2], sites[-1]))
    colours = dict(zip(chosen, HIGHLIGHTS, strict=False))
    series = []
    others = [site for site in sites if site not in colours]
    label = f"{len(others)} other sites" if len(others) > 1 else "the other site"
    series += [Series(label, _curve(family, site, site), "--soft", "faint") for site in others]
    for site, colour in list(colours.items())[::-1]:
        for one in _controls(family, site, colour):
            if one.look == "dashed":
                series.append(Series("fresh weights, same colour", one.points, colour, "dashed"))
    series += [
        Series(site, _curve(family, site, site), colour, "curve")
        for site, colour in list(colours.items())[::-1]
    ]
    return series


def _crossings(
    family: Family, radii: dict[str, Reading], series: list[Series], threshold: float | None
) -> list[Series]:
    """An open dot on each highlighted curve where it passes the threshold."""
    if threshold is None:
        return []
    places = family.places
    made = []
    for site, one in radii.items():
        at = finite(one.get("value"))
        drawn = [s for s in series if s.look == "curve" and s.name == site]
        if at is not None and drawn and places[0] <= at <= places[-1]:
            title = f"{site}, radius: {shown(one)}"
            point = Point(_across(family, at), threshold, None, None, title)
            made.append(Series("radius", (point,), drawn[0].colour, "hollow"))
    return made


def _panels(family: Family, axis: Axis, threshold: float | None) -> str:
    """Each site on its own beside both controls, folded away."""
    panels = []
    prefix = common_path(list(family.curves))
    ends = _ticks(family)
    ends = [ends[0], ends[-1]]
    series: list[Series] = []
    for site in family.curves:
        series = [
            *_controls(family, site),
            Series("trained", _curve(family, site, site), "--c1", "curve"),
        ]
        small = replace(axis, ticks=(axis.low, axis.high))
        drawn = plot(
            series, small, ends, "", f"{_title(family)}, {site}",
            threshold=threshold, is_small=True,
        )  # fmt: skip
        panels.append(f"<div><code>{escape(site[len(prefix) :])}</code>{drawn}</div>")
    return (
        f"<details><summary>Each site beside its controls</summary>{legend(series[::-1])}"
        f'<div class="panels">{"".join(panels)}</div></details>'
    )


# Radius ------------------------------------------------------------------------------------


def _threshold(radii: dict[str, Reading]) -> float | None:
    found = (finite(details_of(one).get("threshold")) for one in radii.values())
    return next((value for value in found if value is not None), None)


def _radius_note(family: Family, radii: dict[str, Reading]) -> str:
    """Where the threshold is passed, in words, for a map of one site."""
    if len(family.curves) > 1 or not radii:
        return ""
    ((_, one),) = list(radii.items())[:1]
    parts = [f"Radius, where the curve passes {number(_threshold(radii), 2)}: "
             f"{shown(one)}"]  # fmt: skip
    parts += _beside(one)
    return f'<p class="figure">{escape("; ".join(parts))}.</p>'


def _radius_point(x: float, label: str, holder: dict[str, Any], axis: Axis) -> Point:
    """A radius and its interval, whose whisker goes on to the edge where the grid shows no end."""
    low, high = bounds_of(holder)
    if low is not None or high is not None:
        low, high = (axis.low if low is None else low), (axis.high if high is None else high)
    value, title, arrow = finite(holder.get("value")), f"{label}: {shown(holder)}", ""
    if side := censored_of(holder):
        arrow = "up" if side == "past the grid" else "down"
        value = axis.high if arrow == "up" else axis.low
    if missing_of(holder):
        title += f" ({missing_of(holder)})"
    return Point(x, value, low, high, title, arrow)


def _radius_profile(family: Family, radii: dict[str, Reading]) -> str:
    sites = [site for site in family.curves if site in radii]
    low, high = family.places[0], family.places[-1]
    if low == high:
        return ""
    axis = Axis(low, high, tuple(decades(low, high)), "radius ρ", "log")
    places, prefix = places_of(sites), common_path(sites)
    series = []
    for control, label, look in CONTROLS:
        points = tuple(
            _radius_point(x, f"{site}, {label}", held, axis)
            for x, site in places
            for held in (control_of(radii[site], control),)
            if control in (radii[site].get("controls") or {})
        )
        if any(point.value is not None for point in points):
            series.append(Series(label, points, f"--{control}", look))
    points = tuple(_radius_point(x, site, radii[site], axis) for x, site in places)
    series.append(Series("trained", points, "--c1"))
    foot = f"site under {prefix[:-1]}, first to last" if prefix else "site, first to last"
    ticks = [(x, site[len(prefix) :]) for x, site in places]
    title = f"Radius by site: {_title(family)[0].lower()}{_title(family)[1:]}"
    return figure(title, series, axis, foot, ticks=ticks)


# Kernel ------------------------------------------------------------------------------------


def _kernel(reading: Reading) -> str:
    """The kernel's alignment with the labels in words: three numbers need no plot."""
    facts = [f"{text_at(reading, 'variant').capitalize()} {shown(reading)}", *_beside(reading)]
    return (
        f"<figure><h3>Kernel and labels ({escape(text_at(reading, 'variable'))})</h3><figcaption>"
        f'<p class="figure">{escape("; ".join(facts))}.</p></figcaption></figure>'
    )


def _beside(reading: Reading) -> list[str]:
    """What each control reads, in words."""
    return [
        f"{label} {shown(control_of(reading, control))}"
        for control, label, _ in CONTROLS[::-1]
        if control in (reading.get("controls") or {})
    ]


# Pieces ------------------------------------------------------------------------------------


def _pieces(reading: Reading) -> str:
    """A strip of breakpoints along one line, and the mean count beside its controls."""
    details = details_of(reading)
    listed = details.get("breakpoints")
    breaks = [t for t in map(finite, listed if isinstance(listed, list) else []) if t is not None]
    site = text_at(reading, "site")
    title = f"Pieces along a line ({text_at(reading, 'variable')}, {site})"
    pairs = (reading.get("samples") or {}).get("pairs")
    facts = [f"{len(breaks) + 1} piece{'s' if breaks else ''} on the line drawn"]
    facts.append(f"mean {shown(reading)}" + ("" if pairs is None else f" over {pairs} lines"))
    facts += _beside(reading)
    units = details.get("units")
    if units is not None:
        facts.append(f"{units} units that can bend")
    strip = rug(breaks, f"{title}: {len(breaks)} breakpoints")
    return (
        f'<figure><h3>{escape(title)}</h3>{strip}<figcaption><p class="figure">'
        f"{escape('; '.join(facts))}.</p></figcaption></figure>"
    )
