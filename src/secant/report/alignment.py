"""An alignment as a terminal table: the symmetries, what moved, what stays in place and why.

Holds: ``render_alignment``.
May import: rich, ``secant.uses.align``.
"""

from __future__ import annotations

from collections import Counter

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from secant.uses.align import Alignment


def render_alignment(found: Alignment) -> list[RenderableType]:
    """A line for each symmetry, those within another one below it, then what is left in place."""
    table = Table(
        box=SIMPLE_HEAD,
        title=f"{found.name}: {len(found.symmetries)} permutation symmetries",
        caption="*n*: the part of the dimension that is permuted, in blocks of what follows it. "
        "orders: how many of its own it has, one for each entry of the axes around it. "
        "moved: entries that came from elsewhere, over all orders.",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("axis (tensor:dimension)", overflow="fold")
    for name in ("size", "orders", "tensors", "moved"):
        table.add_column(name, justify="right")
    for each in found.symmetries:
        tensors = len({name for name, _ in each.places})
        table.add_row(
            escape("  " * len(each.within) + each.name), str(each.size), str(each.copies),
            str(tensors), f"{found.moved(each.axis)} of {each.size * each.copies}",
        )  # fmt: skip
    reasons = Counter(each.why for each in found.symmetries.pinned)
    lines = [
        f"In place, {count} {'axis' if count == 1 else 'axes'}: {escape(why)}."
        for why, count in reasons.most_common()
    ]
    end = (
        f"Distance of the parameters {found.before:.6g} before, {found.after:.6g} after, by "
        f"{found.method}. Outputs changed by {found.difference:.1e} of the largest: rounding."
    )
    return [table, "\n".join([*lines, end])]
