"""Experimental gauges of a survey: maps evaluated at points of our own, on a bounded sample.

Holds: ``experiment``, ``experiment_sums``, ``measure``, and the points of the curves.
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
from secant.trials import Design, Key, Trial, Trials, draw_sample

FRACTIONS = (0.1, 0.25, 0.5, 0.75, 0.9)
RHOS = (0.001, 0.01, 0.03, 0.1, 0.25, 0.5, 1.0, 2.0)
RANDOM_RHOS = (0.01, 0.1, 0.25, 0.5, 1.0, 2.0)
SUM_RHOS = (0.01, 0.1, 0.5, 1.0)
"""Fewer points where each costs more or tells less; all of them are in RHOS, whose values serve."""
NOISE_RHO = 1e-8
"""A step so short that what leaves the tangent there is rounding."""
NOISE_ULPS = 16.0
SAME = 1e-4
EVALUATIONS = 2 + len(FRACTIONS) + len(RHOS) + len(RANDOM_RHOS) + 3 * len(SUM_RHOS)
DERIVATIVES = 2

Progress = Callable[[int, int], None]


def experiment(
    model: nn.Module,
    feed: Feed,
    sites: Sequence[str],
    design: Design,
    progress: Progress = lambda done, total: None,
) -> tuple[list[Reading], dict[str, float]]:
    """Readings of chord, tangent, sum and homogeneity at each site and from inputs to output.

    At every site the map is block in to block out (variable `features`); the whole model from
    its inputs, or input embeddings, is the site ``(model)`` of the variable `inputs`. See
    `experiment_sums` for what is evaluated, its cost and its errors, and `curves.with_controls`
    for setting readings beside those of other weights.
    """
    sums, cost = experiment_sums(model, feed, sites, design, progress)
    return [reading for of_site in sums for reading in readings_of(of_site)], cost


def experiment_sums(
    model: nn.Module,
    feed: Feed,
    sites: Sequence[str],
    design: Design,
    progress: Progress = lambda done, total: None,
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

    `progress` is told units done and units in all, each counted once for every map.

    Cost: the dict holds, as multiples of the sample, evaluations and derivatives of all maps
    (33 and 2 each), forwards of the model besides (5), and seconds. Memory: the model's copy,
    and three batches' features at all sites.

    Raises: `InputError` if fewer than three groups hold three distinct units; if a site's
    features do not begin with the unit or have positions that the mask lacks, if its output
    changes from call to call, or an operation has no derivative; if the model fails in
    `design.dtype`.
    """
    started = time.perf_counter()
    sample = draw_sample(feed, design)
    trials = Trials(model, feed, sites, design)
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
                per_unit, rounding = measure(trial)
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
    cost = {
        "experiment_evaluations": float(EVALUATIONS * len(steps)),
        "experiment_derivatives": float(DERIVATIVES * len(steps)),
        "experiment_forwards": trials.forwards_by_unit / len(sample),
        "experiment_seconds": time.perf_counter() - started,
    }
    return found, cost


def measure(trial: Trial) -> tuple[dict[Point, Tensor], Tensor]:
    """The sums of each unit at every point, (units, 3) as in `SiteSums`, and its squared noise.

    Call it inside `derivatives`. Each derivative is taken once and serves every ρ.
    """
    found, x = trial.map, trial.map.x
    has_beyond = found.x.shape == found.y.shape

    def at(step: Tensor) -> Tensor:
        return _counted(found.value(x + step), trial.counted)

    def sums(
        of: Callable[..., tuple[Tensor, Tensor]], *values: Tensor, steps: list[Tensor]
    ) -> Tensor:
        gap, length = torch.vmap(of)(*values)
        beyond = (
            torch.vmap(of)(*values, *steps)[1] if has_beyond else torch.full_like(gap, torch.nan)
        )
        return torch.stack([gap, length, beyond], 1)

    y, along = (_counted(part, trial.counted) for part in found.jvp(x, trial.a))
    along_random = _counted(found.jvp(x, trial.random)[1], trial.counted)
    _check_same(y, _counted(found.y, trial.counted), found.site)
    curves: dict[Point, Tensor] = {}
    end = at(trial.chord)
    for t in FRACTIONS:
        of = partial(_chord_sums, t)
        curves[Point("chord", t, "data")] = sums(
            of, y, at(t * trial.chord), end, steps=[trial.chord]
        )
    tangents, adding, scaling = {}, {}, {}
    for rho in RHOS:
        moved, step = at(rho * trial.a), rho * trial.a
        tangents[Point("tangent", rho, "data")] = sums(
            tangent_sums, y, moved, rho * along, steps=[step]
        )
        if rho in SUM_RHOS:
            other = rho * trial.b
            adding[Point("sum", rho, "data")] = sums(
                sum_sums, at(step + other) - y, moved - y, at(other) - y, steps=[step, other]
            )
            scaling[Point("homogeneity", rho, "data")] = sums(
                _homogeneity_sums, at(SCALE * step) - y, moved - y, steps=[step]
            )
    for rho in RANDOM_RHOS:
        step = rho * trial.random
        tangents[Point("tangent", rho, "random")] = sums(
            tangent_sums, y, at(step), rho * along_random, steps=[step]
        )
    left = at(NOISE_RHO * trial.a) - y - NOISE_RHO * along
    least = NOISE_ULPS * torch.finfo(x.dtype).eps * y
    noise = torch.maximum(*(part.square().flatten(1).sum(1) for part in (left, least)))
    return curves | tangents | adding | scaling, noise


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
