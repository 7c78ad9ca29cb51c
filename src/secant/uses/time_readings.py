"""What a survey reads of a recurrent model in time: how linear its steps are, what they keep.

Holds: ``EXTRAS``, ``time_readings``, ``step_readings``.
May import: torch, ``secant.errors``, ``secant.gauges``, ``secant.load``, ``secant.maps``,
``secant.curves``, ``secant.experiments``, ``secant.fit_readings``, ``secant.passes``,
``secant.readings``, ``secant.trials``, ``secant.uses`` (horizons, time_sums).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secant.curves import readings_of
from secant.engine.plan import Batch
from secant.errors import InputError
from secant.experiments import CURVES, experiment, experiment_sums
from secant.fit_readings import as_control, sums_of
from secant.gauges.fit import FitResult, Score, members_of, residual_within, score
from secant.gauges.interval import GROUPS, jackknife_interval
from secant.load.feed import Feed
from secant.maps.time import Unrolled, recurrent_modules, transitions
from secant.passes import Extra, Tell
from secant.readings import NO_INTERVAL, Reading, interval_of, number
from secant.trials import FEWEST, Design, Key, Map, Trial, draw_sample
from secant.uses.horizons import Decay, LinearUpdate, horizon_sums
from secant.uses.time_sums import TimeResult, TimeSums, gather

TIME = "time"
ROWS_PER_DIMENSION = 10
EARLY_AND_LATE = "early and late inputs"
SAMPLE, AT_ONCE = 256, 32
"""Units that horizons are read on, by content so that no batch size moves them; of a forward."""


def time_readings(model: nn.Module, feed: Feed, seed: int, tell: Tell) -> list[Reading]:
    """Every reading of every recurrent layer, variable `time`.

    `fit` of h_t by h_{t-1} and u_t: `raw` and `beyond` (what the best scalar multiple of the
    state leaves), beside the state alone and the input alone; `horizon`, the same map rolled out
    over more steps; `spectral radius` of its state part. `memory`: how well the state gives the
    input some steps ago, beside what today's input gives of it. `chord`, `tangent`, `sum` and
    `homogeneity` of a step as a function of the state; `sum` of what early and late inputs do to
    the last state.

    Cost: a pass over the data with the steps one by one; some 40 evaluations of the steps of 64
    units in float64; some 15 runs over their sequences.
    Raises: `InputError` as `maps.time.transitions` does, or for units in fewer than three folds.
    """
    if not recurrent_modules(model):
        raise InputError(
            f"time: {type(model).__name__} has no recurrent layer that is known: torch's RNN, GRU "
            "and LSTM, their cells, and modules with a `step(x, state)`. Give a layer that method."
        )
    with torch.no_grad():
        sums, skipped = gather(model, feed, seed, tell)
        if not sums:
            raise InputError(next(iter(skipped.values())))
        found = []
        results = {site: of_site.result() for site, of_site in sums.items()}
        for site, of_site in sums.items():
            found += step_readings(site, of_site, results[site], len(feed.units))
        held_out = {
            (site, group): maps
            for site, of_site in sums.items() if of_site.is_chained
            for group, maps in _held_out(of_site, results[site].whole.ridges).items()
        }  # fmt: skip
        found += _horizons(model, feed, held_out, seed)
    design = Design(seed=seed)
    found += experiment(model, feed, partial(_steps, sums), design, tell)[0]
    found += _early_and_late(model, feed, sums, design, tell)
    return _told(found) + [_without(site, reason) for site, reason in skipped.items()]


def _told(readings: list[Reading]) -> list[Reading]:
    """The readings, with a warning where a layer has no curves."""
    drawn = {one.site for one in readings if one.gauge in CURVES}
    lacking = "It does not take part in every batch: no curves."
    return [
        one if one.site in drawn or (one.gauge, one.variant) != ("fit", "raw")
        else replace(one, warnings=[*one.warnings, lacking])
        for one in readings
    ]  # fmt: skip


def _without(site: str, reason: str) -> Reading:
    """A layer that could not be read, and why."""
    return Reading(TIME, site, "fit", "raw", None, None, {"units": 0, "rows": 0}, {}, [reason])


def step_readings(site: str, sums: TimeSums, result: TimeResult, units: int) -> list[Reading]:
    """The readings that one layer's sums hold: fit, spectral radius, memory."""
    rows = result.whole.rows
    samples = {"units": units, "rows": rows}
    warnings = []
    regressors = sums.state + sums.width
    if rows < ROWS_PER_DIMENSION * regressors:
        warnings.append(
            f"{rows} rows for {regressors} regressors; at least "
            f"{ROWS_PER_DIMENSION * regressors} are wanted, so the fit is held back by its sample."
        )
    details = {"state": sums.state, "inputs": sums.width, "ridges": result.whole.ridges}
    readings = []
    for variant, own, beside in _scores(result):
        controls = {name: as_control(other, own) for name, other in beside.items()}
        told = warnings + (result.notes if variant == "raw" else [])
        one = _reading((site, "fit", variant), own, samples, controls, details | sums_of(own))
        readings.append(replace(one, warnings=told + one.warnings))
    readings.append(_spectral(site, sums, result.whole, samples, warnings))
    directions = len(sums.memory.y_centre) // len(sums.lags)
    for lag, (own, echo) in result.memory.items():
        place = {"lag": lag, "directions": directions} | sums_of(own)
        today = {"input": as_control(echo, own)}
        some = {"units": sums.remembering, "rows": int(sums.memory.sum_rows.sum())}
        readings.append(_reading((site, "memory", "raw"), own, some, today, place))
    return readings


