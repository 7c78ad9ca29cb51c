"""Everything that a survey reads of one set of weights: its fits, its curves, its pieces.

Holds: ``Settings``, ``Found``, ``Passes``, ``GAUGES``.
May import: torch, ``secant.errors``, ``secant.engine``, ``secant.load``, ``secant.maps``,
``secant.observe``, ``secant.experiments``, ``secant.segments``, ``secant.readings``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from secant.engine.checkpoint import Checkpoint
from secant.errors import InputError
from secant.experiments import experiment
from secant.fit_readings import duplicates_of
from secant.load.feed import Feed
from secant.observe import SiteResult, accumulate, results_of
from secant.readings import Reading
from secant.records import record
from secant.segments import segment_readings
from secant.trials import Design, draw_sample

Progress = Callable[[str, int, int], None]
CURVES = ("chord", "tangent", "sum", "homogeneity")
GAUGES = ("fit", *CURVES, "pieces")
PAIRS = 5
"""Pairs of inputs between which pieces are counted."""
MOST_KINKS = 20_000


@dataclass(frozen=True)
class Settings:
    """What a survey does, besides its models and data.

    `gauges` None is every gauge that the model allows, and the report says which do not; a gauge
    that is named must be readable.
    """

    sites: list[str] | None
    gauges: list[str] | None
    batch_size: int
    seed: int
    has_controls: bool

    def __post_init__(self) -> None:
        for name in self.gauges or []:
            if name not in GAUGES:
                raise InputError(
                    f"gauge {name!r} is none of {', '.join(GAUGES)}. Name one of them."
                )

    def wants(self, *names: str) -> bool:
        """Whether any of these gauges is to be read."""
        return self.gauges is None or any(name in self.gauges for name in names)


class Found(NamedTuple):
    """What one set of weights gave; `notes` says why it has no curves or no pieces."""

    fits: dict[str, SiteResult]
    twins: dict[str, str]
    others: list[Reading]
    notes: dict[str, str]
    cost: dict[str, float]


class Passes:
    """One model's evaluations, kept as they go if there is a checkpoint."""

    def __init__(
        self,
        feed: Feed,
        sites: Sequence[str],
        settings: Settings,
        progress: Progress,
        checkpoint: Checkpoint | None,
        place: int,
    ) -> None:
        self.feed, self.sites, self.settings = feed, sites, settings
        self.progress, self.checkpoint, self.place = progress, checkpoint, place

    def over(self, model: nn.Module, what: str) -> Found:
        """Every wanted gauge of `model`, the surveyed one or a control with the same sites."""
        wants_fits = self.settings.wants("fit")
        fits, twins, skipped = self._fits(model, what) if wants_fits else ({}, {}, {})
        others: list[Reading] = []
        notes = {f"fit at {site}": f"No fit: {reason}" for site, reason in skipped.items()}
        cost: dict[str, float] = {}
        for names, name, read in (
            (CURVES, "curves", self._curves),
            (("pieces",), "pieces", self._pieces),
        ):
            if not self.settings.wants(*names) or (name == "pieces" and self._needs_no_word()):
                continue
            try:
                readings, spent = self._kept(f"{self.place}-{what}-{name}", read, model, what)
            except InputError as error:
                if self.settings.gauges is not None:
                    raise
                reason = str(error).removeprefix("pieces: ")
                notes[name] = f"No {name} of the {what} weights: {reason}"
                continue
            others += [one for one in readings if self.settings.wants(one.gauge)]
            cost |= spent
        return Found(fits, twins, others, notes, cost)

    def _fits(
        self, model: nn.Module, what: str
    ) -> tuple[dict[str, SiteResult], dict[str, str], dict[str, str]]:
        step, progress = f"{self.place}-{what}", self._progress(what, "fit")
        observer = accumulate(
            self.feed, model, self.sites, progress, self.checkpoint, step,
            skips=self.settings.sites is None,
        )  # fmt: skip
        return results_of(observer), duplicates_of(observer), observer.skipped

    def _curves(self, model: nn.Module, what: str) -> tuple[list[Reading], dict[str, float]]:
        design = Design(seed=self.settings.seed)
        return experiment(model, self.feed, self.sites, design, self._progress(what, "curves"))

    def _pieces(self, model: nn.Module, what: str) -> tuple[list[Reading], dict[str, float]]:
        tensor = self.feed.units.tensor
        if tensor is None or not tensor.is_floating_point() or self.feed.loaded.call is not None:
            raise InputError(
                "pieces lie between inputs that are tensors of floats, taken by the model as they "
                "are; this data is not. Give .npy or .safetensors to count them."
            )
        sample = draw_sample(self.feed, Design(units=2 * PAIRS, seed=self.settings.seed))
        units = [member.unit for member in sample]
        pairs = len(units) // 2
        place = self.feed.loaded.device
        starts, ends = (
            torch.stack([tensor[unit] for unit in units[first : 2 * pairs : 2]]).to(place)
            for first in (0, 1)
        )
        progress = self._progress(what, "pieces")
        readings = segment_readings(model, starts, ends, limit=MOST_KINKS)
        progress(pairs, pairs)
        return readings, {}

    def _needs_no_word(self) -> bool:
        """Whether nobody could expect pieces: the data is no tensor and they were not named."""
        return self.settings.gauges is None and self.feed.units.tensor is None

    def _progress(self, what: str, gauge: str) -> Callable[[int, int], None]:
        label = f"{self.feed.loaded.name} ({what} weights, {gauge})"
        return lambda done, total: self.progress(label, done, total)

    def _kept(
        self,
        step: str,
        read: Callable[[nn.Module, str], tuple[list[Reading], dict[str, float]]],
        model: nn.Module,
        what: str,
    ) -> tuple[list[Reading], dict[str, float]]:
        """What `read` gives, or gave before the run was cut off."""
        if self.checkpoint is None:
            return read(model, what)
        kept: dict[str, Any] | None = self.checkpoint.found(step)
        if kept is None:
            readings, cost = read(model, what)
            rows = [asdict(reading) for reading in readings]
            self.checkpoint.save_found(step, {"readings": rows, "cost": cost})
            return readings, cost
        return [record(Reading, one, step) for one in kept["readings"]], kept["cost"]
