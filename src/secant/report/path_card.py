"""Two models compared, on the page: what is read along the line between them, and layer by layer.

Holds: ``is_path``, ``path_card``.
May import: the standard library, ``secant.report`` (charts, fields, profiles).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from secant.report.charts import Axis, Point, Series, escape, number
from secant.report.fields import (
    Model,
    Reading,
    control_of,
    details_of,
    finite,
    readings_of,
    reason_of,
    shown,
    text_at,
)
from secant.report.profiles import common_path, figure, places_of, point_of

WHOLE = "(model)"
QUARTERS = [(0.0, "0"), (0.25, ".25"), (0.5, ".5"), (0.75, ".75"), (1.0, "1")]
WORDS = {
    "loss": "Dotted is the straight line between the two models' losses; the barrier is the "
    "largest height of the curve above it.",
    "chord": "How far the outputs stray from the straight line between the two models' outputs, "
    "in units of t(1 − t) times their distance; 0 is straight.",
    "tangent": "The error of the first model's first-order expansion after a share ρ of the way, "
    "relative to the whole change; 1 is as wrong as predicting none.",
    "sum": "The change under both task vectors less each alone, relative to the two; 0 adds.",
    "displacement": "How far each tensor lies from the first model's, in norms of that tensor.",
    "cka": "Linear CKA on the same units: 1 is the same up to rotation and scale.",
}


def is_path(model: Model) -> bool:
    """Whether the readings compare two models."""
    return any(one.get("gauge") == "displacement" for one in readings_of(model))


def path_card(model: Model) -> str:
    """Sentences, then curves along the path, then profiles over layers; notes and warnings."""
    plots = [
        *_along(model, "loss", "Loss along the path"),
        *_along(model, "accuracy", "Share correct along the path"),
        *_along(model, "chord", "Off the chord, along the path"),
        *_steps(model, "tangent", "Off the tangent, along the displacement"),
        *_steps(model, "sum", "Task vectors that do not add"),
        *_profile(model, "displacement", "relative", "Displacement of each tensor"),
        *_profile(model, "cka", "linear", "Similarity of features"),
    ]
    about = f"{text_at(model, 'data')}: {text_at(model, 'units')} units"
    notes = "".join(f'<p class="words">{escape(str(n))}</p>' for n in model.get("notes") or [])
    return (
        f'<section class="card"><h2>{escape(text_at(model, "name"))}</h2>'
        f'<p class="meta">{escape(about)}</p>{_sentences(model)}{notes}'
        f'<p class="words">Bands and whiskers are 95 % intervals over groups of units. Random: a '
        "step as long in every tensor that goes anywhere. New weights: the same architecture, "
        f'drawn afresh.</p><div class="plots">{"".join(plots)}</div>{_warnings(model)}</section>'
    )


def _beside(reading: Reading) -> str:
    found = control_of(reading, "random")
    return f" (random {shown(found)})" if finite(found.get("value")) is not None else ""


def _sentences(model: Model) -> str:
    items = []
    for one in readings_of(model):
        gauge, variant, details = one.get("gauge"), text_at(one, "variant"), details_of(one)
        unit = str(details.get("unit") or "")
        if gauge == "barrier":
            worst = finite(details.get("worst_t"))
            is_there = worst is not None and finite(one.get("value"))
            where = f", highest at t = {worst:g}" if is_there else ""
            items.append(f"Barrier of the {variant}: {shown(one)} {unit}{where}{_beside(one)}.")
        elif (gauge, variant, one.get("site")) == ("displacement", "relative", WHOLE):
            fresh = finite(control_of(one, "fresh").get("value"))
            new = "" if fresh is None else f" (to new weights {number(fresh)})"
            items.append(f"The weights lie {shown(one)} of their own norm apart{new}.")
        elif (gauge, variant) == ("tangent", "explained"):
            told = f"The first order explains {shown(one)} of the outputs' change"
            items.append(f"{told}{_beside(one)}.")
        elif (gauge, variant) == ("kernel", "drift"):
            told = f"The kernel turned by {shown(one)}{_beside(one)}"
            items.append(f"{told}; 0 is the first model's up to scale, 1 shares nothing with it.")
        elif gauge == "kernel":
            end = variant.removeprefix("alignment ").upper()
            told = f"Alignment of {end}'s kernel with the labels"
            items.append(f"{told}: {shown(one)}{_beside(one)}.")
        elif gauge == "disentanglement":
            told = f"Adding the other's task vector changes the class of {shown(one)} of the units"
            items.append(f"{variant}: {told}{_beside(one)}.")
        elif gauge == "negation":
            name, what = variant.split(" ", 1)
            told = f"Taking the task vector of {name} from the base changes the {what} by"
            items.append(f"{told} {shown(one)} {unit}{_beside(one)}.")
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"


def _of(model: Model, gauge: str) -> list[Reading]:
    return [one for one in readings_of(model) if one.get("gauge") == gauge]


def _drawn(
    title: str, gauge: str, series: list[Series], ticks: list[tuple[float, str]], foot: str
) -> str:
    """A plot as high as the readings and their intervals; a control may leave it."""
    own = [point for one in series if one.look != "dashed" for point in one.points]
    values = [v for p in own for v in (p.value, p.low, p.high) if v is not None]
    axis = _axis(min(values, default=0.0), max(values, default=1.0), title)
    words = f'<p class="words">{escape(WORDS.get(gauge, ""))}</p>'
    return figure(title, series, axis, foot, ticks=ticks, note=words)


def _axis(low: float, high: float, name: str) -> Axis:
    """From 0, or below it where the values are, in steps of 1, 2 or 5."""
    low, high = min(low, 0.0), max(high, 1e-9)
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * part for part in (1, 2, 5, 10) if power * part >= rough)
    first = math.floor(low / step)
    last = math.ceil(high / step)
    ticks = tuple(round(place * step, 12) for place in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks, name)


def _along(model: Model, gauge: str, title: str) -> list[str]:
    """A curve against t, the random step's, and for the loss the line between its ends."""
    found = [(finite(details_of(one).get("t")), one) for one in _of(model, gauge)]
    by_variant: dict[str, list[tuple[float, Reading]]] = {}
    for t, one in found:
        if t is not None:
            by_variant.setdefault(text_at(one, "variant"), []).append((t, one))
    if not by_variant:
        return []
    # The ends with statistics as stored are a variant of their own, after the path's.
    curve = sorted(next(iter(by_variant.values())), key=lambda pair: pair[0])
    series = _curves([(t, f"t = {t:g}", one) for t, one in curve])
    ends = [finite(one.get("value")) for _, one in (curve[0], curve[-1])]
    if gauge == "loss" and None not in ends:
        points = tuple(
            Point(x, end, None, None, f"t = {x:g}: {number(end)}")
            for x, end in zip((0.0, 1.0), ends, strict=True)
        )
        series.insert(0, Series("straight line", points, "--soft", "dotted"))
    return [_drawn(title, gauge, series, QUARTERS, "t, from the first model to the second")]


