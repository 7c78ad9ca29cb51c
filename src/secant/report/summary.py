"""The report in a few sentences: each question once, and what each model answers.

Holds: ``summary``.
May import: the standard library, ``secant.report.charts``, ``secant.report.curves``,
``secant.report.fields``.
"""

from __future__ import annotations

from secant.report.charts import escape, number
from secant.report.curves import LENGTHS, Family, families, radii_of
from secant.report.fields import (
    Model,
    Reading,
    bounds_of,
    censored_of,
    control_of,
    details_of,
    difference_of,
    finite,
    fits_of,
    interval_of,
    readings_of,
    shown,
    text_at,
    variables_of,
)

NEAR_ONE = 0.95
"""From here on the residual alone explains the output so well that raw R² says little."""
SAME = 0.0005
"""A difference that is surely smaller is 0.000 in the three digits that the page shows."""

Answers = list[tuple[str, str]]
"""Questions with what a model answers, both escaped."""


def summary(models: list[Model]) -> str:
    """One item for each question, with the models' answers; models that agree share one."""
    asked: dict[str, dict[str, list[str]]] = {}
    for model in models:
        name = f"<strong>{escape(text_at(model, 'name'))}</strong>"
        for answers in (_fits, _against_fresh, _chord, _tangent, _tangent_in_weights, _kernel):
            for question, answer in answers(model):
                asked.setdefault(question, {}).setdefault(answer, []).append(name)
    items = []
    for question, answered in asked.items():
        lines = "".join(
            f"<li>{', '.join(names)}: {answer}</li>" for answer, names in answered.items()
        )
        items.append(f"<li>{question}<ul>{lines}</ul></li>")
    body = f"<ul>{''.join(items)}</ul>" if items else "<p>The report holds no models.</p>"
    return f'<section class="card"><h2>In short</h2>{body}</section>'


# Fits --------------------------------------------------------------------------------------


def _fits(model: Model) -> Answers:
    found = []
    for variable in variables_of(model):
        raw, beyond = fits_of(model, variable, "raw"), fits_of(model, variable, "beyond")
        words = []
        if beyond:
            words.append(f"beyond the residual {_range(beyond)}.")
        if raw:
            words.append(f"Raw R² {_range(raw)}." if beyond else f"raw R² {_range(raw)}.")
            residuals = [finite(control_of(one, "residual").get("value")) for one in raw.values()]
            near = sum(value is not None and value >= NEAR_ONE for value in residuals)
            if near:
                words.append(
                    f"At {near} of {len(raw)} sites the residual alone reads {NEAR_ONE} or more: "
                    "there raw R² says little."
                )
        question = f"Linear in {escape(variable)}? What an affine map explains of a site's output"
        answer = " ".join(words) or "neither raw nor beyond was read; see the table."
        found.append((question, answer))
    return found or [("Linear in features?", "No fit readings; see the table.")]


def _range(found: dict[str, Reading]) -> str:
    """The lowest and highest reading with the sites that hold them, as escaped words."""
    values = {site: finite(one.get("value")) for site, one in found.items()}
    known = sorted((value, site) for site, value in values.items() if value is not None)
    if not known:
        return "n/a at every site"
    if len(known) == len(found) > 1 and number(known[0][0]) == number(known[-1][0]):
        return f"{number(known[0][0])} at each of {len(found)} sites"
    ends = dict.fromkeys((known[0][1], known[-1][1]))
    return " to ".join(
        f"{escape(shown(found[site]))} (<code>{escape(site)}</code>)" for site in ends
    )


# Against fresh weights ---------------------------------------------------------------------


def _against_fresh(model: Model) -> Answers:
    found = []
    for variable in variables_of(model):
        beyond = fits_of(model, variable, "beyond")
        name = "beyond" if beyond else "raw R²"
        readings = beyond or fits_of(model, variable, "raw")
        question = f"More linear in {escape(variable)} ({name}) than with fresh weights?"
        answer = _paired_words(readings) or _overlap_words(readings)
        found += [(question, answer)] if answer else []
    return found


def _paired_words(found: dict[str, Reading]) -> str:
    """How many sites gained or lost linearity in training, and the largest change."""
    known = []
    for site, one in found.items():
        difference = difference_of(one, "fresh")
        value, (low, high) = finite(difference.get("value")), interval_of(difference)
        if value is not None and low is not None and high is not None:
            known.append((abs(value), site, value, low, high))
    if not known:
        return ""
    sites = f"{len(known)} site{'' if len(known) == 1 else 's'}"
    largest = max(max(abs(low), abs(high)) for *_, low, high in known)
    if largest < SAME:
        return f"they do not differ, to within {SAME} at each of {sites}."
    above, below = sum(one[3] > 0 for one in known), sum(one[4] < 0 for one in known)
    if not above and not below:
        return f"no difference is certain at any of {sites}; none exceeds {number(largest)}."
    counts = {"more at": above, "less at": below, "uncertain at": len(known) - above - below}
    told = ", ".join(f"{words} {count}" for words, count in counts.items() if count)
    _, site, value, low, high = max(one for one in known if one[3] > 0 or one[4] < 0)
    low, high = sorted((abs(low), abs(high)))
    return (
        f"{told} of {sites}; most at <code>{escape(site)}</code>, "
        f"{'more' if value > 0 else 'less'} by {number(abs(value))} "
        f"[{number(low)}, {number(high)}]."
    )


