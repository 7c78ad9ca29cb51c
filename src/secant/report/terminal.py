"""A report, or two reports compared, as a terminal table.

Holds: ``render_terminal``, ``render_comparison``.
May import: rich, ``secant.readings``, ``secant.comparisons``.
"""

from __future__ import annotations

import math
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from secant.comparisons import Comparison, Difference
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


MOST_NAMED = 10


def render_comparison(found: Comparison, threshold: float, top: int) -> list[Table | str]:
    """The `top` largest differences, those that exceed first, then what was left out and why."""
    exceeding = {id(one) for one in found.exceeding(threshold)}
    order = sorted(
        found.differences, key=lambda one: (id(one) not in exceeding, -abs(one.value or 0))
    )
    shown, parts = order[:top], list[Table | str]()
    for model in dict.fromkeys(one.model for one in shown):
        of_model = [one for one in shown if one.model == model]
        parts.append(_difference_table(model, of_model, exceeding))
    if len(order) > top:
        parts.append(f"{len(order) - top} smaller differences are not shown; see --top.")
    parts += [escape(note) for note in found.notes]
    for side, names in (("before", found.only_a), ("after", found.only_b)):
        if names:
            more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
            parts.append(escape(f"Only in {side}: {'; '.join(names[:MOST_NAMED])}{more}."))
    lost = sum((one.a is None) != (one.b is None) for one in found.differences)
    parts.append(
        f"{len(exceeding)} of {len(order)} readings differ by more than {threshold:g}"
        + (f", {lost} of them because only one report has a number there." if lost else ".")
    )
    return parts


def _difference_table(model: str, differences: list[Difference], exceeding: set[int]) -> Table:
    table = Table(
        title=escape(model),
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        caption="difference: after less before, with its 95 % interval; paired: both were read on "
        "the same groups of units; *: exceeds the threshold and its interval excludes 0",
    )
    for head in ("", "site", "reading", "before", "after", "differs by", "interval", ""):
        # Numbers must never be cut; names may fold.
        is_name = head in ("site", "reading")
        table.add_column(head, overflow="fold", no_wrap=not is_name)
    several = len({one.variable for one in differences}) > 1
    for one in differences:
        mark = "*" if id(one) in exceeding else ""
        table.add_row(mark, *map(escape, _difference_row(one, several)))
    return table


def _difference_row(one: Difference, has_variable: bool) -> tuple[str, ...]:
    place = "".join(f" {key} {value}" for key, value in one.place.items())
    reading = f"{one.gauge} {one.variant}{place}" + (f" ({one.variable})" if has_variable else "")
    # Adding 0 turns the -0 of a small rounded number into 0.
    value = "n/a" if one.value is None else f"{round(one.value, 3) + 0.0:+.3f}"
    span, how = "none", ""
    if one.interval is not None:
        low, high = (round(end, 3) + 0.0 for end in one.interval)
        span, how = f"[{low:.3f}, {high:.3f}]", one.how
    return one.site, reading, _number(one.a), _number(one.b), value, span, how
