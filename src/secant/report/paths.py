"""Two models compared, as terminal tables.

Holds: ``render_paths``, ``path_table``, ``sentences``, ``shown``.
May import: rich, ``secant.readings``, ``secant.report.profiles``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from secant.readings import ModelReport, Reading
from secant.report.profiles import common_path

WHOLE = "(model)"
MOST_TENSORS = 12
MOST_WARNINGS = 8
STORED = "statistics as stored"
TASK_VECTORS = ("sum", "disentanglement", "negation")


def render_paths(report: ModelReport) -> list[Table | str]:
    """The sentences, what is read along the path, the tangent, the layers; notes and warnings."""
    along = [one for one in report.readings if one.gauge in ("loss", "accuracy", "chord")]
    along = [one for one in along if STORED not in one.variant]
    parts: list[Table | str] = [path_table(report, along), *map(escape, sentences(report.readings))]
    tangents = [one for one in report.readings if (one.gauge, one.variant) == ("tangent", "raw")]
    if tangents:
        parts.append(_tangents(tangents))
    vectors = [one for one in report.readings if one.gauge in TASK_VECTORS]
    if vectors:
        parts.append(_task_vectors(vectors))
    parts.append(_displacement(report.readings))
    if any(one.gauge == "cka" for one in report.readings):
        parts.append(_similarity([one for one in report.readings if one.gauge == "cka"]))
    parts += [f"[bold]{escape(note)}[/bold]" for note in report.notes]
    return parts + [escape(line) for line in _warnings(report.readings)]


def _number(value: float | None, sign: str = "") -> str:
    if value is None:
        return "n/a"
    if value != 0 and not 1e-3 <= abs(value) < 1e4:
        return f"{value:{sign}.1e}"
    return f"{value:{sign}.3f}"


def shown(held: Reading | dict[str, Any] | None, sign: str = "") -> str:
    """A value and the longer half of its interval."""
    if held is None:
        return "-"
    value, interval = (
        (held.value, held.interval)
        if isinstance(held, Reading)
        else (held.get("value"), held.get("interval"))
    )
    if value is None or interval is None:
        return _number(value, sign)
    return f"{_number(value, sign)} ±{_number(max(interval[1] - value, value - interval[0]))}"


def _random(reading: Reading | None) -> dict[str, Any] | None:
    return None if reading is None else reading.controls.get("random")


def _table(title: str, caption: str, heads: Sequence[str]) -> Table:
    table = Table(title=escape(title), caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place else "left", overflow="fold")
    return table


def path_table(report: ModelReport, along: Sequence[Reading]) -> Table:
    """What is read at every point of the path."""
    found = {(one.gauge, one.details["t"]): one for one in along}
    ts = sorted({t for _, t in found})
    gauges = [g for g in ("loss", "accuracy", "chord") if any(key[0] == g for key in found)]
    with_random = [g for g in gauges if any(_random(found.get((g, t))) for t in ts)]
    heads = ["t"]
    for gauge in gauges:
        heads += [gauge, "random"] if gauge in with_random else [gauge]
    table = _table(
        f"{report.name} on {report.data}: {report.units} units",
        "t: how far from the first model to the second; chord: bend of the outputs over t(1-t) of "
        "their change, 0 is straight; random: a step as long in every tensor that goes anywhere; "
        "±: half-width of the 95 % interval, its longer side",
        heads,
    )
    for t in ts:
        cells = [f"{t:g}"]
        for gauge in gauges:
            one = found.get((gauge, t))
            cells.append(shown(one))
            if gauge in with_random:
                cells.append(_number((_random(one) or {}).get("value")) if one else "-")
        table.add_row(*cells)
    return table


def sentences(readings: Sequence[Reading]) -> list[str]:
    """Barrier, displacement, first order and kernel, a line each."""
    lines = []
    for one in readings:
        beside = _random(one)
        control = "" if beside is None else f" (random {shown(beside)})"
        if one.gauge == "barrier":
            worst = one.details["worst_t"]
            unit = one.details["unit"]
            where = "" if worst is None or not one.value else f", highest at t = {worst:g}"
            what = "loss" if one.variant == "loss" else "error"
            lines.append(f"Barrier of the {what}: {shown(one)} {unit}{where}{control}.")
        elif (one.gauge, one.site, one.variant) == ("displacement", WHOLE, "relative"):
            fresh = one.controls.get("fresh", {}).get("value")
            new = "" if fresh is None else f" (to new weights {_number(fresh)})"
            lines.append(f"The weights lie {shown(one)} of their own norm apart{new}.")
        elif (one.gauge, one.variant) == ("tangent", "explained"):
            lines.append(f"The first order explains {shown(one)} of the outputs' change{control}.")
        elif (one.gauge, one.variant) == ("kernel", "drift"):
            lines.append(f"The kernel turned by {shown(one)}{control}; 0 is not at all, 1 wholly.")
        elif one.gauge == "kernel":
            end = one.variant.removeprefix("alignment ").upper()
            lines.append(f"Alignment of {end}'s kernel with the labels: {shown(one)}{control}.")
    return lines


def _tangents(readings: Sequence[Reading]) -> Table:
    table = _table(
        "First-order error along the displacement",
        "ρ: share of the way; 0: the outputs follow their tangent, 1: an error as large as the "
        "change",
        ["ρ", "tangent", "random"],
    )
    for one in readings:
        table.add_row(f"{one.details['rho']:g}", shown(one), shown(_random(one)))
    return table


def _task_vectors(readings: Sequence[Reading]) -> Table:
    table = _table(
        "Task vectors",
        "sum: the two together less each alone, 0 where they add; disentanglement: share whose "
        "class changes when the other's vector is added; negation: change from the base when the "
        "vector is taken away; random: vectors as long in every tensor",
        ["", "", "random"],
    )
    for one in readings:
        if one.variant.startswith("radius"):
            continue
        rho = one.details.get("rho")
        name = f"{one.gauge} {one.variant}" if rho is None else f"sum at ρ = {rho:g}"
        sign = "+" if one.gauge == "negation" else ""
        table.add_row(name, shown(one, sign), shown(_random(one), sign))
    return table


def _displacement(readings: Sequence[Reading]) -> Table:
    """The tensors that moved furthest."""
    moved: dict[str, dict[str, Reading]] = {}
    for one in readings:
        if one.gauge == "displacement" and one.site != WHOLE:
            moved.setdefault(one.site, {})[one.variant] = one
    order = sorted(moved, key=lambda site: -(moved[site]["norm"].value or 0))
    prefix = common_path(order)
    left = len(order) - MOST_TENSORS
    more = f"; {left} that moved less stand in the JSON" if left > 0 else ""
    table = _table(
        "Displacement of each tensor" + (f", under {prefix[:-1]}" if prefix else ""),
        f"relative: to the first model's norm; fresh: the same to new weights{more}",
        ["tensor", "norm", "relative", "fresh", "share"],
    )
    for site in order[:MOST_TENSORS]:
        norm, relative, share = (moved[site][key] for key in ("norm", "relative", "share"))
        fresh = relative.controls.get("fresh", {}).get("value")
        cells = (_number(norm.value), _number(relative.value), _number(fresh), _number(share.value))
        table.add_row(escape(site.removeprefix(prefix)), *cells)
    return table


def _similarity(readings: Sequence[Reading]) -> Table:
    prefix = common_path([one.site for one in readings])
    table = _table(
        "Similarity of features" + (f", sites under {prefix[:-1]}" if prefix else ""),
        "linear CKA on the same units: 1 the same up to rotation and scale; fresh: the first model "
        "against new weights",
        ["site", "CKA", "fresh"],
    )
    for one in readings:
        name = escape(one.site.removeprefix(prefix))
        table.add_row(name, shown(one), shown(one.controls.get("fresh")))
    return table


def _warnings(readings: Sequence[Reading]) -> list[str]:
    """Each warning once, with what it is of."""
    of: dict[str, list[str]] = {}
    for one in readings:
        for warning in one.warnings:
            at = of.setdefault(warning, [])
            if f"{one.gauge} {one.variant}" not in at:
                at.append(f"{one.gauge} {one.variant}")
    told = [f"{', '.join(at)}: {warning}" for warning, at in of.items()]
    more = len(told) - MOST_WARNINGS
    return told if more <= 0 else [*told[:MOST_WARNINGS], f"{more} more: see the JSON."]
