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
    return f"{_number(reading.value)} [dim]({_number(low)} to {_number(high)})[/dim]"


def _control(reading: Reading, name: str) -> str:
    control: dict[str, Any] = reading.controls.get(name, {})
    return _number(control.get("value"))


def render_terminal(report: ModelReport) -> Table:
    """One line a site: raw R² beside the residual alone, `beyond` beside its controls."""
    table = Table(title=escape(f"{report.name} on {report.data}: {report.units} units"))
    table.add_column("site")
    for name in ("raw R²", "residual alone", "beyond", "beyond, fresh", "beyond, shuffled"):
        table.add_column(name, justify="right")
    table.add_column("warnings")
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
