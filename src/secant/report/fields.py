"""Reads a report's dictionary, where any field may be missing and any number null.

Holds: ``text_at``, ``finite``, ``interval_of``, ``control_of``, ``readings_of``, ``sites_of``,
``fits_of``, ``variables_of``, ``reason_of``, ``shown``.
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


def readings_of(model: Model) -> list[Reading]:
    """A model's readings, none where the field is missing."""
    return list(model.get("readings") or [])


def sites_of(model: Model) -> list[str]:
    """The sites in the model's order, then those that only readings name."""
    listed = [str(site) for site in model.get("sites") or []]
    return list(dict.fromkeys(listed + [text_at(one, "site") for one in readings_of(model)]))


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
    if len(reason) > LONGEST_REASON:
        reason = reason[: LONGEST_REASON - 1] + "…"
    return reason or "no reason was recorded"


def shown(holder: dict[str, Any]) -> str:
    """A value with its interval, in one line."""
    low, high = interval_of(holder)
    value = number(finite(holder.get("value")))
    return value if low is None or high is None else f"{value} [{number(low)}, {number(high)}]"
