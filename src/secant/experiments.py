"""Experimental gauges of a survey: maps evaluated at points of our own, on a bounded sample.

Holds: ``experiment``, ``experiment_sums``, ``evaluations_of``, ``measure``, and the points of the
curves.
May import: torch, ``secant.errors``, ``secant.load``, ``secant.maps``, ``secant.gauges``,
``secant.curves``, ``secant.trials``, ``secant.readings``.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from secant.curves import SCALE, Point, SiteSums, group_sums, readings_of
from secant.errors import InputError
from secant.gauges.chord import chord_sums
from secant.gauges.sum import homogeneity_sums, sum_sums
from secant.gauges.tangent import tangent_sums
from secant.load.feed import Feed
from secant.maps.derivatives import derivatives
from secant.readings import Reading
from secant.trials import Capture, Design, Key, Trial, Trials, draw_sample

FRACTIONS = (0.1, 0.25, 0.5, 0.75, 0.9)
RHOS = (0.001, 0.01, 0.03, 0.1, 0.25, 0.5, 1.0, 2.0)
RANDOM_RHOS = (0.01, 0.1, 0.25, 0.5, 1.0, 2.0)
SUM_RHOS = (0.01, 0.1, 0.5, 1.0)
"""Fewer points where each costs more or tells less; all of them are in RHOS, whose values serve."""
NOISE_RHO = 1e-8
"""A step so short that what leaves the tangent there is rounding."""
NOISE_ULPS = 16.0
SAME = 1e-4
CURVES = ("chord", "tangent", "sum", "homogeneity")

Progress = Callable[[int, int], None]
Curves = dict[Point, Tensor]


def experiment(
    model: nn.Module,
    feed: Feed,
    capture: Capture,
    design: Design,
    progress: Progress = lambda done, total: None,
    gauges: Sequence[str] = CURVES,
) -> tuple[list[Reading], dict[str, float]]:
    """Readings of chord, tangent, sum and homogeneity for every map that `capture` gives.

    Only those of `gauges` are taken, to the same bits as beside the others.

    With `trials.features_at` the map at every site is block in to block out (variable
    `features`); the whole model from its inputs, or input embeddings, is the site ``(model)`` of
    the variable `inputs`. With `maps.time` it is state to next state (variable `time`). See
    `experiment_sums` for what is evaluated, its cost and its errors, and `curves.with_controls`
    for setting readings beside those of other weights.
    """
    sums, cost = experiment_sums(model, feed, capture, design, progress, gauges)
    return [reading for of_site in sums for reading in readings_of(of_site)], cost


def experiment_sums(
    model: nn.Module,
    feed: Feed,
    capture: Capture,
    design: Design,
    progress: Progress = lambda done, total: None,
    gauges: Sequence[str] = CURVES,
    alter: Callable[[Trial], Trial] = lambda trial: trial,
) -> tuple[list[SiteSums], dict[str, float]]:
    """The sums by group behind `experiment`'s readings, and their cost.

    A unit's point x moves towards the points of two other units of its group, so that groups
    stay independent: images towards images; each counted position of a text towards one position
    of the other (see `trials.towards`). Positions that the mask leaves out neither move nor
    count. ``chord`` goes the whole way; the others step ρ times the site's median distance
    between points, towards the partners (``data``) or along isotropic Gaussian directions
    (``random``). Norms run over a whole unit.

    The model is copied to `design.dtype`, and is not touched. In float64, an affine map reads 0
    to rounding at the shortest step; in float32 the floor of a point is some 1e9 times higher.
    The noise is what leaves the tangent along a step of 1e-8, at least 16 units in the last place.
    `alter` may give a trial other steps of its own before it is made.

    `progress` is told units done and units in all, each counted once for every map.

    Cost: the dict holds, as multiples of the sample, evaluations and derivatives of all maps
    (33 and 2 each for all gauges; see `evaluations_of`), forwards of the model besides (5), and
    seconds. Memory: the model's copy, and three batches' features at all sites.

    Raises: `InputError` if fewer than three groups hold three distinct units; if a site's
    features do not begin with the unit or have positions that the mask lacks, if its output
    changes from call to call, or an operation has no derivative; if the model fails in
    `design.dtype`.
    """
    started = time.perf_counter()
    sample = draw_sample(feed, design)
    trials = Trials(model, feed, capture, design)
    by_length = sorted(sample, key=lambda member: (feed.lengths[member.unit], member.code))
    size = design.batch_size
    batches = [by_length[start : start + size] for start in range(0, len(sample), size)]
    count = 1 + max(member.group for member in sample)
    points: dict[Key, dict[Point, Tensor]] = {}
    noise: Counter[Key] = Counter()
    rows: Counter[Key] = Counter()
    done = 0
    with derivatives():
        steps = trials.steps(batches)
        for batch in batches:
            groups = torch.tensor([member.group for member in batch])
            for key, trial in trials.of(batch, steps):
                per_unit, rounding = measure(alter(trial), gauges)
                table = points.setdefault(key, {})
                for point, sums in per_unit.items():
                    added = group_sums(sums, groups, count)
                    table[point] = table[point] + added if point in table else added
                noise[key] += float(rounding.sum())  # type: ignore[assignment]
                rows[key] += trial.rows
                done += len(batch)
                progress(done, len(sample) * len(steps))
    found = [
        SiteSums(*key, steps[key], len(sample), rows[key], noise[key] ** 0.5, table)
        for key, table in points.items()
    ]
    evaluations, jvps = evaluations_of(gauges)
    cost = {
        "experiment_evaluations": float(evaluations * len(steps)),
        "experiment_derivatives": float(jvps * len(steps)),
        "experiment_forwards": trials.forwards_by_unit / len(sample),
        "experiment_seconds": time.perf_counter() - started,
    }
    return found, cost


def rhos_of(gauges: Sequence[str]) -> tuple[float, ...]:
    """The steps along `a` that these gauges need."""
    if "tangent" in gauges:
        return RHOS
    return SUM_RHOS if {"sum", "homogeneity"} & set(gauges) else ()


def evaluations_of(gauges: Sequence[str]) -> tuple[int, int]:
    """Evaluations and derivatives of a map that these gauges cost, as multiples of the sample.

    One of each says how large the rounding is, whatever is read.
    """
    alone = {
        "chord": 1 + len(FRACTIONS),
        "tangent": len(RANDOM_RHOS),
        "sum": 2 * len(SUM_RHOS),
        "homogeneity": len(SUM_RHOS),
    }
    evaluations = 1 + len(rhos_of(gauges)) + sum(alone[gauge] for gauge in set(gauges))
    return evaluations, 2 if "tangent" in gauges else 1


def measure(trial: Trial, gauges: Sequence[str] = CURVES) -> tuple[Curves, Tensor]:
    """The sums of each unit at every point, (units, 3) as in `SiteSums`, and its squared noise.

    Call it inside `derivatives`. Each derivative is taken once and serves every ρ.
    """
    x = trial.map.x
    y, along = (_counted(part, trial.counted) for part in trial.map.jvp(x, trial.a))
    _check_same(y, _counted(trial.map.y, trial.counted), trial.map.site)
    curves = _chord(trial, y) if "chord" in gauges else {}
    curves |= _towards_partners(trial, y, along, gauges)
    if "tangent" in gauges:
        curves |= _random_tangent(trial, y)
    left = _at(trial, NOISE_RHO * trial.a) - y - NOISE_RHO * along
    least = NOISE_ULPS * torch.finfo(x.dtype).eps * y
    noise = torch.maximum(*(part.square().flatten(1).sum(1) for part in (left, least)))
    # In one order whatever was evaluated first: readings come in it.
    return dict(sorted(curves.items(), key=lambda item: CURVES.index(item[0].gauge))), noise


def _chord(trial: Trial, y: Tensor) -> Curves:
    end, curves = _at(trial, trial.chord), {}
    for t in FRACTIONS:
        values = y, _at(trial, t * trial.chord), end
        of = partial(_chord_sums, t)
        curves[Point("chord", t, "data")] = _sums(trial, of, values, [trial.chord])
    return curves


def _towards_partners(trial: Trial, y: Tensor, along: Tensor, gauges: Sequence[str]) -> Curves:
    """`tangent`, `sum` and `homogeneity`: the output a step ρ along `a` serves all three."""
    curves: Curves = {}
    for rho in rhos_of(gauges):
        step = rho * trial.a
        moved = _at(trial, step)
        if "tangent" in gauges:
            values = y, moved, rho * along
            curves[Point("tangent", rho, "data")] = _sums(trial, tangent_sums, values, [step])
        if "sum" in gauges and rho in SUM_RHOS:
            other = rho * trial.b
            values = _at(trial, step + other) - y, moved - y, _at(trial, other) - y
            curves[Point("sum", rho, "data")] = _sums(trial, sum_sums, values, [step, other])
        if "homogeneity" in gauges and rho in SUM_RHOS:
            scaled = _at(trial, SCALE * step) - y, moved - y
            curves[Point("homogeneity", rho, "data")] = _sums(
                trial, _homogeneity_sums, scaled, [step]
            )
    return curves


def _random_tangent(trial: Trial, y: Tensor) -> Curves:
    along, curves = _counted(trial.map.jvp(trial.map.x, trial.random)[1], trial.counted), {}
    for rho in RANDOM_RHOS:
        step = rho * trial.random
        values = y, _at(trial, step), rho * along
        curves[Point("tangent", rho, "random")] = _sums(trial, tangent_sums, values, [step])
    return curves


def _at(trial: Trial, step: Tensor) -> Tensor:
    """The map's output a step from its point."""
    return _counted(trial.map.value(trial.map.x + step), trial.counted)


