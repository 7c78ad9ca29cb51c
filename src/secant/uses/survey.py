"""Surveys from start to end: models and data loaded, everything read, the report written.

Holds: ``survey``.
May import: torch, ``secant.errors``, ``secant.engine``, ``secant.gauges``, ``secant.load``,
``secant.passes``, ``secant.readings``, ``secant.records``, ``secant.surveys``, ``secant.uses``
(pairs, paths, time_readings, weight_readings).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secant.engine.checkpoint import Checkpoint, open_checkpoint
from secant.errors import InputError, SecantError, StateError
from secant.gauges.interval import GROUPS
from secant.load.data import Units, load_data
from secant.load.feed import Feed
from secant.load.models import Loaded, load_model
from secant.load.options import DEFAULTS, LoadOptions
from secant.passes import Progress, Settings, kept
from secant.readings import ModelReport, Report, hardware, writable
from secant.surveys import digest_of, digest_of_output, report_of, survey_model, versions
from secant.uses.pairs import check_pair
from secant.uses.paths import path_report
from secant.uses.time_readings import EXTRAS as OF_TIME
from secant.uses.weight_readings import EXTRAS as OF_WEIGHTS

EXTRAS = (*OF_WEIGHTS, *OF_TIME)
STATES = ".states"
"""Folder within `out` for what a run has found so far."""


def survey(
    models: Sequence[str | nn.Module],
    data: Any = "demo:digits",
    *,
    base: str | Path | nn.Module | None = None,
    column: str = "text",
    loading: LoadOptions = DEFAULTS,
    sites: list[str] | None = None,
    gauges: list[str] | None = None,
    rows: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    has_controls: bool = True,
    progress: Progress = lambda label, done, total: None,
    out: Path | None = None,
    resume: bool = False,
) -> Report:
    """Survey `models` on `data`: every gauge at every site, beside its controls.

    With a `base` that the models were trained from, a second card for each says what lies between
    the two, as `compare(base, model)` does: how far the weights moved, what the first order
    explains of the change, the barrier, how far the kernel turned. A base of models named
    `package.module:factory` is its file of weights.

    `models` are what `load_model` takes, `nn.Module` objects among it; `data` what `load_data`
    takes, tensors, texts and DataLoaders among it; `loading` says how to read them.
    `sites` are module paths or globs, the model's repeated blocks if None; `rows` keeps the
    first so many units (documents or images); `gauges` are of `secant.passes.GAUGES`, all that
    the model allows if None. `progress` is told label, units done and total.
    `out` is a folder for report.json and report.html. Until they are written the sums are kept
    there each minute; with `resume` the run that was cut off there goes on, to the same readings
    bit for bit.

    Cost: one forward pass and the moments for each model; some 35 evaluations and two
    derivatives of every block, and of the model, on a sample of 64 units; in weights nine
    evaluations of the model and a derivative, and with classes the kernel of the sample. Three
    times that with controls; for `base` see `compare`.

    Raises: `InputError` (`LoadError` for files) for anything that cannot be used; `StateError`
    if the state kept in `out` cannot be written or read, with what is there left for `resume`.
    """
    if resume and out is None:
        raise InputError(
            "expected the folder of the run to go on with; got resume without `out`. "
            "Give the `out` that the run was given which was cut off."
        )
    with nullcontext() if out is None else writable(out):
        started = time.perf_counter()
        units = load_data(data, column, loading, rows)
        settings = Settings(sites, gauges, batch_size, seed, has_controls)
        checkpoint = None
        if out is not None:
            plan = _plan(settings, loading)
            checkpoint = open_checkpoint(out / STATES, plan, resume=resume)
        reports = []
        try:
            for place, name in enumerate(models):
                loaded = load_model(name, loading)
                start = None if base is None else _base_of(name, base, loading)
                if start is not None:  # before the long work, not after it
                    check_pair(start, loaded)
                feed = Feed(loaded, units, groups=GROUPS, batch_size=batch_size, seed=seed)
                if checkpoint is not None:
                    _check_same(checkpoint, place, feed)
                reports.append(
                    survey_model(loaded, feed, settings, progress, checkpoint, place, EXTRAS)
                )
                if start is not None:
                    reports.append(
                        _from_base(start, loaded, units, settings, progress, checkpoint, place)
                    )
        except SecantError as error:
            # Nothing to go on with: the same command would fail in the same place. A disk that is
            # full may be cleared, though, and what was kept on it before is good.
            if checkpoint is not None and not resume and not isinstance(error, StateError):
                checkpoint.drop()
            raise
        report = report_of(reports, seed, started)
        if checkpoint is not None and out is not None:
            report.save(out)
            checkpoint.drop()
    return report


def _plan(settings: Settings, loading: LoadOptions) -> dict[str, Any]:
    """What a run that goes on must share with the one that was cut off, besides models and data."""
    asked = {key: str(value) for key, value in asdict(loading).items()}
    return asdict(settings) | {
        "loading": asked,
        "versions": versions(),
        "hardware": hardware(torch.get_num_threads()),
    }


def _check_same(checkpoint: Checkpoint, place: int, feed: Feed) -> None:
    """Note what the model at `place` and its data are, or make sure that they are as noted."""
    checkpoint.check(f"{place}-weights", digest_of(feed.loaded.model))
    checkpoint.check(f"{place}-data", feed.digest)
    output = digest_of_output(feed)
    if output is not None:
        checkpoint.check(f"{place}-output", output)


def _base_of(model: str | nn.Module, base: str | Path | nn.Module, loading: LoadOptions) -> Loaded:
    """The base, which a factory builds as it does the model, with other weights."""
    if loading.weights is None:
        return load_model(base if isinstance(base, nn.Module) else str(base), loading)
    if isinstance(base, nn.Module):
        raise InputError(
            "survey: a model that a factory builds has a base that it builds too, with a file of "
            "weights of its own; got a module. Give that file as the base."
        )
    return load_model(model, replace(loading, weights=Path(base)))


def _from_base(
    base: Loaded,
    model: Loaded,
    units: Units,
    settings: Settings,
    progress: Progress,
    checkpoint: Checkpoint | None,
    place: int,
) -> ModelReport:
    """What lies between base and model, or what was found of it before the run was cut off."""

    def read() -> ModelReport:
        return path_report(
            base, model, [], units, batch_size=settings.batch_size, seed=settings.seed,
            has_controls=settings.has_controls, progress=progress,
        )  # fmt: skip

    if checkpoint is not None:
        checkpoint.check(f"{place}-base", digest_of(base.model))
    return kept(checkpoint, f"{place}-path", ModelReport, read)
