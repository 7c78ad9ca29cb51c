"""A number in a cell of a terminal table.

Holds: ``number``, ``with_interval``.
May import: ``secant.readings``.
"""

from __future__ import annotations

from typing import Any

from secant.readings import Reading


def number(value: float | None) -> str:
    """Three digits, ``n/a`` where there is no number."""
    return "n/a" if value is None else f"{value:.3f}"


def with_interval(held: dict[str, Any] | Reading | None) -> str:
    """A number over the half-width of its interval, the longer side."""
    if held is None:
        return "n/a"
    value, interval = (
        (held.value, held.interval)
        if isinstance(held, Reading)
        else (held.get("value"), held.get("interval"))
    )
    if value is None or interval is None:
        return number(value)
    return f"{number(value)}\n±{max(interval[1] - value, value - interval[0]):.3f}"
