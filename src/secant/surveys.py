"""Surveys: joins models, data and gauges into readings, one forward pass for each model.

Holds: ``survey`` and its parts. Named apart from the function, which a submodule of one name
would hide as ``secant.survey``.
May import: torch, rich, and everything below in DESIGN.md's order.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from secant.errors import ControlError, InputError
from secant.gauges.fit import Fit, FitResult, Score
from secant.gauges.interval import GROUPS
from secant.load.data import Units, load_data
from secant.load.feed import Feed
from secant.load.models import Loaded, load_model, shuffled
from secant.load.options import DEFAULTS, LoadOptions
from secant.maps.features import rows, watch
from secant.maps.sites import find_sites
from secant.readings import ModelReport, Reading, Report

Progress = Callable[[str, int, int], None]
ROWS_PER_DIMENSION = 10
LEADING_SHARE = 0.5


def accumulate(
    feed: Feed, model: nn.Module, sites: Sequence[str], progress: Callable[[int, int], None]
) -> dict[str, Fit]:
    """One pass: the sums of every site. The first batch sets the centres and counts as well."""
    gauges: dict[str, Fit] = {}
    done, total = 0, sum(len(batch.units) for batch in feed.batches)

    def listener(site: str, x: Tensor, y: Tensor) -> None:
        x, y = rows(x, mask), rows(y, mask)
        if site not in gauges:
            gauges[site] = Fit(x.double().mean(0), y.double().mean(0)).to(x.device)
        gauges[site].update(x, y, batch.group)

    for batch in feed.batches:
        forward, mask = feed.forward(model, batch)
        with torch.inference_mode(), watch(model, list(sites), listener):
            forward()
        done += len(batch.units)
        progress(done, total)
    missing = [site for site in sites if site not in gauges]
    if missing:
        raise InputError(
            f"site {missing[0]!r} was never called in a forward pass. Choose a site that runs."
        )
    return gauges


def warnings_of(result: FitResult) -> list[str]:
    """What a reader must know before trusting a reading."""
    warnings = []
    width = len(result.affine.weight)
    if result.rows < ROWS_PER_DIMENSION * width:
        warnings.append(
            f"{result.rows} rows for {width} dimensions; at least "
            f"{ROWS_PER_DIMENSION * width} are wanted, so the fit is held back by its sample."
        )
    if math.isnan(result.scores["raw"].value):
        warnings.append("The site is constant or not finite on this data: no score exists.")
    elif result.leading_share > LEADING_SHARE:
        warnings.append(
            f"One dimension holds {result.leading_share:.0%} of the output's variance; "
            "raw scores speak of it alone. See `whitened`."
        )
    return warnings


def scores_of(result: FitResult) -> dict[str, Score]:
    """Every variant of the fit, the in-sample one among them, which has no interval."""
    in_sample = Score(result.procrustes, None, [], [])
    return result.scores | {"procrustes_in_sample": in_sample}


def as_control(score: Score) -> dict[str, Any]:
    """A score as it stands beside a reading."""
    return {"value": score.value, "interval": score.interval}


def readings_of(
    site: str,
    result: FitResult,
    controls: dict[str, FitResult],
    units: int,
    missing: dict[str, str],
) -> list[Reading]:
    """The readings of the fit gauge at one site, beside the same site of each control.

    `missing` maps a control that could not be made to the reason.
    """
    samples = {"units": units, "rows": result.rows}
    warnings = warnings_of(result)
    warnings += [f"No {name} control: {reason}" for name, reason in missing.items()]
    details = {"rank": result.rank, "ridges": result.ridges, "per": "position"}
    readings = []
    for variant, score in scores_of(result).items():
        beside = {}
        if variant == "raw" and result.residual_alone is not None:
            beside["residual"] = as_control(result.residual_alone)
        for name, control in controls.items():
            beside[name] = as_control(scores_of(control)[variant])
        for name, reason in missing.items():
            beside[name] = {"value": None, "interval": None, "reason": reason}
        sums = {"residual_by_group": score.residual, "total_by_group": score.total}
        readings.append(
            Reading(
                "features", site, "fit", variant, score.value, score.interval, samples,
                beside, warnings, details | (sums if score.total else {}),
            )
        )  # fmt: skip
    return readings


def survey_model(
    loaded: Loaded,
    units: Units,
    *,
    sites: list[str] | None,
    batch_size: int,
    seed: int,
    has_controls: bool,
    progress: Progress,
) -> ModelReport:
    """Readings of one model, each beside fresh and shuffled weights if `has_controls`."""
    started = time.perf_counter()
    feed = Feed(loaded, units, groups=GROUPS, batch_size=batch_size, seed=seed)
    units = feed.units  # without empty texts
    names = find_sites(loaded.model, sites)

    def pass_over(model: nn.Module, what: str) -> dict[str, FitResult]:
        label = f"{loaded.name} ({what})"
        gauges = accumulate(feed, model, names, lambda done, total: progress(label, done, total))
        return {site: gauge.compute() for site, gauge in gauges.items()}

    results = pass_over(loaded.model, "trained")
    trained_seconds = time.perf_counter() - started
    controls, missing = {}, {}
    if has_controls:
        try:
            fresh = loaded.fresh(seed)
        except ControlError as error:
            missing["fresh"] = str(error)
        else:
            controls["fresh"] = pass_over(fresh, "fresh weights")
        controls["shuffled"] = pass_over(shuffled(loaded.model, seed), "shuffled weights")
    readings = []
    for site in names:
        beside = {control: of_site[site] for control, of_site in controls.items()}
        readings += readings_of(site, results[site], beside, len(units), missing)
    cost = {
        "trained_pass_seconds": trained_seconds,
        "seconds": time.perf_counter() - started,
    }
    rows = max(result.rows for result in results.values())
    return ModelReport(loaded.name, units.name, len(units), rows, names, readings, cost, feed.notes)


def survey(
    models: Sequence[str | nn.Module],
    data: Any = "demo:digits",
    *,
    column: str = "text",
    loading: LoadOptions = DEFAULTS,
    sites: list[str] | None = None,
    rows: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    has_controls: bool = True,
    progress: Progress = lambda label, done, total: None,
) -> Report:
    """Survey `models` on `data`: the held-out fit at every site, beside its controls.

    `models` are what `load_model` takes, `nn.Module` objects among it; `data` what `load_data`
    takes, tensors, texts and DataLoaders among it; `loading` says how to read them.
    `sites` are module paths or globs, the model's repeated blocks if None; `rows` keeps the
    first so many units (documents or images). `progress` is told label, units done and total.

    Cost: one forward pass and the moments for each model, two more with controls.

    Raises: `InputError` (`LoadError` for files) for anything that cannot be used.
    """
    started = time.perf_counter()
    units = load_data(data, column, loading, rows)
    reports = [
        survey_model(
            load_model(name, loading), units, sites=sites, batch_size=batch_size, seed=seed,
            has_controls=has_controls, progress=progress,
        )
        for name in models
    ]  # fmt: skip
    packages = ("secant", "torch", "torchmetrics", "numpy")
    return Report(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=seed,
        versions={"python": platform.python_version()} | {p: version(p) for p in packages},
        hardware=f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        cost={"seconds": time.perf_counter() - started},
        models=reports,
    )
