"""The report in a few sentences: what each model reads, and against fresh weights.

Holds: ``summary``.
May import: the standard library, ``secant.report.charts``, ``secant.report.curves``,
``secant.report.fields``.
"""

from __future__ import annotations

from secant.report.charts import escape, number
from secant.report.curves import Family, families, radii_of
from secant.report.fields import (
    Model,
    Reading,
    control_of,
    details_of,
    difference_of,
    finite,
    fits_of,
    interval_of,
    shown,
    text_at,
    variables_of,
)

NEAR_ONE = 0.95
"""From here on the residual alone explains the output so well that raw R² says little."""


def summary(models: list[Model]) -> str:
    """One item for each model, with a sentence for each question that was asked of it."""
    items = [_about(model) for model in models]
    body = f"<ul>{''.join(items)}</ul>" if items else "<p>The report holds no models.</p>"
    return f'<section class="card"><h2>In short</h2>{body}</section>'


def _about(model: Model) -> str:
    words = []
    for variable in variables_of(model):
        words += _fit_words(model, variable)
    if not words:
        words.append("No fit readings; see the table.")
    words += _curve_words(model)
    items = "".join(f"<li>{word}</li>" for word in words if word)
    return f"<li><strong>{escape(text_at(model, 'name'))}</strong><ul>{items}</ul></li>"


def _fit_words(model: Model, variable: str) -> list[str]:
    raw, beyond = fits_of(model, variable, "raw"), fits_of(model, variable, "beyond")
    if not raw and not beyond:
        return [f"Linear in {escape(variable)}: neither raw nor beyond was read; see the table."]
    words = [f"Linear in {escape(variable)}?"]
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
    found, name = (beyond, "beyond") if beyond else (raw, "raw R²")
    return [" ".join(words), _paired_words(found, name) or _overlap_words(found, name)]


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


# Against fresh weights ---------------------------------------------------------------------


def _paired_words(found: dict[str, Reading], name: str) -> str:
    """How many sites gained or lost linearity in training, and the largest change."""
    known = []
    for site, one in found.items():
        difference = difference_of(one, "fresh")
        value, (low, high) = finite(difference.get("value")), interval_of(difference)
        if value is not None and low is not None and high is not None:
            known.append((abs(value), site, value, low, high))
    if not known:
        return ""
    above, below = sum(one[3] > 0 for one in known), sum(one[4] < 0 for one in known)
    counts = (
        f"In {name} it is more linear than with fresh weights at "
        f"{above} of {len(known)} sites, less at {below}, and neither for certain at "
        f"{len(known) - above - below}."
    )
    clear = [one for one in known if one[3] > 0 or one[4] < 0]
    if not clear:
        return counts
    size, site, value, low, high = max(clear)
    low, high = sorted((abs(low), abs(high)))
    more = "more" if value > 0 else "less"
    return (
        f"{counts} The largest change is at <code>{escape(site)}</code>: {more} linear than fresh "
        f"by {number(size)} [{number(low)}, {number(high)}]."
    )


def _overlap_words(found: dict[str, Reading], name: str) -> str:
    """At how many sites the interval lies wholly above or below that of fresh weights."""
    above = below = compared = 0
    for one in found.values():
        low, high = interval_of(one)
        fresh_low, fresh_high = interval_of(control_of(one, "fresh"))
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


# Curves ------------------------------------------------------------------------------------


def _chosen(model: Model, gauge: str) -> Family | None:
    """The curves to speak of: the whole model's before blocks', data steps, beyond before raw."""
    found = [one for one in families(model) if one.gauge == gauge]
    return min(
        found,
        key=lambda one: (
            one.variable != "inputs",
            one.direction == "random",
            one.variant == "raw",
        ),
        default=None,
    )


def _what(family: Family) -> str:
    """The variable, and that the residual's share was left out where it was."""
    left_out = ", the residual left out" if family.variant == "beyond" else ""
    return f"(linear in {escape(family.variable)}{left_out})"


def _curve_words(model: Model) -> list[str]:
    words = []
    chord = _chosen(model, "chord")
    if chord is not None:
        words.append(_chord_words(chord))
    tangent = _chosen(model, "tangent")
    if tangent is not None:
        words.append(_radius_words(tangent, radii_of(model, tangent)))
    return words


def _chord_words(family: Family) -> str:
    """The bend at the middle as a share of the chord, t(1 - t) times the gauge."""
    at = min(family.places, key=lambda place: abs(place - 0.5))
    shares = {}
    for site, curve in family.curves.items():
        value = next((finite(one.get("value")) for place, one in curve if place == at), None)
        if value is not None:
            shares[site] = at * (1 - at) * value
    if not shares:
        return ""
    low, high = min(shares, key=lambda s: shares[s]), max(shares, key=lambda s: shares[s])
    where = "Halfway" if at == 0.5 else f"At {at:g} of the way"
    span = f"{_percent(shares[low])} of its length"
    if len(shares) > 1:
        span = (
            f"{_percent(shares[low])} (<code>{escape(low)}</code>) to {_percent(shares[high])} "
            f"(<code>{escape(high)}</code>) of its length"
        )
    return (
        f"{where} between two points its output leaves the straight line by {span} {_what(family)}."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 1 else f"{100 * share:.0f} %"


def _radius_words(family: Family, radii: dict[str, Reading]) -> str:
    """How far the tangent holds: one radius, or the range over sites and the censored ones."""
    if not radii:
        return ""
    sides = [details_of(one).get("censored") for one in radii.values()]
    known = {site: one for site, one in radii.items() if finite(one.get("value")) is not None}
    threshold = finite(details_of(next(iter(radii.values()))).get("threshold"))
    within = "its threshold" if threshold is None else _percent(threshold)
    ways = "random steps" if family.direction == "random" else "steps"
    says = []
    if known:
        one = next(iter(known.values()))
        span = _range(known) if len(radii) > 1 else escape(shown(one))
        says.append(f"up to {span} times the distance between two points")
    grid = f"{family.places[0]:.2g} to {family.places[-1]:.2g}"
    for side, words in (("past the grid", "on all of"), ("before the grid", "nowhere on")):
        count = sides.count(side)
        if count:
            at = f" at {count} of {len(radii)} sites" if len(radii) > 1 else ""
            says.append(f"{words} the grid from {grid}{at}")
    if not says:
        return ""
    return f"Its tangent is right to within {within} for {ways} {'; '.join(says)} {_what(family)}."
