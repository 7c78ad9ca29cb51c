"""Two reports compared: before and after fine-tuning, or in somebody's CI.

Holds: ``diff``, its result ``Comparison`` of ``Difference``, and ``paired``. Named apart from
the function, which a submodule of one name would hide as ``secant.diff``.
May import: torch, jaxtyping, ``secant.errors``, ``secant.gauges.interval``, ``secant.readings``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from secant.errors import InputError
from secant.gauges.interval import difference_interval, jackknife_interval
from secant.readings import ModelReport, Reading, Report

PLACES = ("t", "rho", "scale", "direction", "steps", "lag")
"""Entries of a reading's details that say which point of a curve it is."""
KINDS = {
    ("residual_by_group", "total_by_group"): False,
    ("gap_by_group", "length_by_group"): True,
}
"""The sums that a reading may carry, and whether its value is the root of their ratio."""

Key = tuple[Any, ...]
How = Literal["paired", "unpaired", "none"]


@dataclass(frozen=True)
class Difference:
    """One reading in both reports; `value` is `b` less `a`.

    `how` says what `interval` rests on: `paired`, both readings' sums over the same groups of
    units; `unpaired`, their two intervals as if from different units; `none`, no interval.
    """

    model: str
    variable: str
    site: str
    gauge: str
    variant: str
    place: dict[str, Any]
    a: float | None
    b: float | None
    value: float | None
    interval: tuple[float, float] | None
    how: How

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes 0."""
        if self.interval is None:
            return False
        return self.interval[0] > 0 or self.interval[1] < 0

    def exceeds(self, threshold: float) -> bool:
        """Whether it is clear and larger than `threshold`, or one report has no number here."""
        if (self.a is None) != (self.b is None):
            return True
        return self.value is not None and abs(self.value) > threshold and self.is_clear


@dataclass(frozen=True)
class Comparison:
    """What two reports say of the same things.

    `differences` are in the order of report a; `only_a` and `only_b` name readings that the other
    lacks; `notes` say why intervals are not paired where they could have been.
    """

    differences: list[Difference]
    only_a: list[str]
    only_b: list[str]
    notes: list[str]

    def exceeding(self, threshold: float) -> list[Difference]:
        """The differences that exceed `threshold` clearly; see `Difference.exceeds`.

        Raises: `InputError` unless the threshold is a number of at least 0.
        """
        if not 0 <= threshold < math.inf:
            raise InputError(
                f"expected a threshold of 0 or more, got {threshold}. Give for example 0.02."
            )
        return [one for one in self.differences if one.exceeds(threshold)]


def paired(
    reading_sums: Mapping[str, Any], control_sums: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The reading less its control, with an interval paired by groups: {"value", "interval"}.

    Both hold per-group sums under the same two names, as readings do in `details`:
    `residual_by_group` and `total_by_group` for an R², `gap_by_group` and `length_by_group` for a
    root ratio; or, where the reading is no ratio of sums, its value `of_all_groups` and those
    `without_each_group`. None where either lacks them, they are over different groups, or no
    difference exists; the caller vouches that group g holds the same units in both. Cost: nothing
    to speak of.
    """
    one, other = _left_out(reading_sums), _left_out(control_sums)
    if one is not None and other is not None and len(one) == len(other):
        value, *others = (one - other).tolist()
        ends = jackknife_interval(value, torch.tensor(others, dtype=torch.float64))
        if math.isnan(value):
            return None
        return {"value": value, "interval": ends if math.isfinite(ends[0]) else None}
    for names, is_root in KINDS.items():
        lists = [sums.get(name) for sums in (reading_sums, control_sums) for name in names]
        if not all(_is_sums(one) for one in lists) or len({len(one) for one in lists if one}) != 1:
            continue
        r_a, t_a, r_b, t_b = (torch.tensor(one, dtype=torch.float64) for one in lists)
        interval = difference_interval(r_a, t_a, r_b, t_b, is_root=is_root)
        ratios = [float(r_a.sum() / t_a.sum()), float(r_b.sum() / t_b.sum())]
        if any(map(math.isnan, (*interval, *ratios))):
            return None
        value = math.sqrt(ratios[0]) - math.sqrt(ratios[1]) if is_root else ratios[1] - ratios[0]
        return {"value": value, "interval": interval if math.isfinite(interval[0]) else None}
    return None