def _steps(model: Model, gauge: str, title: str) -> list[str]:
    found = [
        (rho, one)
        for one in _of(model, gauge)
        if one.get("variant") == "raw" and (rho := finite(details_of(one).get("rho")))
    ]
    if len(found) < 2:
        return []
    low, high = (math.log(end) for end in (found[0][0], found[-1][0]))
    places = [((math.log(rho) - low) / (high - low), f"{rho:g}", one) for rho, one in found]
    series = _curves([(x, f"ρ = {label}", one) for x, label, one in places])
    ticks = [(x, label) for x, label, _ in places]
    return [_drawn(title, gauge, series, ticks, "ρ, share of the way")]


def _curves(places: Sequence[tuple[float, str, Reading]]) -> list[Series]:
    """The readings with their band and, under them, the random step's."""
    series = []
    beside = tuple(point_of(x, f"random, {at}", control_of(one, "random")) for x, at, one in places)
    if any(point.value is not None for point in beside):
        series.append(Series("random step", beside, "--c4", "dashed"))
    own = tuple(point_of(x, at, one, one) for x, at, one in places)
    return [*series, Series("these models", own, "--c1", "curve")]


def _profile(model: Model, gauge: str, variant: str, title: str) -> list[str]:
    """A reading over tensors or sites, in the model's order, beside that of new weights."""
    of_site = {
        text_at(one, "site"): one
        for one in _of(model, gauge)
        if one.get("variant") == variant and one.get("site") != WHOLE
    }
    if not of_site:
        return []
    places = places_of(list(of_site))
    prefix = common_path(list(of_site))
    fresh = tuple(
        point_of(x, f"{site}, new weights", control_of(of_site[site], "fresh"))
        for x, site in places
    )
    own = tuple(point_of(x, site, of_site[site], of_site[site]) for x, site in places)
    series = [Series("these models", own, "--c1", "solid")]
    if any(point.value is not None for point in fresh):
        series.insert(0, Series("new weights", fresh, "--fresh", "dashed"))
    ticks = [(x, site.removeprefix(prefix)) for x, site in places]
    under = f", under {prefix[:-1]}" if prefix else ""
    foot = ("tensor" if gauge == "displacement" else "site") + under
    return [_drawn(title, gauge, series, ticks, foot)]


def _warnings(model: Model) -> str:
    """Each warning once, with what it is of."""
    of: dict[str, list[str]] = {}
    for one in readings_of(model):
        if one.get("warnings"):
            of.setdefault(reason_of(one), []).append(
                f"{text_at(one, 'gauge')} {text_at(one, 'variant')}"
            )
    items = "".join(
        f'<li>{escape(reason)} <span class="meta">({escape(", ".join(dict.fromkeys(at)))})</span>'
        "</li>"
        for reason, at in of.items()
    )
    return f'<h3>Warnings</h3><ul class="warnings">{items}</ul>' if items else ""
