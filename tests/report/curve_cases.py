"""Readings of the experimental gauges on small maps, computed by the gauges, for the page's tests.

Holds: ``curve_readings``, ``small_maps``, ``pieces_reading``, ``with_curves``.
May import: torch, ``secant.gauges``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from secant.gauges.chord import chord_sums
from secant.gauges.interval import ratio_interval
from secant.gauges.sum import homogeneity_sums, sum_sums
from secant.gauges.tangent import radius, radius_bounds, tangent_sums

Map = Callable[[Tensor], Tensor]
FRACTIONS = (0.125, 0.25, 0.5, 0.75, 0.875)
RHOS = tuple(10 ** (-3 + 3.5 * i / 7) for i in range(8))
GROUPS = 8


def ratio(pairs: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Root ratio of sums over groups, with the interval of `ratio_interval` rooted."""
    gap, length = (torch.stack(column) for column in zip(*pairs, strict=True))
    sums = {"gap_by_group": gap.tolist(), "length_by_group": length.tolist()}
    if float(length.sum()) < 1e-20:
        return {"value": None, "interval": None, "sums": sums}
    square = float(gap.sum() / length.sum())
    if square < 1e-24:
        return {"value": 0.0, "interval": [0.0, 0.0], "sums": sums}
    low, high = ratio_interval(gap / square, length)
    ends = [math.sqrt(max(1 - high, 0) * square), math.sqrt((1 - low) * square)]
    return {"value": math.sqrt(square), "interval": ends, "sums": sums}


def points(f: Map, x: Tensor, *, is_square: bool) -> dict[tuple[Any, ...], dict[str, Any]]:
    """(gauge, variant, direction, at) to value and interval, over all curves of one map."""
    flat = x.flatten(1)
    step = float(torch.cdist(flat, flat)[~torch.eye(len(x), dtype=torch.bool)].median())
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)

    def unit(v: Tensor) -> Tensor:
        norm = v.flatten(1).norm(dim=1).clamp_min(1e-12)
        return v * (step / norm).reshape(-1, *[1] * (v.ndim - 1))

    other, third = x.roll(GROUPS, 0), x.roll(2 * GROUPS, 0)
    a, b, random = unit(other - x), unit(third - x), unit(noise)
    groups = [slice(g, None, GROUPS) for g in range(GROUPS)]
    found: dict[tuple[Any, ...], dict[str, Any]] = {}

    def keep(gauge: str, direction: str, at: float, sums: Callable[..., Any], steps: list[Tensor]):
        for variant in ("raw", "beyond") if is_square else ("raw",):
            extra = [[s[g] for s in steps] if variant == "beyond" else [] for g in groups]
            pairs = [sums(g, *more) for g, more in zip(groups, extra, strict=True)]
            found[gauge, variant, direction, at] = ratio(pairs) | {"step": step}

    start, end = f(x), f(other)
    for t in FRACTIONS:
        mid = f(x + t * (other - x))
        keep(
            "chord", "", t,
            lambda g, *s, t=t, mid=mid: chord_sums(start[g], mid[g], end[g], t, *s), [other - x],
        )  # fmt: skip
    slopes = {n: torch.func.jvp(f, (x,), (v,))[1] for n, v in (("data", a), ("random", random))}
    for rho in RHOS:
        for name, v in (("data", a), ("random", random)):
            moved, line = f(x + rho * v), rho * slopes[name]
            keep(
                "tangent", name, rho,
                lambda g, *s, m=moved, j=line: tangent_sums(start[g], m[g], j[g], *s), [rho * v],
            )  # fmt: skip
        d_a, d_b = f(x + rho * a) - start, f(x + rho * b) - start
        d_ab, d_back = f(x + rho * (a + b)) - start, f(x - rho * a) - start
        keep(
            "sum", "", rho,
            lambda g, *s, ab=d_ab, u=d_a, w=d_b: sum_sums(ab[g], u[g], w[g], *s),
            [rho * a, rho * b],
        )  # fmt: skip
        keep(
            "homogeneity", "", rho,
            lambda g, *s, q=d_back, u=d_a: homogeneity_sums(q[g], u[g], -1.0, *s), [rho * a],
        )  # fmt: skip
    return found


def radii(found: dict[tuple[Any, ...], dict[str, Any]]) -> dict[tuple[str, str, str], Any]:
    """(gauge, variant, direction) to value, details of where the curve passes 0.1."""
    made = {}
    for gauge, variant, direction in dict.fromkeys(key[:3] for key in found):
        if gauge not in ("tangent", "sum"):
            continue
        values = [found[gauge, variant, direction, rho]["value"] for rho in RHOS]
        one = radius(RHOS, [math.nan if v is None else v for v in values])
        side = None
        if one.is_censored:
            side = "past the grid" if one.upper is None else "before the grid"
        value = None if one.value is None or math.isnan(one.value) else one.value
        ends = [
            found[gauge, variant, direction, rho]["interval"] or (math.nan,) * 2 for rho in RHOS
        ]
        bounds = radius_bounds(RHOS, *zip(*ends, strict=True)) or (None, None)
        details = {"threshold": one.threshold, "lower": one.lower, "upper": one.upper}
        details |= dict(zip(("at_least", "at_most"), bounds, strict=True))
        made[gauge, variant, direction] = value, {**details, "censored": side}
    return made


