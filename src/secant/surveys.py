"""One model surveyed: joins model, data and gauges into readings, each beside its controls.

Holds: ``survey_model``; ``report_of``, ``digest_of``, ``digest_of_output``, ``versions``. Named
apart from the function `survey`, which a submodule of one name would hide as ``secant.survey``.
May import: torch, rich, and everything below in DESIGN.md's order.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from secant.curves import with_controls
from secant.engine.checkpoint import Checkpoint
from secant.errors import InputError
from secant.gauges.interval import few_units
from secant.load.feed import Feed
from secant.load.models import Loaded, shuffled
from secant.maps.sites import find_sites
from secant.passes import Extra, Found, Passes, Progress, Settings
from secant.readings import ModelReport, Reading, Report, hardware


def survey_model(
    loaded: Loaded,
    feed: Feed,
    settings: Settings,
    progress: Progress,
    checkpoint: Checkpoint | None = None,
    place: int = 0,
    extras: Sequence[Extra] = (),
) -> ModelReport:
    """Readings of one model, each beside fresh and shuffled weights if wanted.

    `extras` are read beside the survey's own gauges, of the controls as well.
    """
    started = time.perf_counter()
    names = find_sites(loaded.model, settings.sites)
    passes = Passes(feed, names, settings, progress, checkpoint, place, extras)
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
    silent = {"curves", "pieces", *(one.name for one in extras)} - set(trained.notes)
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


def report_of(models: list[ModelReport], seed: int, started: float) -> Report:
    """The report of a run that began at `started`, by `time.perf_counter`."""
    return Report(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=seed,
        versions=versions(),
        hardware=hardware(torch.get_num_threads()),
        cost={"seconds": time.perf_counter() - started},
        models=models,
    )


def versions() -> dict[str, str]:
    """What the readings depend on besides the machine."""
    packages = ("secant", "torch", "torchmetrics", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
