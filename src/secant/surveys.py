"""Surveys: joins models, data and gauges into readings, each beside its controls.

Holds: ``survey`` and its parts. Named apart from the function, which a submodule of one name
would hide as ``secant.survey``.
May import: torch, rich, and everything below in DESIGN.md's order.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secant.curves import with_controls
from secant.engine.checkpoint import Checkpoint, open_checkpoint
from secant.errors import InputError, SecantError, StateError
from secant.gauges.interval import GROUPS, few_units
from secant.load.data import load_data
from secant.load.feed import Feed
from secant.load.models import Loaded, load_model, shuffled
from secant.load.options import DEFAULTS, LoadOptions
from secant.maps.sites import find_sites
from secant.passes import Found, Passes, Progress, Settings
from secant.readings import ModelReport, Reading, Report, hardware, writable

STATES = ".states"
"""Folder within `out` for what a run has found so far."""


def survey_model(
    loaded: Loaded,
    feed: Feed,
    settings: Settings,
    progress: Progress,
    checkpoint: Checkpoint | None = None,
    place: int = 0,
) -> ModelReport:
    """Readings of one model, each beside fresh and shuffled weights if wanted."""
    started = time.perf_counter()
    names = find_sites(loaded.model, settings.sites)
    passes = Passes(feed, names, settings, progress, checkpoint, place)
    trained = passes.over(loaded.model, "trained")
    cost = trained.cost | {"trained_seconds": time.perf_counter() - started}
    controls: dict[str, Found] = {}
    missing: dict[str, str] = {}
    makers: dict[str, Callable[[], nn.Module]] = {
        "fresh": lambda: loaded.fresh(settings.seed),
        "shuffled": lambda: shuffled(loaded.model, settings.seed),
    }
    for name, make in makers.items() if settings.has_controls else ():
        try:
            controls[name] = passes.over(make(), name)
        except InputError as error:
            # A control that cannot be had (its values overflow, say) is named beside each reading.
            missing[name] = str(error)
    readings = _fits_beside(trained, controls, missing)
    sites = list(dict.fromkeys(reading.site for reading in readings)) or names
    rows = max((reading.samples["rows"] for reading in readings), default=len(feed.units))
    others = {name: found.others for name, found in controls.items()}
    readings += with_controls(trained.others, others, missing)
    notes = few_units(len(feed.units)) + feed.notes
    notes += [f"No fit: {reason}" for reason in trained.fits.skipped.values()]
    notes += trained.notes.values()
    notes += [f"No {name} control: {reason}" for name, reason in missing.items()]
    # What the model itself does not allow, its controls need not say again.
    silent = {"curves", "pieces"} - set(trained.notes)
    for found in controls.values():
        notes += [note for name, note in found.notes.items() if name in silent]
    cost["seconds"] = time.perf_counter() - started
    return ModelReport(
        loaded.name, feed.units.name, len(feed.units), rows, sites, readings, cost, notes
    )


def _fits_beside(
    trained: Found, controls: Mapping[str, Found], missing: Mapping[str, str]
) -> list[Reading]:
    """The fits beside those of the controls, with a warning for each control that a site lacks."""
    by_site: dict[str, list[Reading]] = {}
    for reading in trained.fits.readings:
        by_site.setdefault(reading.site, []).append(reading)
    joined = []
    for site, readings in by_site.items():
        beside = {
            name: [one for one in found.fits.readings if one.site == site]
            for name, found in controls.items()
        }
        lacking = dict(missing) | {
            name: f"No fit: {found.fits.skipped[site]}"
            for name, found in controls.items()
            if site in found.fits.skipped
        }
        told = [f"No {name} control: {reason}" for name, reason in lacking.items()]
        joined += [
            replace(one, warnings=one.warnings + told)
            for one in with_controls(readings, beside, lacking)
        ]
    return joined


def digest_of(model: nn.Module) -> str:
    """A fingerprint of a model's modules, weights and buffers; not of its forward's code."""
    return _digest(repr(model), [*model.named_parameters(), *model.named_buffers()])


def digest_of_output(feed: Feed) -> str | None:
    """A fingerprint of what the model gives on the first batch, so of its forward's code as well.

    None if it changes from call to call, as with a model that draws at random. Code that only
    other batches reach does not show. Cost: two forward passes of one batch.
    """
    model, found = feed.loaded.model, []
    for _ in range(2):
        forward, _mask = feed.forward(model, feed.batches[0])
        with torch.no_grad():
            found.append(_digest("", _tensors(forward())))
    return found[0] if found[0] == found[1] else None


def _tensors(output: Any, name: str = "output") -> Iterator[tuple[str, Tensor]]:
    """Every tensor that a model returned, with its place."""
    if isinstance(output, Tensor):
        yield name, output
    elif isinstance(output, Mapping):
        for key, part in output.items():
            yield from _tensors(part, f"{name}.{key}")
    elif isinstance(output, tuple | list):
        for place, part in enumerate(output):
            yield from _tensors(part, f"{name}.{place}")


def _digest(begin: str, named: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.blake2b(begin.encode(), digest_size=16)
    for name, tensor in named:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """What the readings depend on besides the machine."""
    packages = ("secant", "torch", "torchmetrics", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def survey(
    models: Sequence[str | nn.Module],
    data: Any = "demo:digits",
    *,
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

    `models` are what `load_model` takes, `nn.Module` objects among it; `data` what `load_data`
    takes, tensors, texts and DataLoaders among it; `loading` says how to read them.
    `sites` are module paths or globs, the model's repeated blocks if None; `rows` keeps the
    first so many units (documents or images); `gauges` are of `secant.passes.GAUGES`, all that
    the model allows if None. `progress` is told label, units done and total.
    `out` is a folder for report.json and report.html. Until they are written the sums are kept
    there each minute; with `resume` the run that was cut off there goes on, to the same readings
    bit for bit.

    Cost: one forward pass and the moments for each model; some 35 evaluations and two
    derivatives of every block, and of the model, on a sample of 64 units. Three times that with
    controls.

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
                feed = Feed(loaded, units, groups=GROUPS, batch_size=batch_size, seed=seed)
                if checkpoint is not None:
                    _check_same(checkpoint, place, feed)
                reports.append(survey_model(loaded, feed, settings, progress, checkpoint, place))
        except SecantError as error:
            # Nothing to go on with: the same command would fail in the same place. A disk that is
            # full may be cleared, though, and what was kept on it before is good.
            if checkpoint is not None and not resume and not isinstance(error, StateError):
                checkpoint.drop()
            raise
        report = Report(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            seed=seed,
            versions=versions(),
            hardware=hardware(torch.get_num_threads()),
            cost={"seconds": time.perf_counter() - started},
            models=reports,
        )
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
