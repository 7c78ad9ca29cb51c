"""Everything that a survey reads of one set of weights: its fits, its curves, its pieces.

Holds: ``Settings``, ``Part``, ``Found``, ``Extra``, ``Passes``, ``kept``,
``GAUGES``.
May import: torch, ``secant.errors``, ``secant.engine``, ``secant.load``, ``secant.maps``,
``secant.observe``, ``secant.site_sums``, ``secant.fit_readings``, ``secant.experiments``,
``secant.segments``, ``secant.readings``, ``secant.records``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import NamedTuple, TypeVar

import torch
from torch import nn

from secant.engine.checkpoint import Checkpoint
from secant.errors import InputError
from secant.experiments import CURVES, experiment
from secant.fit_readings import duplicates_of, fit_readings
from secant.load.feed import Feed
from secant.observe import accumulate
from secant.readings import Reading, plain
from secant.records import NotARecordError, record
from secant.segments import segment_readings
from secant.site_sums import results_of
from secant.trials import Design, draw_sample, features_at

Progress = Callable[[str, int, int], None]
Tell = Callable[[int, int], None]
Kept = TypeVar("Kept")
GAUGES = ("fit", *CURVES, "pieces", "kernel", "time")
"""All that a survey may be asked for; readers of the last two are handed in by a layer above."""
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


@dataclass(frozen=True)
class Part:
    """What one pass gave, without controls; `skipped` says of sites why they have no fit."""

    readings: list[Reading]
    cost: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


class Found(NamedTuple):
    """What one set of weights gave; `notes` says why it has no curves or no pieces."""

    fits: Part
    others: list[Reading]
    notes: dict[str, str]
    cost: dict[str, float]


class Extra(NamedTuple):
    """Readings of a layer above, taken of every set of weights as the survey's own are.

    `gauge` is one of `GAUGES`. `read` takes the model, which need not be the feed's, the seed and
    what to tell of progress. Where it raises `InputError` the report says why it has none; data
    that does not suit it needs no word unless the gauge was named.
    """

    name: str
    gauge: str
    read: Callable[[nn.Module, Feed, int, Tell], list[Reading]]
    suits: Callable[[Feed], bool]


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
        extras: Sequence[Extra] = (),
    ) -> None:
        self.extras = extras
        self.feed, self.sites, self.settings = feed, sites, settings
        self.progress, self.checkpoint, self.place = progress, checkpoint, place

    def over(self, model: nn.Module, what: str) -> Found:
        """Every wanted gauge of `model`, the surveyed one or a control with the same sites."""
        fits = Part([])
        if self.settings.wants("fit"):
            fits = self._kept("fit", self._fits, model, what)
        others: list[Reading] = []
        notes: dict[str, str] = {}
        cost: dict[str, float] = {}
        for names, name, suits, read in (
            (CURVES, "curves", True, self._curves),
            (("pieces",), "pieces", self.feed.units.tensor is not None, self._pieces),
            *(((one.gauge,), one.name, one.suits(self.feed), self._extra(one))
              for one in self.extras),
        ):  # fmt: skip
            # What nobody could expect of this data and did not name needs no word.
            if not self.settings.wants(*names) or (self.settings.gauges is None and not suits):
                continue
            try:
                part = self._kept(name, read, model, what)
            except InputError as error:
                if self.settings.gauges is not None:
                    raise
                reason = str(error).removeprefix("pieces: ")
                notes[name] = f"No {name} of the {what} weights: {reason}"
                continue
            others += part.readings
            cost |= part.cost
        return Found(fits, others, notes, cost)

    def _fits(self, model: nn.Module, what: str) -> Part:
        observer = accumulate(
            self.feed, model, self.sites, self._progress(what, "fit"), self.checkpoint,
            self._step(what, "fit"), skips=self.settings.sites is None,
        )  # fmt: skip
        units, twins = len(self.feed.units), duplicates_of(observer)
        readings = []
        results = results_of(observer.sites, self._progress(what, "fit, solving"))
        for site, result in results.items():
            readings += fit_readings(site, result, units, twins.get(site))
        return Part(readings, skipped=observer.skipped)

    def _curves(self, model: nn.Module, what: str) -> Part:
        gauges = tuple(name for name in CURVES if self.settings.wants(name))
        design = Design(seed=self.settings.seed)
        return Part(
            *experiment(
                model,
                self.feed,
                features_at(self.sites),
                design,
                self._progress(what, "curves"),
                gauges,
            )
        )

    def _pieces(self, model: nn.Module, what: str) -> Part:
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
        return Part(readings)

    def _extra(self, extra: Extra) -> Callable[[nn.Module, str], Part]:
        def read(model: nn.Module, what: str) -> Part:
            progress = self._progress(what, extra.name)
            return Part(extra.read(model, self.feed, self.settings.seed, progress))

        return read

    def _progress(self, what: str, gauge: str) -> Callable[[int, int], None]:
        label = f"{self.feed.loaded.name} ({what} weights, {gauge})"
        return lambda done, total: self.progress(label, done, total)

    def _step(self, what: str, name: str) -> str:
        return f"{self.place}-{what}-{name}"

    def _kept(
        self, name: str, read: Callable[[nn.Module, str], Part], model: nn.Module, what: str
    ) -> Part:
        """What `read` gives, or gave before the run was cut off."""
        return kept(self.checkpoint, self._step(what, name), Part, lambda: read(model, what))


def kept(
    checkpoint: Checkpoint | None, step: str, kind: type[Kept], read: Callable[[], Kept]
) -> Kept:
    """What `read` gives, a dataclass `kind`, or gave before the run was cut off.

    Raises: `StateError` if what was kept of the step cannot be read or is no `kind`.
    """
    if checkpoint is None:
        return read()
    found = checkpoint.found(step)
    if found is None:
        part = read()
        checkpoint.save_found(step, plain(asdict(part)))  # type: ignore[call-overload]
        return part
    try:
        return record(kind, found, step)
    except NotARecordError as error:
        raise checkpoint.spoiled(step, error) from error