def _overlap_words(found: dict[str, Reading]) -> str:
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
    return (
        f"of {compared} sites with both intervals, more at {above}, less at {below}, and at "
        f"{compared - above - below} the intervals overlap."
    )


# Curves ------------------------------------------------------------------------------------


def _chosen(model: Model, gauge: str) -> Family | None:
    """The curves to speak of: the whole model's before blocks', data steps, beyond before raw."""
    found = [one for one in families(model) if one.gauge == gauge and one.variable != "weights"]
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
    return f"Linear in {escape(family.variable)}{left_out}?"


def _chord(model: Model) -> Answers:
    """The bend at the middle as a share of the chord, t(1 - t) times the gauge."""
    family = _chosen(model, "chord")
    if family is None:
        return []
    at = min(family.places, key=lambda place: abs(place - 0.5))
    shares = {}
    for site, curve in family.curves.items():
        one = next((one for place, one in curve if place == at), {})
        value = finite(one.get("value"))
        if value is not None:
            low, high = interval_of(one)
            shares[site] = [None if n is None else at * (1 - at) * n for n in (value, low, high)]
    if not shares:
        return []
    known = sorted((ends[0] or 0.0, site) for site, ends in shares.items())
    span = " to ".join(
        _percent(*shares[site]) + (f" (<code>{escape(site)}</code>)" if len(shares) > 1 else "")
        for site in dict.fromkeys((known[0][1], known[-1][1]))
    )
    where = "halfway" if at == 0.5 else f"at {at:g} of the way"
    question = (
        f"{_what(family)} How far {where} between two points the output leaves the straight line, "
        "as a share of its length"
    )
    return [(question, f"{span}.")]


def _percent(share: float | None, low: float | None = None, high: float | None = None) -> str:
    """A share in per cent, and its interval."""
    if share is None:
        return "n/a"
    ends = [f"{100 * n:.2g}" if n < 1 else f"{100 * n:.0f}" for n in (low, high) if n is not None]
    text = f"{100 * share:.2g} %" if share < 1 else f"{100 * share:.0f} %"
    return f"{text} [{', '.join(ends)}]" if len(ends) == 2 else text


def _tangent(model: Model) -> Answers:
    """How far the tangent holds: one radius, or the range over sites and the censored ones."""
    family = _chosen(model, "tangent")
    return [] if family is None else _reach(model, family)


def _tangent_in_weights(model: Model) -> Answers:
    """How far the weights can move at random while the tangent holds, beside fresh weights."""
    found = [one for one in families(model) if (one.variable, one.gauge) == ("weights", "tangent")]
    return _reach(model, found[0]) if found else []


def _reach(model: Model, family: Family) -> Answers:
    radii = radii_of(model, family)
    if not radii:
        return []
    threshold = finite(details_of(next(iter(radii.values()))).get("threshold"))
    within = "its threshold" if threshold is None else _percent(threshold)
    ways = "random steps" if family.direction == "random" else "steps"
    known = {site: one for site, one in radii.items() if finite(one.get("value")) is not None}
    says = []
    if known:
        one = next(iter(known.values()))
        says.append(f"up to {_range(known) if len(radii) > 1 else escape(shown(one))}")
    start, end = family.places[0], family.places[-1]
    for side, words in (
        ("past the grid", f"beyond {end:.2g}, the longest tried"),
        ("before the grid", f"not even {start:.2g}, the shortest tried"),
    ):
        held = [one for one in radii.values() if censored_of(one) == side]
        if held:
            of = f" at {len(held)} of {len(radii)} sites" if len(radii) > 1 else ""
            says.append(words + (of or _inside(held[0], start, end)))
    if not says:
        return []
    question = (
        f"{_what(family)} For which {ways} the tangent is right to within {within}, in "
        f"{LENGTHS.get(family.variable, LENGTHS['inputs'])}"
    )
    return [(question, "; ".join(says) + ".")]


def _kernel(model: Model) -> Answers:
    """The alignment beside that of fresh weights."""
    question = "Does the tangent kernel know the classes? Its alignment with them"
    found = []
    for one in readings_of(model):
        if (one.get("gauge"), one.get("variant")) == ("kernel", "alignment"):
            fresh = control_of(one, "fresh")
            beside = f" (fresh weights {shown(fresh)})" if fresh.get("value") is not None else ""
            found.append((question, escape(f"{shown(one)}{beside}.")))
    return found


def _inside(radius: Reading, start: float, end: float) -> str:
    """The end of a censored radius's interval that lies inside the grid, in words."""
    low, high = bounds_of(radius)
    if low is not None and low < end:
        return f" (at least {number(low)})"
    return f" (at most {number(high)})" if high is not None and high > start else ""
