"""Every reading of a report in tables, folded by model and gauge.

Holds: ``tables``.
May import: the standard library, ``secant.report.charts``, ``secant.report.fields``.
"""

from __future__ import annotations

from typing import Any

from secant.report.charts import escape, number
from secant.report.fields import (
    LONGEST_REASON,
    Model,
    Reading,
    bound_shown,
    censored_of,
    control_of,
    details_of,
    difference_of,
    finite,
    interval_of,
    missing_of,
    readings_of,
    reason_of,
    shown,
    text_at,
)

PLACES = ("t", "rho", "scale", "direction")
LONGEST_LIST = 8
"""Longer lists (sums by group, breakpoints) stand in the JSON; here only their length does."""
CONTROLS = (
    ("residual", "Residual alone"),
    ("fresh", "Fresh"),
    ("shuffled", "Shuffled"),
    ("random", "Random step"),
)
Column = tuple[str, str]


def tables(model: Model) -> str:
    """The readings of one model, a folded table for each gauge."""
    by_gauge: dict[str, list[Reading]] = {}
    for one in readings_of(model):
        by_gauge.setdefault(text_at(one, "gauge"), []).append(one)
    name = escape(text_at(model, "name"))
    parts = []
    for gauge, readings in by_gauge.items():
        count = f"{len(readings)} reading{'' if len(readings) == 1 else 's'}"
        about = f"{name}, {escape(gauge)}"
        parts.append(
            f"<details><summary>{about}: {count}</summary>"
            f'<div class="box" tabindex="0" role="region" aria-label="Readings of {about}">'
            f"{_table(readings)}</div></details>"
        )
    body = "".join(parts) or "<p>No readings.</p>"
    return f"<h3>{name}</h3>{body}"


def _table(readings: list[Reading]) -> str:
    """Columns that no reading of this gauge fills are left out."""
    names = [name for name, _ in CONTROLS if any(name in _controls(one) for one in readings)]
    paired = [name for name in names if any(difference_of(one, name) for one in readings)]
    heads = ["Site", "Variable", "Variant"]
    places = [
        key for key in PLACES if any(details_of(one).get(key) is not None for one in readings)
    ]
    heads += [{"rho": "ρ"}.get(key, key) for key in places]
    titles = dict(CONTROLS)
    figures = ["Value", "95 % interval"]
    for name in names:
        figures.append(titles[name])
        if name in paired:
            figures.append(f"Less {titles[name].lower()}")
    counts = list(dict.fromkeys(str(key) for one in readings for key in one.get("samples") or {}))
    figures += [key.capitalize() for key in counts]
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    head += "".join(f'<th scope="col" class="n">{escape(name)}</th>' for name in figures)
    head += '<th scope="col">Warnings</th><th scope="col">Details</th>'
    rows = "".join(_row(one, places, names, paired, counts) for one in readings)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _controls(reading: Reading) -> dict[str, Any]:
    return reading.get("controls") or {}


def _row(
    reading: Reading, places: list[str], names: list[str], paired: list[str], counts: list[str]
) -> str:
    details = details_of(reading)
    value = finite(reading.get("value"))
    low, high = interval_of(reading)
    known = low is not None and high is not None
    words = [text_at(reading, key) for key in ("site", "variable", "variant")]
    words += ["" if details.get(key) is None else _brief(details[key]) for key in places]
    censored = censored_of(reading)
    cells = [
        censored or number(value, 4),
        f"{number(low, 4)} to {number(high, 4)}" if known else bound_shown(reading) or "n/a",
    ]
    for name in names:
        cells.append(_control(reading, name))
        if name in paired:
            difference = difference_of(reading, name)
            cells.append(shown(difference) if difference else "n/a")
    samples = reading.get("samples") or {}
    cells += [text_at(samples, key) for key in counts]
    is_unexplained = value is None and not censored
    told = reason_of(reading) if is_unexplained or reading.get("warnings") else ""
    left = {key: held for key, held in details.items() if key not in places}
    return (
        "<tr>"
        + "".join(f"<td>{escape(word)}</td>" for word in words)
        + "".join(f'<td class="n">{escape(cell)}</td>' for cell in cells)
        + f'<td class="w">{escape(told)}</td><td class="w">{escape(_told(left))}</td></tr>'
    )


def _control(reading: Reading, name: str) -> str:
    if name not in _controls(reading):
        return "–"
    control = control_of(reading, name)
    missing = missing_of(control)
    return f"{shown(control)} ({missing})" if missing else shown(control)


def _told(details: dict[str, Any]) -> str:
    text = ", ".join(
        f"{key} {_brief(held)}" for key, held in details.items() if not _is_clutter(key, held)
    )
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 1] + "…"


def _is_clutter(key: str, held: Any) -> bool:
    """Null says nothing, bounds stand in their column, and sums by group serve no reader."""
    return held is None or key in ("at_least", "at_most") or str(key).endswith("_by_group")


def _brief(held: Any) -> str:
    if isinstance(held, float):
        return f"{held:.4g}"
    if isinstance(held, (list, tuple)):
        if len(held) > LONGEST_LIST:
            return f"({len(held)} values)"
        return "[" + ", ".join(_brief(one) for one in held) + "]"
    return str(held)
