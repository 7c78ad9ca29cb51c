"""Reads a report's dictionary, where any field may be missing and any number null.

Holds: ``text_at``, ``finite``, ``interval_of``, ``control_of``, ``readings_of``, ``sites_of``,
``fits_of``, ``variables_of``, ``reason_of``, ``shown``, ``censored_of``, ``bounds_of``,
``bound_shown``, ``missing_of``, ``difference_of``, ``details_of``, ``depth_of``.
May import: the standard library, ``secant.report.charts``.
"""

from __future__ import annotations

import math
from typing import Any

from secant.report.charts import number

Reading = dict[str, Any]
Model = dict[str, Any]

LONGEST_REASON = 240


def text_at(holder: dict[str, Any], key: str) -> str:
    """A field as text, ``?`` where it is missing."""
    value = holder.get(key)
    return "?" if value is None else str(value)


def finite(value: object) -> float | None:
    """A finite number or None; JSON's null, NaN and infinities are all no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def interval_of(holder: dict[str, Any]) -> tuple[float | None, float | None]:
    """The two ends of an interval, None where there is none."""
    pair = holder.get("interval")
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        return None, None
    return finite(pair[0]), finite(pair[1])


def control_of(reading: Reading, name: str) -> dict[str, Any]:
    """A control as value and interval, whether it was stored as a number or as both."""
    found = (reading.get("controls") or {}).get(name)
    return found if isinstance(found, dict) else {"value": found}


def missing_of(control: dict[str, Any]) -> str:
    """Why a control has no number, empty where nothing was said."""
    found = control.get("missing")
    return "" if found is None else _shortened(str(found))


def difference_of(reading: Reading, name: str) -> dict[str, Any]:
    """The reading less a control, paired by groups, as the survey stored it."""
    found = control_of(reading, name).get("difference")
    return found if isinstance(found, dict) else {}


def details_of(reading: Reading) -> dict[str, Any]:
    """A reading's details, none where the field is missing."""
    found = reading.get("details")
    return found if isinstance(found, dict) else {}


def readings_of(model: Model) -> list[Reading]:
    """A model's readings, none where the field is missing."""
    return list(model.get("readings") or [])


def sites_of(model: Model) -> list[str]:
    """The sites in the model's order, then those that only readings name."""
    listed = [str(site) for site in model.get("sites") or []]
    return list(dict.fromkeys(listed + [text_at(one, "site") for one in readings_of(model)]))


def depth_of(model: Model) -> list[str]:
    """The sites that make up the model's depth: those listed, or else those with a fit."""
    fits = {text_at(one, "site") for one in readings_of(model) if one.get("gauge") == "fit"}
    listed = {str(site) for site in model.get("sites") or []}
    return [site for site in sites_of(model) if site in (listed or fits)]


def fits_of(model: Model, variable: str, variant: str) -> dict[str, Reading]:
    """The first ``fit`` reading of a variant at each site."""
    found: dict[str, Reading] = {}
    for one in readings_of(model):
        key = (one.get("gauge"), one.get("variable"), one.get("variant"))
        if key == ("fit", variable, variant):
            found.setdefault(text_at(one, "site"), one)
    return found


def variables_of(model: Model) -> list[str]:
    """The variables that have a ``fit`` reading, in their order."""
    fits = (one for one in readings_of(model) if one.get("gauge") == "fit")
    return list(dict.fromkeys(text_at(one, "variable") for one in fits))


def reason_of(reading: Reading) -> str:
    """Why a reading has no number, from its warnings."""
    reason = "; ".join(str(one) for one in reading.get("warnings") or [])
    return _shortened(reason) or "no reason was recorded"


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 1] + "…"


def censored_of(holder: dict[str, Any]) -> str:
    """On which side a radius, a reading or a control, lies off the grid; empty if on it."""
    return str((details_of(holder) or holder).get("censored") or "")


def bounds_of(holder: dict[str, Any]) -> tuple[float | None, float | None]:
    """What a radius, a reading or a control, is at least and at most, None where unbounded."""
    held = details_of(holder) or holder
    return finite(held.get("at_least")), finite(held.get("at_most"))


def bound_shown(holder: dict[str, Any]) -> str:
    """The end of a radius's interval that stands alone, in words; empty if both or none do."""
    low, high = bounds_of(holder)
    if finite(holder.get("value")) is not None and None not in (low, high):
        return ""
    ends = (("at least", low), ("at most", high))
    return " and ".join(f"{words} {number(end)}" for words, end in ends if end is not None)


def shown(holder: dict[str, Any]) -> str:
    """A value with its interval, in one line; n/a, or on which side it is censored."""
    low, high = interval_of(holder)
    value = censored_of(holder) or number(finite(holder.get("value")))
    if low is not None and high is not None:
        return f"{value} [{number(low)}, {number(high)}]"
    bound = bound_shown(holder)
    return f"{value} ({bound})" if bound else value