def curve_readings(
    variable: str, site: str, maps: dict[str, tuple[Map, Tensor]], *, is_square: bool = True
) -> list[dict[str, Any]]:
    """One reading for each point of each curve of `maps["trained"]`, beside the other maps."""
    of = {name: points(f, x, is_square=is_square) for name, (f, x) in maps.items()}
    rest = [name for name in maps if name != "trained"]
    samples = {"units": len(maps["trained"][1]), "rows": len(maps["trained"][1])}
    common = {"variable": variable, "site": site, "samples": samples}
    readings = []
    for key, one in of["trained"].items():
        gauge, variant, direction, at = key
        details = {"t" if gauge == "chord" else "rho": at, "step": one["step"], **one["sums"]}
        if direction:
            details["direction"] = direction
        if gauge == "homogeneity":
            details["scale"] = -1.0
        beside = {n: {k: of[n][key][k] for k in ("value", "interval")} for n in rest}
        why = [] if one["value"] is not None else ["The map does not change along these steps."]
        readings.append(
            {**common, "gauge": gauge, "variant": variant, "value": one["value"],
             "interval": one["interval"], "controls": beside, "warnings": why, "details": details}
        )  # fmt: skip
    passed = {name: radii(found) for name, found in of.items()}

    def interval(value: float | None, held: dict[str, Any]) -> list[float] | None:
        ends = [held["at_least"], held["at_most"]]
        return None if value is None or None in ends else ends

    for key, (value, details) in passed["trained"].items():
        gauge, variant, direction = key
        beside = {
            n: {"value": passed[n][key][0], "interval": interval(*passed[n][key]),
                **{k: passed[n][key][1][k] for k in ("censored", "at_least", "at_most")}}
            for n in rest
        }  # fmt: skip
        name = "radius" if variant == "raw" else "radius beyond"
        readings.append(
            {**common, "gauge": gauge, "variant": name, "value": value,
             "interval": interval(value, details), "controls": beside, "warnings": [],
             "details": {**details, "direction": direction}}
        )  # fmt: skip
    return readings


def small_maps(seed: int, bend: float, width: int = 5) -> dict[str, tuple[Map, Tensor]]:
    """A residual tanh layer of strength `bend`, fresh and shuffled versions, on one sample."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * GROUPS, width, generator=draw, dtype=torch.float64)
    first, fresh = torch.randn(2, width, width, generator=draw, dtype=torch.float64)
    mixed = first.flatten()[torch.randperm(width**2, generator=draw)].reshape(width, width)

    def layer(w: Tensor, strength: float) -> Map:
        return lambda x: x + torch.tanh(strength * x @ w)

    return {
        "trained": (layer(first, bend), x),
        "fresh": (layer(fresh, bend / 4), x),
        "shuffled": (layer(mixed, bend), x),
    }


def pieces_reading(seed: int = 0, hidden: int = 24) -> dict[str, Any]:
    """Pieces of one ReLU layer along lines: a unit bends where w·x + b passes 0, in closed form."""
    draw = torch.Generator().manual_seed(seed)
    w, b = torch.randn(hidden, 4, generator=draw), torch.randn(hidden, generator=draw)
    ends = torch.randn(2, 6, 4, generator=draw)

    def count(w: Tensor) -> tuple[list[int], list[list[float]]]:
        left, right = (end @ w.T + b for end in ends)
        places = left / (left - right)
        lists = [sorted(row[(row > 0) & (row < 1)].tolist()) for row in places]
        return [len(one) + 1 for one in lists], lists

    counts, lists = count(w)
    fresh, _ = count(torch.randn(hidden, 4, generator=draw))
    mean = sum(counts) / len(counts)
    half = 2.57 * torch.tensor(counts).double().std().item() / math.sqrt(len(counts))
    return {
        "variable": "inputs", "site": "(model)", "gauge": "pieces", "variant": "count",
        "value": mean, "interval": [mean - half, mean + half],
        "samples": {"pairs": len(counts)}, "warnings": [],
        "controls": {
            "fresh": {"value": sum(fresh) / len(fresh), "interval": None},
            "shuffled": {"value": None, "interval": None, "missing": "no shuffled weights here"},
        },
        "details": {"counts": counts, "breakpoints": lists[0], "units": hidden},
    }  # fmt: skip


def with_curves(model: dict[str, Any], sites: int = 4) -> dict[str, Any]:
    """The model with curves at its first sites (bending less and less), of itself, and pieces."""
    bends = [0.6 * 0.5**i for i in range(sites)]
    found = []
    for site, bend in zip(model["sites"], bends, strict=False):
        found += curve_readings("features", site, small_maps(1, bend))
    found += curve_readings("inputs", "(model)", small_maps(2, 0.5), is_square=False)
    return {**model, "readings": [*model["readings"], *found, pieces_reading()]}
