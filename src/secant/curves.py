"""From the sums of experimental gauges to readings: values, intervals, floors, radii, controls.

Holds: ``Point``, ``SiteSums``, ``gap_interval``, ``readings_of``, ``with_controls``.
May import: torch, ``secant.errors``, ``secant.gauges``, ``secant.readings``,
``secant.comparisons``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from secant.comparisons import PLACES, paired
from secant.gauges.chord import chord_from_sums
from secant.gauges.interval import ratio_interval
from secant.gauges.sum import homogeneity_from_sums, sum_from_sums
from secant.gauges.tangent import radius, radius_bounds, tangent_from_sums
from secant.readings import NO_INTERVAL, Reading

THRESHOLD = 0.1
SCALE = -1.0
"""The factor of `homogeneity`. At -1 both steps are ρ long, so the reading speaks of the same
distance as the others (a factor 2 would reach to 2ρ), and a ReLU at 0, which scales by every
positive factor, is seen. What it cannot see are odd maps about their centre."""
FLOOR_FACTOR = 10.0
"""A gap joins up to three values with weights up to 2; ten times the noise of one is safe."""
FROM_SUMS = {
    "chord": chord_from_sums,
    "tangent": tangent_from_sums,
    "sum": sum_from_sums,
    "homogeneity": homogeneity_from_sums,
}
VARIANTS = ("raw", "beyond")


class Point(NamedTuple):
    """One point of one curve: the gauge, t or ρ, and the directions of its steps."""

    gauge: str
    at: float
    direction: str


@dataclass(frozen=True)
class SiteSums:
    """The sums of all curves of one map over the sample, by group.

    `points` maps to (groups, 3) float64: squared gap, squared length, squared length without the
    residual's share (nan where the map changes the shape). `noise` is the norm of the rounding in
    one evaluation of the whole sample, `step` the median distance that ρ = 1 stands for.
    """

    variable: str
    site: str
    step: float
    units: int
    rows: int
    noise: float
    points: dict[Point, Tensor]


def gap_interval(gap: Tensor, length: Tensor) -> tuple[float, float] | None:
    """95 % interval of sqrt(sum(gap) / sum(length)), from sums over groups of whole units.

    `ratio_interval` of the ratio, its ends rooted; both are taken after scaling the gaps to a
    ratio of 1, which the jackknife of a logarithm allows and which keeps a gap of 1e-9 from
    drowning in 1 - gap². (0, 0) where there is no gap; None where one group holds all of either
    sum or a sum is not finite. Coverage: see ``tests/test_curves.py``.
    """
    ratio = float(gap.sum() / length.sum())
    if ratio == 0:
        return 0.0, 0.0
    if not math.isfinite(ratio):
        return None
    low, high = ratio_interval(gap / ratio, length)
    if not math.isfinite(low):
        return None
    return math.sqrt(max(1 - high, 0.0) * ratio), math.sqrt((1 - low) * ratio)


def readings_of(sums: SiteSums) -> list[Reading]:
    """One reading a point and variant, then the radii of `tangent` and `sum`.

    A gap at or below its floor, FLOOR_FACTOR times the rounding noise over the length, reads 0
    with the interval (0, 0), and `below_floor` says so. Where the length itself is rounding, the
    map does not change along these steps and there is no value.
    """
    readings = []
    for column, variant in enumerate(VARIANTS, start=1):
        curves: dict[tuple[str, str], list[Reading]] = {}
        for point, table in sums.points.items():
            if variant == "beyond" and bool(table[:, column].isnan().all()):
                continue
            reading = _reading(sums, point, variant, table[:, 0], table[:, column])
            readings.append(reading)
            curves.setdefault((point.gauge, point.direction), []).append(reading)
        for (gauge, direction), curve in curves.items():
            if gauge in {"tangent", "sum"}:
                readings.append(_radius(curve, gauge, variant, direction))
    return readings


def _reading(sums: SiteSums, point: Point, variant: str, gap: Tensor, length: Tensor) -> Reading:
    noise = FLOOR_FACTOR * sums.noise
    whole = float(length.sum())
    value, interval, floor, warnings = None, None, None, []
    if not math.isfinite(whole + float(gap.sum())) or not math.isfinite(noise):
        warnings.append("The map's values are not finite at some of these points.")
    elif math.sqrt(whole) <= noise:
        what = "beyond the residual " if variant == "beyond" else ""
        warnings.append(f"The map does not change {what}along these steps: no ratio exists.")
    else:
        floor = noise / math.sqrt(whole)
        value = float(FROM_SUMS[point.gauge](gap.sum(), length.sum()))
        if value <= floor:
            value, interval = 0.0, (0.0, 0.0)
        else:
            interval = gap_interval(gap, length)
            if interval is None:
                warnings.append(NO_INTERVAL)
    details = _place(point) | {
        "step": sums.step,
        "floor": floor,
        "below_floor": value == 0.0,
        "gap_by_group": gap.tolist(),
        "length_by_group": length.tolist(),
    }
    samples = {"units": sums.units, "rows": sums.rows}
    return Reading(
        sums.variable, sums.site, point.gauge, variant, value, interval, samples,
        {}, warnings, details,
    )  # fmt: skip


def _place(point: Point) -> dict[str, Any]:
    if point.gauge == "chord":
        return {"t": point.at}
    if point.gauge == "tangent":
        return {"rho": point.at, "direction": point.direction}
    scale = SCALE if point.gauge == "homogeneity" else None
    return {"rho": point.at, "scale": scale, "direction": point.direction}


def _radius(curve: Sequence[Reading], gauge: str, variant: str, direction: str) -> Reading:
    """Where the curve passes the threshold, as a reading of its own.

    Its interval is where the curve's own intervals pass it, `at_least` and `at_most` in the
    details; an end that lies off the grid is None there, and then there is no interval. It takes
    the step as given: ρ is counted in this sample's median distance, whose own error is not in it
    (3 to 8 % of it in the demo models; for the radius in the population's median distance, with
    three inputs, the interval covered 79 to 98 % of a simulation). Coverage, and the maps where it
    falls short: ``tests/test_curves.py``.
    """
    rhos = [reading.details["rho"] for reading in curve]
    values = [math.nan if reading.value is None else reading.value for reading in curve]
    lows, highs = zip(*(reading.interval or (math.nan, math.nan) for reading in curve), strict=True)
    found = radius(rhos, values, THRESHOLD)
    bounds = radius_bounds(rhos, lows, highs, THRESHOLD)
    censored, warnings = None, []
    if found.is_censored:
        censored = "past the grid" if found.upper is None else "before the grid"
    elif found.value is not None and math.isnan(found.value):
        warnings.append("The curve has a hole before it passes the threshold: no radius exists.")
        bounds = None
    if bounds is None and not warnings:
        warnings.append("A point before the crossing lacks an interval, so the radius does too.")
    at_least, at_most = bounds or (None, None)
    value = None if found.value is None or math.isnan(found.value) else found.value
    details = {
        "threshold": THRESHOLD,
        "lower": found.lower,
        "upper": found.upper,
        "at_least": at_least,
        "at_most": at_most,
        "censored": censored,
        "direction": direction,
        "step": curve[0].details["step"],
    }
    interval = None
    if value is not None and at_least is not None and at_most is not None:
        interval = (at_least, at_most)
    name = "radius" if variant == "raw" else "radius beyond"
    first = curve[0]
    return Reading(
        first.variable, first.site, gauge, name, value, interval, first.samples, {}, warnings,
        details,
    )  # fmt: skip


def _key(reading: Reading) -> tuple[Any, ...]:
    where = (reading.details.get(name) for name in PLACES)
    return (reading.variable, reading.site, reading.gauge, reading.variant, *where)


OF_A_RADIUS = ("censored", "at_least", "at_most")
LACKS = "these weights gave no such reading: no finite value, or no such gauge"


def with_controls(
    readings: Sequence[Reading],
    controls: Mapping[str, Sequence[Reading]],
    missing: Mapping[str, str] | None = None,
) -> list[Reading]:
    """The readings, each beside the same point of the same curve under each control's name.

    `missing` maps a control that could not be made to the reason; a reading that a control lacks
    is said to be missing there. Differences are paired by groups.

    A radius's control also says on which side it is censored and what it lies between. ρ = 1 is
    the median distance in the model that is read, so a control's steps are those of its own
    features.
    """
    tables = {
        name: {_key(reading): reading for reading in of_control}
        for name, of_control in controls.items()
    }
    joined = []
    for reading in readings:
        beside = dict(reading.controls)
        for name, table in tables.items():
            other = table.get(_key(reading))
            if other is None:
                beside[name] = {"value": None, "interval": None, "missing": LACKS}
                continue
            beside[name] = {"value": other.value, "interval": other.interval}
            difference = paired(reading.details, other.details)
            if difference is not None:
                beside[name]["difference"] = difference
            for detail in OF_A_RADIUS:
                if detail in other.details:
                    beside[name][detail] = other.details[detail]
        for name, reason in (missing or {}).items():
            beside[name] = {"value": None, "interval": None, "missing": reason}
        joined.append(replace(reading, controls=beside))
    return joined


def group_sums(per_unit: Tensor, groups: Tensor, count: int) -> Tensor:
    """Rows of one unit each, (units, 3), added up by group: (count, 3)."""
    return torch.zeros(count, per_unit.shape[1], dtype=torch.float64).index_add(
        0, groups, per_unit.double().cpu()
    )
