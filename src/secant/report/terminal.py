"""A report as a terminal table.

Holds: ``render_terminal``.
May import: rich, ``secant.readings``.
"""

from __future__ import annotations

import math
from typing import Any

from rich.markup import escape
from rich.table import Table

from secant.readings import ModelReport, Reading


def _number(value: float | None) -> str:
    return "n/a" if value is None or not math.isfinite(value) else f"{value:.3f}"


def _with_interval(reading: Reading) -> str:
    if reading.interval is None:
        return _number(reading.value)
    low, high = reading.interval
    assert reading.value is not None
    return f"{_number(reading.value)} ±{max(high - reading.value, reading.value - low):.3f}"


def _control(reading: Reading, name: str) -> str:
    control: dict[str, Any] = reading.controls.get(name, {})
    return _number(control.get("value"))


def render_terminal(report: ModelReport) -> Table:
    """One line a site: raw R² beside the residual alone, `beyond` beside its controls."""
    caption = (
        "fresh, shuffled: `beyond` of the same architecture with new weights, and with "
        "each tensor's entries permuted; ±: half-width of the 95 % interval, its longer side"
    )
    table = Table(
        title=escape(f"{report.name} on {report.data}: {report.units} units"),
        caption=escape("\n".join([caption, *report.notes])),
    )
    table.add_column("site", overflow="fold", min_width=10)
    for name in ("raw R²", "residual alone", "beyond", "fresh", "shuffled"):
        table.add_column(name, justify="right")
    table.add_column("warn", justify="right")
    by_site: dict[str, dict[str, Reading]] = {}
    for reading in report.readings:
        by_site.setdefault(reading.site, {})[reading.variant] = reading
    for site, of_site in by_site.items():
        raw, beyond = of_site["raw"], of_site.get("beyond")
        table.add_row(
            escape(site),
            _with_interval(raw),
            _control(raw, "residual"),
            _with_interval(beyond) if beyond else "n/a",
            _control(beyond, "fresh") if beyond else "n/a",
            _control(beyond, "shuffled") if beyond else "n/a",
            str(len(raw.warnings) or ""),
        )
    return table