def _sums(
    trial: Trial,
    of: Callable[..., tuple[Tensor, Tensor]],
    values: Sequence[Tensor],
    steps: Sequence[Tensor],
) -> Tensor:
    """Squared gap and length of each unit, and the length without the residual's share."""
    gap, length = torch.vmap(of)(*values)
    if trial.map.x.shape == trial.map.y.shape:
        beyond = torch.vmap(of)(*values, *steps)[1]
    else:
        beyond = torch.full_like(gap, torch.nan)
    return torch.stack([gap, length, beyond], 1)


def _chord_sums(
    t: float, y: Tensor, between: Tensor, end: Tensor, *change: Tensor
) -> tuple[Tensor, Tensor]:
    return chord_sums(y, between, end, t, *change)


def _homogeneity_sums(scaled: Tensor, delta: Tensor, *step: Tensor) -> tuple[Tensor, Tensor]:
    return homogeneity_sums(scaled, delta, SCALE, *step)


def _counted(y: Tensor, counted: Tensor | None) -> Tensor:
    """The output in float64, zero where it does not count, whatever stood there."""
    y = y.double()
    if counted is None:
        return y
    return torch.where(counted.view(*counted.shape, *[1] * (y.ndim - 2)), y, 0.0)


def _check_same(again: Tensor, captured: Tensor, site: str) -> None:
    """Refuse a site that gives another output when it is called again, as one with state does."""
    apart, whole = float((again - captured).norm()), float(captured.norm())
    if apart > SAME * whole:
        raise InputError(
            f"site {site!r}: expected the same output when called again on the same input; it "
            f"moved by {apart / whole if whole else apart:.2g} of its norm. It keeps state or "
            "draws at random; choose a site that does not."
        )
