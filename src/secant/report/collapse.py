"""A collapsed model as terminal tables.

Holds: ``render_collapse``, and in words ``plain_words``.
May import: rich, ``secant.uses.collapse_run``.
"""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from secant.uses.collapse_run import Collapsing

MOST_NAMED = 20
CAPTION = (
    "Parts that are exactly affine and became one. work: products for the batch (of a chain of "
    "modules, for a row; of a bias that moved, additions), before and after; error: bound of the "
    "joined weights' error in float64, relative, before they are rounded to the model's type."
)


def _count(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def render_collapse(found: Collapsing) -> list[Table]:
    """What was joined, and what that saves."""
    tables = []
    if found.joined:
        table = Table(
            title=escape(f"{found.model}, collapsed"), caption=CAPTION, box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )  # fmt: skip
        table.add_column("joined", overflow="fold")
        for heading in ("work before", "after", "error"):
            table.add_column(heading, justify="right", no_wrap=True)
        for one in found.joined[:MOST_NAMED]:
            table.add_row(
                escape(" + ".join(one.parts)), _count(one.work_before), _count(one.work),
                f"{one.relative:.0e}",
            )  # fmt: skip
        if len(found.joined) > MOST_NAMED:
            table.add_row(f"and {len(found.joined) - MOST_NAMED} more, in collapse.json")
        tables.append(table)
    saved = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    saved.add_column(f"a forward of {found.batch}")
    for heading in ("before", "after", "after / before"):
        saved.add_column(heading, justify="right", no_wrap=True)
    rows = (
        ("parameters", "parameters", _count), ("operations", "flops", _count),
        ("median time", "seconds", lambda value: f"{1e3 * value:.2f} ms"),
    )  # fmt: skip
    for name, key, shown in rows:
        before, after = found.before[key], found.after[key]
        ratio = f"{after / before:.2f}" if before else "n/a"
        saved.add_row(name, shown(before), shown(after), ratio)
    return [*tables, saved]


def plain_words(found: Collapsing) -> list[str]:
    """How exact the result is, what was left, and the files."""
    gaps = found.differences
    lines = []
    if not found.joined:
        lines.append("Nothing was joined: nothing in this model is affine and dearer than one map.")
    lines.append(
        f"On {found.units} units the outputs (largest {gaps['scale']:.3g}) differ from the model "
        f"in float64 by at most {gaps['collapsed']:.1e}; the model's own by {gaps['model']:.1e}."
    )
    checked = [one for one in found.joined if one.gap is not None and one.bound]
    if checked:
        worst = max((one.gap or 0.0) / (one.bound or 1.0) for one in checked)
        lines.append(
            f"{len(checked)} joins were held against their parts on the batch: the largest "
            f"difference is {worst:.1%} of what rounding may make it."
        )
    lines += [f"Left: {one}." for one in found.left[:MOST_NAMED]]
    if len(found.left) > MOST_NAMED:
        lines.append(f"{len(found.left) - MOST_NAMED} more were left, see collapse.json.")
    return [*lines, *found.notes]