def _scores(result: TimeResult) -> list[tuple[str, Score, dict[str, Score]]]:
    """Variant, score and controls of the fit of a step."""
    whole, alone = result.whole, result.alone
    residual = [torch.tensor(one, dtype=torch.float64) for one in whole.scores["raw"].residual]
    beyond = residual_within(residual, alone.scores)["beyond"]
    if whole.scores["raw"].value == 1:  # what is left is rounding, as `Fit` found
        totals = [torch.tensor(one, dtype=torch.float64) for one in beyond.total]
        beyond = score(residual, totals, is_exact=True)
    assert alone.residual_alone is not None
    beside = {
        "residual": alone.residual_alone,
        "state alone": alone.scores["raw"],
        "input alone": result.inputs.scores["raw"],
    }
    return [
        ("raw", whole.scores["raw"], beside),
        ("beyond", beyond, {}),
        ("whitened", whole.scores["whitened"], {}),
    ]


def _reading(
    what: tuple[str, str, str], own: Score, samples: dict[str, int], controls: dict[str, Any],
    details: dict[str, Any],
) -> Reading:  # fmt: skip
    """The reading of `what`, site and gauge and variant, with why a number is missing."""
    value, interval = number(own.value), interval_of(own.interval)
    told = []
    if value is None:
        told.append("What it is measured against is constant on this data: no score exists.")
    elif interval is None:
        told.append(NO_INTERVAL)
    return Reading(TIME, *what, value, interval, samples, controls, told, details)