def diff(
    a: Report,
    b: Report,
    *,
    gauges: Sequence[str] | None = None,
    variants: Sequence[str] | None = None,
) -> Comparison:
    """Report `b` less report `a`, reading by reading.

    Models are matched by name, those left over by position if as many are left on both sides;
    readings by variable, site, gauge, variant and point of the curve. Intervals are paired where
    both surveys had one plan: the same data, seed, units and rows, and sums over the same groups.
    Elsewhere the two intervals are joined as if their units had nothing in common (MOVER: Zou and
    Donner 2008, Stat. Med. 27), which is too wide where they do.

    `gauges` and `variants` keep the readings of these alone.

    Raises: `InputError` if no reading is common to both.
    """
    differences: list[Difference] = []
    only: tuple[list[str], list[str]] = ([], [])
    notes: list[str] = []
    pairs, alone = _matched(a.models, b.models)
    for side, models in enumerate(alone):
        only[side].extend(
            f"{model.name}: {_described(key)}"
            for model in models
            for key in _keyed(model, gauges, variants)
        )
    for left, right in pairs:
        name = left.name if left.name == right.name else f"{left.name} → {right.name}"
        reason = _why_unpaired(a, b, left, right)
        if reason:
            notes.append(f"{name}: {reason}, so no interval is paired.")
        ours, theirs = (_keyed(model, gauges, variants) for model in (left, right))
        for key, reading in ours.items():
            if key in theirs:
                differences.append(_difference(name, reading, theirs[key], not reason))
        only[0].extend(f"{name}: {_described(key)}" for key in ours if key not in theirs)
        only[1].extend(f"{name}: {_described(key)}" for key in theirs if key not in ours)
    if not differences:
        sizes = [sum(len(model.readings) for model in one.models) for one in (a, b)]
        raise InputError(
            "expected two reports with readings in common; none of the "
            f"{sizes[0]} and {sizes[1]} readings match. Survey the same sites and gauges in both, "
            "and check the names given as gauge and variant."
        )
    return Comparison(differences, *only, notes)


def _matched(
    a: list[ModelReport], b: list[ModelReport]
) -> tuple[list[tuple[ModelReport, ModelReport]], tuple[list[ModelReport], list[ModelReport]]]:
    """Pairs in the order of `a`, and what is left on either side."""
    partner: dict[int, int] = {}
    for i, left in enumerate(a):
        free = (j for j, right in enumerate(b) if j not in partner.values())
        j = next((j for j in free if b[j].name == left.name), None)
        if j is not None:
            partner[i] = j
    rest_a = [i for i in range(len(a)) if i not in partner]
    rest_b = [j for j in range(len(b)) if j not in partner.values()]
    if len(rest_a) == len(rest_b):
        partner |= dict(zip(rest_a, rest_b, strict=True))
        rest_a, rest_b = [], []
    pairs = [(a[i], b[partner[i]]) for i in sorted(partner)]
    return pairs, ([a[i] for i in rest_a], [b[j] for j in rest_b])


def _keyed(
    model: ModelReport, gauges: Sequence[str] | None, variants: Sequence[str] | None
) -> dict[Key, Reading]:
    """Readings by what they are of; the n-th of several with one name by its place among them."""
    found: dict[Key, Reading] = {}
    seen: Counter[Key] = Counter()
    for one in model.readings:
        if (gauges and one.gauge not in gauges) or (variants and one.variant not in variants):
            continue
        place = tuple((name, one.details.get(name)) for name in PLACES)
        key = (one.variable, one.site, one.gauge, one.variant, _hashable(place))
        found[(*key, seen[key])] = one
        seen[key] += 1
    return found


def _hashable(place: tuple[tuple[str, Any], ...]) -> tuple[tuple[str, str | float], ...]:
    return tuple(
        (name, value if isinstance(value, int | float) else str(value))
        for name, value in place
        if value is not None
    )


def _described(key: Key) -> str:
    variable, site, gauge, variant, place, _ = key
    at = "".join(f", {name} {value}" for name, value in place)
    return f"{gauge} {variant} at {site} in {variable}{at}"


def _why_unpaired(a: Report, b: Report, left: ModelReport, right: ModelReport) -> str:
    """What differs between the two plans, empty where nothing does."""
    if left.data != right.data:
        return f"the data differ ({left.data} and {right.data})"
    if a.seed != b.seed:
        return f"the seeds differ ({a.seed} and {b.seed})"
    if (left.units, left.rows) != (right.units, right.rows):
        return (
            f"the samples differ ({left.units} units, {left.rows} rows and "
            f"{right.units} units, {right.rows} rows)"
        )
    return ""


def _difference(name: str, a: Reading, b: Reading, is_one_plan: bool) -> Difference:
    place = {key: a.details[key] for key in PLACES if a.details.get(key) is not None}
    value = None if a.value is None or b.value is None else b.value - a.value
    interval: tuple[float, float] | None = None
    how: How = "none"
    if value is not None and is_one_plan and a.samples == b.samples:
        found = paired(b.details, a.details)
        if found is not None and found["interval"] is not None:
            interval, how = found["interval"], "paired"
    if value is not None and interval is None:
        interval = _unpaired(a, b)
        how = "none" if interval is None else "unpaired"
    return Difference(
        name, a.variable, a.site, a.gauge, a.variant, place, a.value, b.value, value, interval, how
    )


def _unpaired(a: Reading, b: Reading) -> tuple[float, float] | None:
    """MOVER: each end from the distances of both values to their own ends."""
    if a.value is None or b.value is None or a.interval is None or b.interval is None:
        return None
    value = b.value - a.value
    down = math.hypot(b.value - b.interval[0], a.interval[1] - a.value)
    up = math.hypot(b.interval[1] - b.value, a.value - a.interval[0])
    return value - down, value + up


def _left_out(sums: Mapping[str, Any]) -> Float64[Tensor, " groups_and_1"] | None:
    """A reading's value and its values with each group left out, nan where one does not exist."""
    if not {"of_all_groups", "without_each_group"} <= sums.keys():
        return None
    values = [sums["of_all_groups"], *sums["without_each_group"]]
    return torch.tensor([math.nan if one is None else one for one in values], dtype=torch.float64)


def _is_sums(values: Any) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) > 2
        and all(isinstance(one, int | float) and one >= 0 for one in values)
    )
