"""Ways of fitting a model as a terminal table.

Holds: ``render_tune``, and in words ``plain_words``.
May import: rich, ``secant.report.paths``, ``secant.uses.tune``.
"""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from secant.report.paths import sentences
from secant.uses.tune import Tuned

CAPTION = (
    "Accuracy on units that no way has seen, with 95 % intervals over groups of units. tangent: "
    "closed-form fit of the first-order expansion in all weights; probe: the same of the last "
    "layer alone; fine-tuning: AdamW, best by its own validation units. tangent less: paired by "
    "groups, positive where the tangent is better."
)


def _ends(interval: Any, sign: str = "") -> str:
    return "-" if interval is None else f"{interval[0]:{sign}.3f} to {interval[1]:{sign}.3f}"


def render_tune(found: Tuned) -> Table:
    """One line a way, and the commonest class for scale."""
    units = found.units
    table = Table(
        title=escape(
            f"{found.model} on {found.data}: {len(found.classes)} classes,\n"
            f"fitted on {units['fitted']} units, scored on {units['scored']}"
        ),
        caption=CAPTION, box=SIMPLE_HEAD, padding=(0, 1, 0, 0),
    )  # fmt: skip
    table.add_column("way", no_wrap=True)
    for heading in ("accuracy", "95 %", "tangent less", "95 %"):
        table.add_column(heading, justify="right", no_wrap=True)
    tangent = found.readings[0]
    for reading in found.readings:
        beside = tangent.controls.get(reading.site, {}).get("difference")
        table.add_row(
            reading.site, f"{reading.value:.3f}", _ends(reading.interval),
            "" if beside is None else f"{beside['value']:+.3f}",
            "" if beside is None else _ends(beside["interval"], "+"),
        )  # fmt: skip
    common = tangent.controls["commonest class"]
    table.add_row(
        "commonest class", f"{common['value']:.3f}", _ends(common["interval"]),
        f"{common['difference']['value']:+.3f}", _ends(common["difference"]["interval"], "+"),
    )  # fmt: skip
    return table


def plain_words(found: Tuned) -> list[str]:
    """The finding, what was chosen, and what must be read with care."""
    tangent = found.readings[0]
    lines = []
    for other in ("probe", "fine-tuning"):
        interval = tangent.controls[other]["difference"]["interval"]
        if interval is None or interval[0] <= 0 <= interval[1]:
            verdict = "does not differ from"
        else:
            verdict = "is better than" if interval[0] > 0 else "is worse than"
        lines.append(f"The tangent {verdict} {other}, at 95 %.")
    tuned = found.choices["fine-tuning"]
    chosen = ", ".join(f"{way} {found.choices[way]['ridge']:.2g}" for way in ("tangent", "probe"))
    lines.append(
        f"Chosen on the fitted units: ridge of {chosen}; fine-tuning's rate {tuned['rate']:g} and "
        f"epoch {tuned['epoch']} of {tuned['epochs']}."
    )
    lines += sentences(found.path.readings)
    return [*lines, *found.notes, *tangent.warnings]
