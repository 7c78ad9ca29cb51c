"""Paths: two models of one architecture compared, and what lies between them.

Holds: ``compare``, its part ``path_report``, ``along``.
May import: torch, ``secant.errors``, ``secant.gauges``, ``secant.load``, ``secant.readings``,
``secant.surveys``, ``secant.uses``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from secant.curves import with_controls
from secant.errors import ControlError, InputError
from secant.gauges.interval import GROUPS, few_units
from secant.load.data import Units, load_data
from secant.load.feed import Feed
from secant.load.models import Loaded, load_model
from secant.load.options import DEFAULTS, LoadOptions
from secant.maps.sites import find_sites
from secant.readings import ModelReport, Reading, Report, writable
from secant.surveys import report_of
from secant.uses.align import align as matched
from secant.uses.first_order import additivity, first_order
from secant.uses.kernel_readings import kernel_readings
from secant.uses.pairs import MOST_NAMED, check_pair, displacement, pair_notes, random_line
from secant.uses.similarity import similarity
from secant.uses.task_vectors import task_vectors
from secant.uses.walks import (
    Walker,
    barrier_readings,
    chord_readings,
    length_of,
    loss_readings,
)

Progress = Callable[[str, int, int], None]
Tell = Callable[[int, int], None]


def compare(
    a: str | nn.Module,
    b: str | nn.Module,
    data: Any = "demo:digits",
    *,
    base: str | nn.Module | None = None,
    column: str = "text",
    loading: LoadOptions = DEFAULTS,
    weights: Sequence[Path | str] = (),
    rows: int | None = None,
    batch_size: int = 32,
    steps: int = 10,
    seed: int = 0,
    align: bool = False,
    has_repair: bool = False,
    has_controls: bool = True,
    progress: Progress = lambda label, done, total: None,
    out: Path | None = None,
) -> Report:
    """Lay the straight line between two models' weights, and read what they do along it.

    Readings have the variable `weights`: `displacement` of every tensor; with labels, or a model
    that predicts the next token, `loss` and `accuracy` along w(t) = (1-t) a + t b and the
    `barrier`, max over t of L(t) - (1-t) L(0) - t L(1); `chord` of the outputs along the same
    line; `tangent` of A's outputs along b - a, and the share of the change that it explains;
    `kernel`, how far the tangent kernel turns and how it fits the labels at both ends; `cka`,
    how alike the features of their blocks are, whose variable is `features`. Each has a 95 %
    interval over groups of units where it rests on data, and stands beside a step as long in every
    tensor that goes anywhere (`random`), displacement and `cka` beside new weights (`fresh`).

    With a `base` that both were trained from: whether the task vectors a - base and b - base add
    (`sum` of the base's outputs), `disentanglement` and `negation` (see `uses.task_vectors`).

    BatchNorm's statistics are estimated anew at every point, ends included, on the same units
    without their labels. `has_repair` does as much for layers without it (see `uses.channels`).

    A and B must have the same tensors in the same roles. Units that a permutation would bring
    together lie apart here; with `align` B's are first put in the order most like A's, by
    `secant.align` on the weights. B stays the same function; the notes say what was permuted.

    Args:
        a, b: as in `survey`; `loading` holds for both.
        data: as in `survey`. Labels must be classes.
        weights: a file for each model, the base last, if they are named `package.module:factory`.
        steps: how many steps of equal length the path has.
        out: a folder for report.json and report.html.

    Raises: `InputError` for models that differ in tensors, ties or modules, the first ten named;
    for labels without classes; for fewer units than fill three groups; for `align` with a base,
    or of a model that cannot be exported.

    Cost: `steps` + 1 forwards of the data and some ten of a sample, twice with controls; for each
    kernel, two or with controls three, a forward and up to 16 backwards of at most 64 units in
    float64.
    """
    if steps < 2:
        raise InputError(f"compare: a path needs at least 2 steps; got {steps}. Take 10.")
    if align and base is not None:
        raise InputError(
            "compare: models trained from one base have their units in its order, and `align` "
            "would take one of them out of it; got both. Leave out the base or the alignment."
        )
    started = time.perf_counter()
    with nullcontext() if out is None else writable(out):
        given = [a, b] if base is None else [a, b, base]
        first, second, *bases = _loaded(given, loading, weights)
        units = load_data(data, column, loading, rows)
        model = path_report(
            first, second, bases, units, batch_size=batch_size, steps=steps, seed=seed,
            is_aligned=align, has_repair=has_repair, has_controls=has_controls, progress=progress,
        )  # fmt: skip
        report = report_of([model], seed, started)
        if out is not None:
            report.save(out)
    return report


def path_report(
    first: Loaded,
    second: Loaded,
    bases: Sequence[Loaded],
    units: Units,
    *,
    batch_size: int,
    seed: int,
    has_controls: bool,
    progress: Progress,
    steps: int = 10,
    is_aligned: bool = False,
    has_repair: bool = False,
) -> ModelReport:
    """Everything that `compare` reads between two models; `bases` holds their base, if any."""
    started = time.perf_counter()
    for other in (second, *bases):
        check_pair(first, other)
    told_of_order: list[str] = []
    if is_aligned:
        second, told_of_order = _aligned(first, second, units, seed)
    feed = Feed(first, units, groups=GROUPS, batch_size=batch_size, seed=seed)
    name = f"{first.name} → {second.name}"

    def tell(what: str) -> Tell:
        return lambda done, total: progress(f"{name}, {what}", done, total)

    fresh, missing = _fresh(first, seed) if has_controls else (None, {})
    readings = displacement(first.model, second.model, fresh, missing)
    walker = Walker(feed, has_repair=has_repair)
    for other in (second, *bases):
        walker.check_reaches(other.model)
    walked, notes = along(walker, second, steps, seed, has_controls, tell)
    readings += walked
    readings += first_order(
        first.model, second.model, feed, seed=seed, batch_size=batch_size,
        has_controls=has_controls, tell=tell("first order"),
    )  # fmt: skip
    readings += kernel_readings(
        first.model, second.model, feed, None if walker.task is None else walker.task.labels,
        seed=seed, has_controls=has_controls, tell=tell("kernel"),
    )  # fmt: skip
    for one in bases:
        readings += additivity(
            first.model, second.model, one.model, feed, seed=seed, batch_size=batch_size,
            has_controls=has_controls, tell=tell("sum"),
        )  # fmt: skip
        found, told = task_vectors(
            walker, first.model, second.model, one.model, seed=seed,
            has_controls=has_controls, tell=tell("task vectors"),
        )  # fmt: skip
        readings += found
        notes += [f"Task vectors from {one.name}.", *told]
    sites = find_sites(first.model)
    readings += similarity(
        first.model, second.model, fresh, missing, feed, sites, tell("similarity")
    )
    return ModelReport(
        name, feed.units.name, len(feed.units), len(feed.units), sites, readings,
        {"seconds": time.perf_counter() - started},
        [*few_units(len(feed.units)), *feed.notes, *pair_notes(first, second), *told_of_order,
         *notes],
    )  # fmt: skip


def _loaded(
    models: Sequence[str | nn.Module], loading: LoadOptions, weights: Sequence[Path | str]
) -> list[Loaded]:
    if not weights:
        return [load_model(one, loading) for one in models]
    if len(weights) != len(models) or loading.weights is not None:
        raise InputError(
            f"compare: give `weights` once for each of {len(models)} models, in their order, and "
            f"none in `loading`; got {len(weights)}."
        )
    pairs = zip(models, weights, strict=True)
    return [load_model(one, replace(loading, weights=file)) for one, file in pairs]


def _aligned(a: Loaded, b: Loaded, units: Units, seed: int) -> tuple[Loaded, list[str]]:
    """B with its units in the order most like A's, and what that did.

    Raises: `InputError` saying why it cannot be done.
    """
    try:
        found = matched(a, b, units, seed=seed)
    except InputError as error:
        raise InputError(
            f"compare: B cannot be aligned. {error} Or compare them as they are, without --align."
        ) from error
    moved = [
        f"{each.name} {found.moved(each.axis)} of {each.size * each.copies}"
        for each in found.symmetries
    ]
    listed = "; ".join(moved[:MOST_NAMED])
    more = f"; and {len(moved) - MOST_NAMED} more axes" if len(moved) > MOST_NAMED else ""
    notes = [
        f"B's units were put in the order most like A's, by their weights; moved: {listed}{more}."
        if moved
        else "B has no units whose order could be changed: it was compared as it is.",
        f"Distance of the parameters {found.before:.6g} before, {found.after:.6g} after; B's "
        f"outputs changed by {found.difference:.1e} of the largest: rounding.",
    ]
    return replace(b, model=found.model), notes


def _fresh(loaded: Loaded, seed: int) -> tuple[nn.Module | None, dict[str, str]]:
    try:
        return loaded.fresh(seed), {}
    except ControlError as error:
        return None, {"fresh": str(error)}


def along(
    walker: Walker,
    b: Loaded,
    steps: int,
    seed: int,
    has_controls: bool,
    tell: Callable[[str], Tell],
) -> tuple[list[Reading], list[str]]:
    """What is read along the path, and what must be known of it."""
    line = walker.line(walker.feed.loaded.model, b.model)
    ts = [place / steps for place in range(steps + 1)]
    walks = []
    for what, one in (("path", line), ("random step", random_line(line, seed))):
        if what == "path" or has_controls:
            stops = walker.stops(one, ts, tell(f"{what}, statistics"))
            walks.append(walker.walk(stops, tell(what)))
    walk, control = walks[0], walks[1] if has_controls else None
    notes, readings = _channel_notes(walker), []
    if walker.task is None:
        notes.append(f"No loss along the path: {walker.why_no_task}. Outputs only.")
    else:
        readings += barrier_readings(walk, control, walker.task)
        readings += loss_readings(walk, control, walker.task)
        if walker.channels.is_needed:
            stored = walker.walk(walker.bare(line, (0.0, 1.0)))
            readings += [
                replace(one, variant=f"{one.variant}, statistics as stored")
                for one in loss_readings(stored, None, walker.task)
            ]
    beside = {} if control is None else {"random": chord_readings(control, length_of(line))}
    readings += with_controls(chord_readings(walk, length_of(line)), beside)
    return readings, notes


def _channel_notes(walker: Walker) -> list[str]:
    notes, channels = [], walker.channels
    if channels.norms:
        notes.append(
            f"The statistics of {len(channels.norms)} BatchNorm layers were estimated anew at "
            "every point of the path, ends included, on these units without their labels."
        )
        notes.append("The tangent holds them as A has them.")
    if channels.layers:
        notes.append(
            f"REPAIR: {len(channels.layers)} layers have every channel rescaled to the mean and "
            "standard deviation that lie between those of the ends."
        )
    return notes
