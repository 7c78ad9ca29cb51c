"""What linear states cost a model, as a terminal table and in words.

Holds: ``render_linear_state``, ``plain_words``.
May import: rich, ``secant.report.cells``, ``secant.uses.linearize_state``.
"""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from secant.report.cells import number, with_interval
from secant.uses.linearize_state import LinearizedState


def render_linear_state(found: LinearizedState) -> Table:
    """One row a layer: how well a linear update fits its steps, and what it became."""
    table = Table(
        title=escape(f"{found.model}: linear states, fitted on {found.units['fitted']} units"),
        caption="raw: share of the next state that one linear step explains, held out; beyond: "
        "what it adds to a plain decay; radius: largest modulus of its eigenvalues; ±: half-width "
        "of the 95 % interval",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("layer", overflow="fold", min_width=8)
    for name in ("state", "raw R²", "beyond", "radius", "runs by"):
        table.add_column(name, justify="right", overflow="fold")
    for one in found.layers:
        table.add_row(
            escape(one.site), str(one.state), with_interval(one.raw), with_interval(one.beyond),
            number(one.radius), one.form,
        )  # fmt: skip
    return table


def plain_words(found: LinearizedState) -> list[str]:
    """What it costs, what it gains, what was left and what must be known."""
    words = []
    if found.before.get("loss"):
        loss, hit = (
            f"{_with(found.before[what])} -> {_with(found.after[what])}"
            for what in ("loss", "accuracy")
        )
        words.append(
            f"On {found.units['scored']} other units: loss {loss} {found.unit}, accuracy {hit}; "
            f"the loss changes by {_with(found.change)}."
        )
    else:
        words.append(
            f"On {found.units['scored']} other units the outputs change by {_with(found.change)} "
            f"of their variance."
        )
    before, after = found.before["seconds"], found.after["seconds"]
    words.append(
        f"A forward of {found.batch} units takes {1e3 * before:.2f} ms -> {1e3 * after:.2f} ms "
        f"({before / after:.1f} times as fast); parameters of the recurrences "
        f"{found.before['parameters']:,} -> {found.after['parameters']:,}."
    )
    words += [f"{name} stays as it is: {reason}." for name, reason in found.left.items()]
    return words + found.notes


def _with(held: dict[str, Any]) -> str:
    ends = held["interval"]
    span = "" if ends is None else f" [{ends[0]:.3f}, {ends[1]:.3f}]"
    return f"{number(held['value'])}{span}"
