"""Recurrent layers in time, as a terminal table.

Holds: ``TIME``, ``time_table``.
May import: rich, ``secant.readings``, ``secant.report.cells``.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from secant.readings import ModelReport, Reading
from secant.report.cells import number, with_interval

TIME = "time"


def time_table(report: ModelReport) -> Table:
    """One row a layer: the fit of its steps, how far it carries alone, what the state keeps."""
    table = Table(
        title=escape(f"{report.name}: in time, one linear step of state and input"),
        caption="raw: share of the next state that it explains; state, input: by either alone; "
        "beyond: what it adds to a plain decay of the state; ahead: rolled out alone so many "
        "steps, the longest read; ago: the input of so many steps ago, read off the state "
        "(today: off today's input); radius: largest modulus of its eigenvalues, 1 keeps for "
        "ever; ±: half-width of the 95 % interval",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("layer", overflow="fold", min_width=8)
    for name in ("raw R²", "state", "input", "beyond", "fresh", "ahead", "ago", "today", "radius"):
        table.add_column(name, justify="right", overflow="fold")
    found: dict[str, list[Reading]] = {}
    for one in report.readings:
        if one.variable == TIME:
            found.setdefault(one.site, []).append(one)
    for site, readings in found.items():
        fits = {one.variant: one for one in readings if one.gauge == "fit"}
        if "raw" not in fits:
            continue
        controls = fits["raw"].controls
        alone, driven = (
            number(controls.get(name, {}).get("value")) for name in ("state alone", "input alone")
        )
        fresh = number(fits["beyond"].controls.get("fresh", {}).get("value"))
        ahead = _farthest(one for one in readings if one.variant == "horizon")
        ago = _farthest(one for one in readings if one.gauge == "memory")
        today = "n/a" if ago is None else number(ago.controls["input"].get("value"))
        table.add_row(
            escape(site), with_interval(fits["raw"]), alone, driven, with_interval(fits["beyond"]),
            fresh, _at(ahead, "steps"), _at(ago, "lag"), today,
            with_interval(fits.get("spectral radius")),
        )  # fmt: skip
    return table


def _farthest(readings: Iterable[Reading]) -> Reading | None:
    return max(readings, key=lambda one: _place(one), default=None)


def _place(one: Reading) -> int:
    return int(one.details.get("steps") or one.details.get("lag") or 0)


def _at(one: Reading | None, what: str) -> str:
    return "n/a" if one is None else f"{number(one.value)}\nat {one.details[what]}"
