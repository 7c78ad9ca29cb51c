"""A replacement as terminal tables.

Holds: ``render_replace``, and in words ``replace_words``; ``budget_rows``, ``count``, ``against``.
May import: rich, ``secant.uses.replace_result``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from secant.uses.replace_result import Met, Replacement

MOST_NAMED = 40
INFLUENCE, RANDOM = "block influence", "random"
CAPTION = (
    "saved: share of the matrix products of a forward; loss: how far it rose on the scoring units; "
    "time: of a batch, after over before; over ...: share of the products that the curve "
    "saves within the budget, less what dropping whole blocks saves; [...]: 95 % intervals"
)


def count(value: float) -> str:
    """A large number in short."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def _signed(value: float) -> str:
    return f"{value:+.3g}" if abs(value) >= 1e-4 else f"{value:+.0e}"


def span(ends: Any, percent: bool = False) -> str:
    """An interval, in percent points if wanted; empty where there is none."""
    if ends is None:
        return ""
    low, high = ends
    if percent:
        return f" [{100 * low:+.1f}, {100 * high:+.1f}]"
    return f" [{_signed(low)}, {_signed(high)}]"


def against(met: Met, name: str) -> str:
    """Ours less a control at this budget, in percent points."""
    found: Mapping[str, Any] | None = met.against.get(name)
    if found is None:
        return "-"
    return f"{100 * found['value']:+.1f}{span(found['interval'], percent=True)}"


def ratio(met: Met) -> str:
    """Time after over before."""
    if not met.chosen:
        return "-"
    return f"{met.after['seconds'] / met.before['seconds']:.2f}"


def budget_rows(found: Replacement) -> list[tuple[str, ...]]:
    """Budget, sites, saved, parameters, rise of the loss, time, and ours less each control."""
    rows: list[tuple[str, ...]] = []
    for met in found.budgets:
        rise = "-" if not met.chosen else f"{_signed(met.increase)}{span(met.interval)}"
        rows.append((
            f"{met.budget:g}", f"{len(met.chosen)}", f"{100 * met.saved:.1f} %",
            f"{count(met.before['parameters'])} → {count(met.after['parameters'])}", rise,
            ratio(met), against(met, RANDOM), against(met, INFLUENCE),
        ))  # fmt: skip
    return rows


HEADS = (
    "budget", "replaced", "saved", "parameters", "loss", "time", "over random",
    "over influence",
)  # fmt: skip


def render_replace(found: Replacement) -> list[Table]:
    """What each budget came to, and what stands in for what within the largest."""
    table = Table(
        title=escape(f"{found.model} on {found.data}: {found.units['score']} units scored"),
        caption=CAPTION, box=SIMPLE_HEAD, padding=(0, 1, 0, 0),
    )  # fmt: skip
    for place, head in enumerate(HEADS):
        table.add_column(head, justify="right" if place else "left", overflow="fold")
    for row in budget_rows(found):
        table.add_row(*row)
    met = next(one for one in reversed(found.budgets) if one.chosen)
    chosen = Table(
        title=f"within {met.budget:g}", box=SIMPLE_HEAD, padding=(0, 1, 0, 0),
        caption="beyond: what the affine map explains, held out, of what scaling the input leaves",
    )  # fmt: skip
    chosen.add_column("site", overflow="fold")
    chosen.add_column("stands in")
    chosen.add_column("saved", justify="right")
    chosen.add_column("beyond", justify="right")
    for one in met.chosen[:MOST_NAMED]:
        fit = "n/a" if one.beyond is None else f"{one.beyond:.3f}"
        chosen.add_row(escape(one.site), one.label, f"{100 * one.saved:.1f} %", fit)
    if len(met.chosen) > MOST_NAMED:
        chosen.add_row(f"and {len(met.chosen) - MOST_NAMED} more, in replace.json")
    return [table, chosen]


def verdict(found: Replacement) -> str:
    """At how many budgets the set saves clearly more than both controls do."""
    names = [name for name in (RANDOM, INFLUENCE) if name in found.budgets[0].against]
    clear = [
        one for one in found.budgets
        if all(one.against[name]["interval"][0] > 0 for name in names)
    ]  # fmt: skip
    others = " and than ".join(
        {RANDOM: "blocks dropped at random", INFLUENCE: "by block influence"}[name]
        for name in names
    )
    if not clear:
        return f"At no budget does the curve clearly save more than {others}: drop blocks instead."
    told = ", ".join(f"{one.budget:g}" for one in clear)
    return (
        f"The curve saves clearly more than {others} at {len(clear)} of {len(found.budgets)} "
        f"budgets ({told})."
    )


def replace_words(found: Replacement) -> list[str]:
    """What the loss is, on which units all rests, how the controls do, and what was left."""
    units = found.units
    lines = [
        f"Loss: {found.what}, in {found.unit}; the model's own is {found.loss:.4g}. Maps fitted on "
        f"{units['fit']} units, the set chosen on {units['choose']} others, scored on "
        f"{units['score']} others.",
        verdict(found),
    ]
    if found.healing is not None:
        one = found.healing
        kept = "kept" if one.is_kept else "not kept: it did not lower the loss on choosing units"
        lines.append(
            f"Healed by {one.steps} steps, {kept}: the loss rises by {_signed(one.increase)}"
            f"{span(one.interval)}, by {_signed(one.before)} before."
        )
    lines += [f"Left: {site}: {why}." for site, why in list(found.left.items())[:MOST_NAMED]]
    return lines + found.notes