def _spectral(
    site: str, sums: TimeSums, whole: FitResult, samples: dict[str, int], warnings: list[str]
) -> Reading:
    """The largest modulus of the eigenvalues of the fitted state map, and all of them."""
    ridge = sorted(whole.ridges)[len(whole.ridges) // 2]
    values = LinearUpdate.of(*sums.map_without([], ridge)).eigenvalues()
    filled = [g for g, rows in enumerate(sums.whole.sums().rows.tolist()) if rows > 0]
    left_out = [
        float(LinearUpdate.of(*sums.map_without([group], ridge)).eigenvalues()[0].abs())
        for group in filled
    ]
    value = float(values[0].abs())
    ends = jackknife_interval(value, torch.tensor(left_out, dtype=torch.float64))
    interval = interval_of((max(ends[0], 0.0), ends[1]))
    details = {
        "eigenvalues": [[one.real, one.imag] for one in values.tolist()],
        "of_all_groups": value,
        "without_each_group": left_out,
    }
    return Reading(
        TIME, site, "fit", "spectral radius", number(value), interval, samples, {}, warnings,
        details,
    )  # fmt: skip


def _horizons(
    model: nn.Module,
    feed: Feed,
    held_out: Mapping[tuple[str, int], tuple[LinearUpdate, Decay]],
    seed: int,
) -> list[Reading]:
    """The fit rolled out on a sample of the units, for each site and group by its held-out maps."""
    tables: dict[tuple[str, int], Tensor] = {}
    for batch in _sampled(feed, seed):
        forward, mask = feed.forward(model, batch)
        for site, part in transitions(model, forward).items():
            if (site, batch.group) not in held_out:
                continue
            update, decay = held_out[site, batch.group]
            found = horizon_sums(update, decay, part.x, part.inputs, part.y, part.counted(mask))
            for steps, five in found.items():
                empty = torch.zeros(GROUPS, 5, dtype=torch.float64)
                tables.setdefault((site, steps), empty)[batch.group] += five.cpu()
    readings = []
    for (site, steps), table in tables.items():
        kept = table[table[:, 2] > 0]
        samples = {"units": int(table[:, 4].sum()), "rows": int(table[:, 3].sum())}
        if len(kept) < FEWEST:  # too few of the units are so long
            continue
        own, alone = (score(list(kept[:, column]), list(kept[:, 2])) for column in (0, 1))
        details = {"steps": steps} | sums_of(own)
        beside = {"residual": as_control(alone, own)}
        readings.append(_reading((site, "fit", "horizon"), own, samples, beside, details))
    return readings


def _sampled(feed: Feed, seed: int) -> list[Batch]:
    """Units drawn by their content, in batches of one group each, those of one length together."""
    group_of = {unit: batch.group for batch in feed.batches for unit in batch.units}
    sample = draw_sample(feed, Design(units=SAMPLE, seed=seed))
    of_group: dict[int, list[int]] = {}
    for member in sorted(sample, key=lambda one: (feed.lengths[one.unit], one.code)):
        of_group.setdefault(group_of[member.unit], []).append(member.unit)
    return [
        Batch(group, tuple(units[start : start + AT_ONCE]))
        for group, units in sorted(of_group.items())
        for start in range(0, len(units), AT_ONCE)
    ]


def _held_out(sums: TimeSums, ridges: list[float]) -> dict[int, tuple[LinearUpdate, Decay]]:
    """For each group the update, and the decay, fitted on the other folds."""
    found: dict[int, tuple[LinearUpdate, Decay]] = {}
    members = members_of(sums.whole.sums().rows)
    for ridge, of_fold in zip(ridges, members, strict=True):
        fitted = LinearUpdate.of(*sums.map_without(of_fold, ridge)), sums.decay_without(of_fold)
        found |= dict.fromkeys(of_fold, fitted)
    return found


def _steps(
    sums: Container[str], model: nn.Module, forward: Callable[[], Any], mask: Tensor | None
) -> dict[Key, Map]:
    """A step of each layer as a function of its state."""
    found = transitions(model, forward)
    return {(TIME, site): part for site, part in found.items() if site in sums}


def _sequences(
    sums: Mapping[str, TimeSums],
    model: nn.Module,
    forward: Callable[[], Any],
    mask: Tensor | None,
) -> dict[Key, Map]:
    """The last state of each layer that can be followed, as a function of all its inputs."""
    return {
        (TIME, site): Unrolled(part, part.counted(mask))
        for site, part in transitions(model, forward).items()
        if site in sums and sums[site].is_chained
    }


def _early_and_late(
    model: nn.Module, feed: Feed, sums: Mapping[str, TimeSums], design: Design, tell: Tell
) -> list[Reading]:
    """`sum` for the inputs of the first half of the steps and those of the second."""
    if not any(of_site.is_chained for of_site in sums.values()):
        return []
    capture = partial(_sequences, sums)
    found, _ = experiment_sums(model, feed, capture, design, tell, ("sum",), alter=_halves)
    readings = []
    for of_site in found:
        points = {
            point._replace(direction=EARLY_AND_LATE): of for point, of in of_site.points.items()
        }
        readings += readings_of(replace(of_site, points=points))
    return readings


def _halves(trial: Trial) -> Trial:
    """The step towards one partner in the first half of the steps, to the other in the second."""
    assert isinstance(trial.map, Unrolled)
    taken = trial.map.taken
    steps = trial.map.x.shape[1]
    if taken is None:
        is_early = torch.arange(steps, device=trial.a.device)[None] < steps // 2
    else:
        is_early = taken.cumsum(1) <= taken.sum(1, keepdim=True) // 2
    early = is_early[..., None].to(trial.a)
    return trial._replace(a=trial.a * early, b=trial.b * (1 - early))


EXTRAS = (
    Extra("time", "time", time_readings, lambda feed: bool(recurrent_modules(feed.loaded.model))),
)
