"""Surveys: joins models, data and gauges into readings, one forward pass for each model.

Holds: ``survey`` and its parts. Named apart from the function, which a submodule of one name
would hide as ``secant.survey``.
May import: torch, rich, and everything below in DESIGN.md's order.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version

import torch
from torch import nn

from secant.fit_readings import duplicates_of, fit_readings
from secant.gauges.interval import GROUPS
from secant.load.data import Units, load_data
from secant.load.feed import Feed
from secant.load.models import Loaded, load_model, shuffled
from secant.maps.sites import find_sites
from secant.observe import Observer, accumulate, results_of
from secant.readings import ModelReport, Report

Progress = Callable[[str, int, int], None]


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
    names = find_sites(loaded.model, sites)

    def pass_over(model: nn.Module, what: str) -> Observer:
        label = f"{loaded.name} ({what})"
        return accumulate(feed, model, names, lambda done, total: progress(label, done, total))

    observer = pass_over(loaded.model, "trained")
    results, twins = results_of(observer), duplicates_of(observer)
    trained_seconds = time.perf_counter() - started
    controls = {}
    if has_controls:
        controls["fresh"] = results_of(pass_over(loaded.fresh(seed), "fresh weights"))
        other = shuffled(loaded.model, seed)
        controls["shuffled"] = results_of(pass_over(other, "shuffled weights"))
    readings = []
    for site in names:
        beside = {control: of_site[site] for control, of_site in controls.items()}
        readings += fit_readings(site, results[site], beside, len(units), twins.get(site))
    cost = {
        "trained_pass_seconds": trained_seconds,
        "seconds": time.perf_counter() - started,
    }
    rows = max(result.fit.rows for result in results.values())
    return ModelReport(loaded.name, units.name, len(units), rows, names, readings, cost)


def survey(
    models: Sequence[str],
    data: str = "demo:digits",
    *,
    column: str = "text",
    sites: list[str] | None = None,
    rows: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    has_controls: bool = True,
    progress: Progress = lambda label, done, total: None,
) -> Report:
    """Survey `models` on `data`: the held-out fit at every site, beside its controls.

    `sites` are module paths or globs, the model's repeated blocks if None; `rows` keeps the
    first so many units (documents or images). `progress` is told label, units done and total.

    Cost: one forward pass and the moments for each model, two more with controls.

    Raises: `InputError` (`LoadError` for files) for anything that cannot be used.
    """
    started = time.perf_counter()
    units = load_data(data, column).first(rows)
    reports = [
        survey_model(
            load_model(name), units, sites=sites, batch_size=batch_size, seed=seed,
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
