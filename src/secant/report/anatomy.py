"""An anatomy as a terminal table.

Holds: ``render_anatomy``, and in words ``plain_words`` and ``notes``.
May import: rich, ``secant.readings``, ``secant.uses.anatomy``.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from secant.readings import Reading
from secant.uses.anatomy import Anatomy
from secant.uses.dissection import TOGETHER

CAPTION = (
    "Each row replaces one operation alone, on units that the fit has not seen. affine: by its "
    "best affine fit; mean: by a constant, for scale. R²: how much of the operation the fit "
    "explains. output: squared change of the model's output over its variance; 0 unmoved, 1 as "
    "much as it varies. {}±: half-width of the 95 % interval, its longer side. Bold: the output's "
    "largest move by an affine fit."
)
LOSS = "loss, accuracy: how much each rises. "


def _number(value: float | None, sign: str = "") -> str:
    if value is None:
        return "-"
    return f"{value:{sign}.3f}" if abs(value) < 1000 else f"{value:{sign}.1e}"


def _with_interval(reading: Reading, sign: str = "") -> str:
    text = _number(reading.value, sign)
    if reading.value is None or reading.interval is None:
        return text
    low, high = reading.interval
    reach = max(high - reading.value, reading.value - low)
    return f"{text} ±{_number(math.ceil(reach * 1000) / 1000)}"  # never rounded to less


def _control(reading: Reading, sign: str = "") -> str:
    control: dict[str, Any] = reading.controls.get("constant", {})
    return _number(control.get("value"), sign)


def render_anatomy(found: Anatomy) -> Table:
    """One line an operation, in the order of the graph, the largest effect in bold."""
    by_site: dict[str, dict[str, Reading]] = {}
    for reading in found.readings:
        by_site.setdefault(reading.site, {})[reading.variant] = reading
    has_loss = "loss" in found.baseline
    base = ", ".join(f"{key} {value:.3f}" for key, value in found.baseline.items())
    title = (
        f"{found.model} on {found.data}: {sum(s != TOGETHER for s in by_site)} operations are not "
        f"affine, {found.affine} are\nfitted on {found.units['fitted']} units, scored on "
        f"{found.units['scored']}" + (f" ({base})" if base else "")
    )
    table = Table(
        title=escape(title), caption=CAPTION.format(LOSS if has_loss else ""),
        box=SIMPLE_HEAD, padding=(0, 1, 0, 0),
    )  # fmt: skip
    table.add_column("operation", overflow="fold", min_width=14)
    shown = [("output", "affine"), ("output", "mean")]
    if has_loss:
        # The accuracy's control is in the JSON: a terminal of 80 columns holds no more.
        shown += [("loss", "affine"), ("loss", "mean"), ("accuracy", "affine")]
    table.add_column("\nR²", justify="right")
    for variant, by in shown:
        table.add_column(f"{variant}\n{by}", justify="right")
    values = {
        site: of_site["output"].value or 0.0
        for site, of_site in by_site.items()
        if site != TOGETHER and of_site["output"].value is not None
    }
    largest = max(values, key=values.__getitem__, default=None)
    for site, of_site in by_site.items():
        output = of_site["output"]
        cells = [escape(site), _number(output.details.get("local_r2"))]
        for variant, by in shown:
            sign = "" if variant == "output" else "+"
            render = _with_interval if by == "affine" else _control
            cells.append(render(of_site[variant], sign))
        table.add_row(
            *cells, style="bold" if site == largest and values[site] > 0 else None,
            end_section=site == list(by_site)[-2 if TOGETHER in by_site else -1],
        )  # fmt: skip
    return table


def plain_words(found: Anatomy) -> str:
    """The finding in a sentence or two."""
    output = [r for r in found.readings if r.variant == "output" and r.site != TOGETHER]
    if not output:
        return (
            f"{found.model}: every operation is affine in the data ({found.affine} of them), so "
            "the model is one affine map. There is nothing to replace."
        )
    kinds = Counter(r.details["operation"].split(" #")[0] for r in output)
    listed = ", ".join(f"{name} (×{count})" for name, count in kinds.items())
    text = f"{found.model}: not affine are {listed}."
    measured = [r for r in output if r.value is not None]
    if measured:
        most = max(measured, key=lambda r: r.value or 0.0)
        text += (
            f" The one that an affine map replaces worst is {most.site}: the output then moves by "
            f"{_number(most.value)} of its variance."
        )
    return text


def notes(found: Anatomy) -> list[str]:
    """What was not measured or must be read with care, one line a reason."""
    by_reason: dict[str, list[str]] = {}
    for reading in found.readings:
        if reading.variant == "output":
            for warning in reading.warnings:
                by_reason.setdefault(warning, []).append(reading.site)
    return [
        f"{sites[0]}{f' and {len(sites) - 1} more' if len(sites) > 1 else ''}: {reason}"
        for reason, sites in by_reason.items()
    ]
