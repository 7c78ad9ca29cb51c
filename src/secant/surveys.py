"""Surveys: joins models, data and gauges into readings, one forward pass for each model.

Holds: ``survey`` and its parts. Named apart from the function, which a submodule of one name
would hide as ``secant.survey``.
May import: torch, rich, and everything below in DESIGN.md's order.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secant.engine.checkpoint import Checkpoint, open_checkpoint
from secant.errors import ControlError, SecantError
from secant.fit_readings import duplicates_of, fit_readings
from secant.gauges.interval import GROUPS
from secant.load.data import load_data
from secant.load.feed import Feed
from secant.load.models import Loaded, load_model, shuffled
from secant.load.options import DEFAULTS, LoadOptions
from secant.maps.sites import find_sites
from secant.observe import Observer, accumulate, results_of
from secant.readings import ModelReport, Report, hardware

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Settings:
    """What a survey does, besides its models and data."""

    sites: list[str] | None
    batch_size: int
    seed: int
    has_controls: bool


class Pass:
    """One model's passes over its data, each kept as it goes if there is a checkpoint."""

    def __init__(
        self,
        feed: Feed,
        names: list[str],
        progress: Progress,
        checkpoint: Checkpoint | None,
        place: int,
    ) -> None:
        self.feed, self.names, self.progress = feed, names, progress
        self.checkpoint, self.place = checkpoint, place

    def over(self, model: nn.Module, what: str) -> Observer:
        """The sums of every site of `model`, which has the surveyed one's sites."""
        label = f"{self.feed.loaded.name} ({what} weights)"
        return accumulate(
            self.feed,
            model,
            self.names,
            lambda done, total: self.progress(label, done, total),
            self.checkpoint,
            f"{self.place}-{what}",
        )


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
    seed = settings.seed
    units = feed.units  # without empty texts
    names = find_sites(loaded.model, settings.sites)
    passes = Pass(feed, names, progress, checkpoint, place)
    observer = passes.over(loaded.model, "trained")
    results, twins = results_of(observer), duplicates_of(observer)
    trained_seconds = time.perf_counter() - started
    controls, missing = {}, {}
    if settings.has_controls:
        try:
            fresh = loaded.fresh(seed)
        except ControlError as error:
            missing["fresh"] = str(error)
        else:
            controls["fresh"] = results_of(passes.over(fresh, "fresh"))
        controls["shuffled"] = results_of(passes.over(shuffled(loaded.model, seed), "shuffled"))
    readings = []
    for site in names:
        beside = {control: of_site[site] for control, of_site in controls.items()}
        readings += fit_readings(site, results[site], beside, missing, len(units), twins.get(site))
    cost = {
        "trained_pass_seconds": trained_seconds,
        "seconds": time.perf_counter() - started,
    }
    rows = max(result.fit.rows for result in results.values())
    return ModelReport(loaded.name, units.name, len(units), rows, names, readings, cost, feed.notes)


def digest_of(model: nn.Module) -> str:
    """A fingerprint of a model's weights."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
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
    rows: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    has_controls: bool = True,
    progress: Progress = lambda label, done, total: None,
    states: Path | None = None,
    resume: bool = False,
) -> Report:
    """Survey `models` on `data`: the held-out fit at every site, beside its controls.

    `models` are what `load_model` takes, `nn.Module` objects among it; `data` what `load_data`
    takes, tensors, texts and DataLoaders among it; `loading` says how to read them.
    `sites` are module paths or globs, the model's repeated blocks if None; `rows` keeps the
    first so many units (documents or images). `progress` is told label, units done and total.
    `states` is a folder of this run's own where its sums are kept each minute and removed at the
    end; with `resume` the run that was cut off there goes on, to the same readings bit for bit.

    Cost: one forward pass and the moments for each model, two more with controls.

    Raises: `InputError` (`LoadError` for files) for anything that cannot be used.
    """
    started = time.perf_counter()
    units = load_data(data, column, loading, rows)
    settings = Settings(sites, batch_size, seed, has_controls)
    checkpoint = None
    if states is not None:
        plan = asdict(settings) | {
            "versions": versions(),
            "hardware": hardware(torch.get_num_threads()),
        }
        checkpoint = open_checkpoint(states, plan, resume=resume)
    reports = []
    try:
        for place, name in enumerate(models):
            loaded = load_model(name, loading)
            feed = Feed(loaded, units, groups=GROUPS, batch_size=batch_size, seed=seed)
            if checkpoint is not None:
                checkpoint.check(f"{place}-weights", digest_of(loaded.model))
                checkpoint.check(f"{place}-data", feed.digest)
            reports.append(survey_model(loaded, feed, settings, progress, checkpoint, place))
    except SecantError:
        # Nothing to go on with: the same command would fail in the same place.
        if checkpoint is not None and not resume:
            checkpoint.drop()
        raise
    if checkpoint is not None:
        checkpoint.drop()
    return Report(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=seed,
        versions=versions(),
        hardware=hardware(torch.get_num_threads()),
        cost={"seconds": time.perf_counter() - started},
        models=reports,
    )
