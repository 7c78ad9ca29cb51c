"""What stand-ins do to a model's loss, unit by unit.

Holds: ``Losses``, ``Scorer``, ``increase``, ``increase_interval``.
May import: torch, scipy, ``secant.engine``, ``secant.errors``, ``secant.maps``, ``secant.uses``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from scipy.stats import t as student
from torch import Tensor

from secant.engine.memory import free_bytes
from secant.engine.plan import Batch
from secant.errors import InputError
from secant.maps.calls import first_tensor
from secant.uses.replace_runs import Forms, Runner
from secant.uses.scores import Task, token_ids

Tell = Callable[[int, int], None]
SPARE = 8
"""The part of the free memory that kept inputs of blocks, or outputs, may take: one in so many."""


class Losses(NamedTuple):
    """Sums by unit, and what they are means over: tokens, units, or the outputs' variance."""

    sums: Tensor
    counts: Tensor

    @property
    def mean(self) -> float:
        """Over all units."""
        return float(self.sums.sum() / self.counts.sum())


def increase(now: Losses, before: Losses) -> float:
    """How far the mean loss rose."""
    return float((now.sums - before.sums).sum() / before.counts.sum())


def increase_interval(
    now: Losses, before: Losses, level: float = 0.95
) -> tuple[float, float] | None:
    """Interval of `increase`, paired by unit: Student's t of a ratio of sums, linearised.

    None for fewer than three units. Source: Cochran 1977, Sampling Techniques, ch. 6.
    """
    units = len(now.sums)
    if units < 3:
        return None
    value = increase(now, before)
    left = now.sums - before.sums - value * before.counts
    spread = float((units / (units - 1) * left.square().sum()).sqrt() / before.counts.sum())
    reach = float(student.ppf((1 + level) / 2, units - 1)) * spread
    return value - reach, value + reach


class Scorer:
    """The loss of one set of units with any stand-ins in place.

    Without a task the loss is the squared change of the outputs, of their variance about the mean.
    """

    def __init__(self, runner: Runner, task: Task | None, batches: Sequence[Batch]) -> None:
        self.runner, self.task, self.batches = runner, task, list(batches)
        self.units = sum(len(batch.units) for batch in self.batches)
        self.streams: list[list[Tensor]] = []
        self.true: list[list[Tensor]] = []
        self.scale: Tensor | None = None
        if task is None:
            self._remember_outputs()

    def _remember_outputs(self) -> None:
        """The model's own outputs, and each unit's share of their variance."""
        held, free = 0, free_bytes()
        for batch in self.batches:
            output, mask = self.runner.run(batch, {})
            self.true.append(_by_unit(first_tensor(output, "(model)", "output"), mask))
            held += sum(one.numel() * one.element_size() for one in self.true[-1])
            if free is not None and held > free / SPARE:
                raise InputError(
                    f"replace: the outputs of {self.units} units are to be kept, and take more "
                    f"than {free / SPARE / 1e9:.1f} GB. Use fewer rows, or data with labels."
                )
        rows = [one for batch in self.true for one in batch]
        count = sum(len(one) for one in rows)
        mean = torch.stack([one.double().sum(0) for one in rows]).sum(0) / count
        self.scale = torch.stack([(one.double() - mean).square().sum() for one in rows]).cpu()
        if not float(self.scale.sum()) > 0:
            raise InputError(
                "replace: the model gives the same output for every unit, so that no change of it "
                "can be told. Give other data, or labels."
            )

    def losses(self, forms: Forms, *, start: int = 0, tell: Tell = lambda *_: None) -> Losses:
        """Run from block `start` on, before which `forms` must be those last remembered."""
        start = start if self.streams else 0
        found = []
        done = 0
        for place, batch in enumerate(self.batches):
            stream = self.streams[place][start] if start else None
            output, mask = self.runner.run(batch, forms, start=start, stream=stream)
            found.append(self._of(place, output, mask))
            done += len(batch.units)
            tell(done, self.units)
        return self._joined(found)

    def remember(self, forms: Forms) -> Losses:
        """The losses, while the inputs of all blocks are kept if there is room for them."""
        self.streams = []
        if not self.runner.is_chain:
            return self.losses(forms)
        found, kept, held, free = [], [], 0, free_bytes()
        for place, batch in enumerate(self.batches):
            output, mask, streams = self.runner.streams(batch, forms)
            found.append(self._of(place, output, mask))
            held += sum(one.numel() * one.element_size() for one in streams)
            if free is None or held < free / SPARE:
                kept.append(streams)
        self.streams = kept if len(kept) == len(self.batches) else []
        return self._joined(found)

    def _of(self, place: int, output: object, mask: Tensor | None) -> Losses:
        batch, value = self.batches[place], first_tensor(output, "(model)", "output")
        if self.task is None:
            rows = zip(_by_unit(value, mask), self.true[place], strict=True)
            gaps = torch.stack([(a.double() - b.double()).square().sum() for a, b in rows])
            return Losses(gaps.cpu(), torch.ones(len(batch.units), dtype=torch.float64))
        is_text = self.task.labels is None
        ids = token_ids(self.runner.feed, batch) if is_text else None
        sums, counts = self.task.by_unit(value, ids, mask, batch)
        return Losses(sums.cpu(), counts.cpu())

    def _joined(self, found: Sequence[Losses]) -> Losses:
        sums, counts = (torch.cat(parts) for parts in zip(*found, strict=True))
        return Losses(sums, counts if self.scale is None else self.scale)


def _by_unit(output: Tensor, mask: Tensor | None) -> list[Tensor]:
    """Each unit's output as (rows, width), without padding."""
    if output.ndim != 3:
        return [one.reshape(1, -1) for one in output]
    if mask is None or mask.shape != output.shape[:2]:
        return list(output)
    return [one[keep] for one, keep in zip(output, mask, strict=True)]
