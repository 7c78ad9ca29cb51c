"""What planes can do with a labelled set, as a terminal table and in words.

Holds: ``render_separable``, and in words ``plain_words``.
May import: rich, ``secant.uses`` (lifts, separable).
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from secant.uses.lifts import LIFTS
from secant.uses.separable import Lifted, Separability, Split

CAPTION = (
    "margin: half the distance between the classes, in the largest distance of a point from the "
    "mean; the least of all classes that are separable. shuffled: the same with the labels in a "
    "random order. random labels: Cover's probability that a plane could make any labels of so "
    "many points in general position; near 1 a verdict says nothing of these labels."
)
PROOFS = {
    "plane": "plane, every sign exact",
    "plane in fractions": "plane in fractions, every sign exact",
    "equal rows": "equal rows",
    "interior combination": "combination, proven by bounds",
    "exact combination": "combination in fractions",
    "combination": "combination up to eps",
}
SHOWN = 12


def render_separable(found: Separability) -> Table:
    """One line a lift."""
    of = f" and {found.model}" if found.model else ""
    table = Table(
        title=escape(f"{found.data}{of}: {found.rows:,} rows, {len(found.classes)} classes"),
        caption=CAPTION, box=SIMPLE_HEAD, padding=(0, 1, 0, 0),
    )  # fmt: skip
    table.add_column("lift", no_wrap=True)
    for heading in ("features", "free", "separable", "margin", "shuffled", "random labels", "s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for lift in found.lifts:
        table.add_row(
            escape(lift.name), f"{lift.features:,}",
            *(_cells(lift) if lift.splits else ("", "not made", "", "", "", "")),
        )  # fmt: skip
    return table


def _cells(lift: Lifted) -> tuple[str, ...]:
    margins = [one.separation.margin[0] for one in lift.splits if one.separation.margin]
    verdicts = [one.separation.verdict for one in lift.splits]
    return (
        f"{lift.rank:,}",
        _share(verdicts),
        f"{min(margins):.2g}" if margins else "-",
        _share([one.shuffled for one in lift.splits]),
        _chance(lift.chance),
        f"{lift.seconds:.2f}",
    )


def _share(verdicts: Sequence[str]) -> str:
    if len(verdicts) == 1:
        return {"separable": "yes", "not separable": "no"}.get(verdicts[0], "no, up to eps")
    return f"{verdicts.count('separable')} of {len(verdicts)}"


def _chance(value: float) -> str:
    return f"{value:.2g}" if value > 1e-99 else "< 1e-99"


def plain_words(found: Separability) -> list[str]:
    """Each lift's verdicts and proofs, what its control says, and notes."""
    lines = []
    for lift in found.lifts:
        lines += [f"{lift.name}: {_about(lift.splits)}"] if lift.splits else []
        if lift.pairs:
            lines.append(f"{lift.name}, pairs: {_about(lift.pairs)}")
        if lift.chance == 1:
            lines.append(
                f"{lift.name}: this says nothing of the labels. {lift.points:,} points that span "
                f"{lift.rank:,} dimensions are separable whatever their labels."
            )
        elif lift.chance > 0.5:
            lines.append(
                f"{lift.name}: this says little of the labels, for there are fewer points than "
                f"twice the dimensions with the bias, {2 * (lift.rank + 1):,}."
            )
        lines += [f"{lift.name}: {note}" for note in lift.notes]
    if any(lift.name == "squash" for lift in found.lifts):
        lines.append(f"squash: {LIFTS['squash']}.")
    return [*lines, *found.notes]


def _about(splits: list[Split]) -> str:
    """Which are separable and which are not, each with the kinds of proof."""
    good = [one for one in splits if one.separation.verdict == "separable"]
    bad = [one for one in splits if one.separation.verdict != "separable"]
    if len(splits) == 1:
        return f"{_verdict(splits[0])} ({_proof(splits[0])})."
    said = [f"{len(good)} of {len(splits)} separable ({_kinds(good)})"] if good else []
    if bad:
        named = ", ".join(_name(one) for one in bad[:SHOWN])
        rest = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        said.append(f"not: {named}{rest} ({_kinds(bad)})")
    return "; ".join(said) + "."


def _kinds(splits: list[Split]) -> str:
    return "; ".join(dict.fromkeys(_proof(one) for one in splits))


def _name(split: Split) -> str:
    return split.name if split.other is None else f"{split.name} from {split.other}"


def _verdict(split: Split) -> str:
    separation = split.separation
    if separation.verdict == "no margin above eps":
        return f"no plane has a margin above {separation.eps:.1e} radii"
    return separation.verdict


def _proof(split: Split) -> str:
    proof = split.separation.certificate
    if proof.kind == "equal rows" and proof.rows is not None:
        one, other = proof.rows
        return f"rows {one + 1} and {other + 1}, counted from 1, are equal"
    said = PROOFS[proof.kind]
    return f"{said} {split.separation.eps:.1e}" if proof.kind == "combination" else said
