"""How far the first order carries: the tangent, and sums of steps, in weight space.

Holds: ``first_order``, ``additivity``; ``Sample``, the units that they are measured
on, and ``Table``.
May import: torch, ``secant.gauges``, ``secant.load``, ``secant.maps``, ``secant.curves``,
``secant.experiments``, ``secant.readings``, ``secant.trials``, ``secant.uses`` (pairs, scores).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from secant.curves import Point, SiteSums, readings_of, with_controls
from secant.engine.plan import Batch
from secant.experiments import NOISE_RHO, NOISE_ULPS
from secant.gauges.interval import ratio_interval
from secant.gauges.sum import sum_sums
from secant.gauges.tangent import tangent_sums
from secant.load.feed import Feed
from secant.maps.calls import first_tensor
from secant.maps.derivatives import derivatives, prepared_copy
from secant.maps.weights import WeightsMap
from secant.readings import Reading, interval_of, number
from secant.trials import Design, draw_sample
from secant.uses.pairs import WHOLE, State, line_between, random_line, weights_of
from secant.uses.scores import counted

RHOS = (0.01, 0.03, 0.1, 0.3, 1.0)
SUM_RHOS = (0.1, 0.3, 1.0)
"""Shares of the true displacement: at 1 the step ends in the other model."""
UNITS = 64
"""Units of the sample, as many as the curves of a survey have."""

Tell = Callable[[int, int], None]


class Sample:
    """A model in float64, and the weights map on each batch of a bounded sample of the data."""

    def __init__(self, model: nn.Module, feed: Feed, seed: int, batch_size: int) -> None:
        self.model = prepared_copy(model, torch.float64)
        self.feed = feed
        members = draw_sample(feed, Design(units=UNITS, batch_size=batch_size, seed=seed))
        members.sort(key=lambda member: (member.group, feed.lengths[member.unit], member.code))
        self.groups = 1 + members[-1].group
        self.members, self.units = members, len(members)
        self.batches = [
            Batch(group, tuple(units[start : start + batch_size]))
            for group, own in groupby(members, key=lambda member: member.group)
            for units in [[member.unit for member in own]]
            for start in range(0, len(units), batch_size)
        ]
        self.names = tuple(weights_of(self.model, self.model))

    def vector(self, state: State) -> Tensor:
        """Weights as one vector, in the map's order."""
        return torch.cat([state[name].flatten() for name in self.names])

    def maps(self) -> Iterator[tuple[Batch, int, WeightsMap]]:
        """Every batch, its rows, and the map on it."""
        for batch in self.batches:
            forward, mask = self.feed.forward(self.model, batch)

            def outputs(output: object, mask: Tensor | None = mask) -> Tensor:
                return counted(first_tensor(output, WHOLE, "output"), mask)

            rows = len(batch.units) if mask is None else int(mask.sum())
            yield batch, rows, WeightsMap(self.model, forward, self.names, outputs)


class Table:
    """Squared gaps and lengths by group at every point of a curve, and the noise."""

    def __init__(self, groups: int) -> None:
        self.groups, self.points, self.squares, self.rows = groups, dict[Point, Tensor](), 0.0, 0

    def add(self, point: Point, group: int, sums: tuple[Tensor, Tensor]) -> None:
        """Add one batch's; the residual's share does not exist in weights."""
        table = self.points.setdefault(
            point, torch.tensor([[0.0, 0.0, torch.nan]] * self.groups, dtype=torch.float64)
        )
        table[group, :2] += torch.stack(sums).cpu()

    def add_noise(self, y: Tensor, left: Tensor) -> None:
        """What leaves the tangent along a step too short for anything but rounding to."""
        least = NOISE_ULPS * torch.finfo(y.dtype).eps * y.norm()
        self.squares += float(torch.maximum(least, left.norm())) ** 2

    def add_tangent(
        self, batch: Batch, rows: int, weights: WeightsMap, w: Tensor, v: Tensor,
        rhos: Sequence[float], direction: str,
    ) -> None:  # fmt: skip
        """Add one batch's tangent from `w` along `v`, at every ρ, and its noise."""
        y, along = weights.jvp(w, v)
        self.add_noise(y, weights.value(w + NOISE_RHO * v) - y - NOISE_RHO * along)
        self.rows += rows
        for rho in rhos:
            moved = weights.value(w + rho * v)
            sums = tangent_sums(y, moved, rho * along)
            self.add(Point("tangent", rho, direction), batch.group, sums)

    def sums(self, units: int, step: float) -> SiteSums:
        """As readings are made from."""
        noise = self.squares**0.5
        return SiteSums("weights", WHOLE, step, units, self.rows, noise, self.points)


def first_order(
    a: nn.Module,
    b: nn.Module,
    feed: Feed,
    *,
    seed: int,
    batch_size: int,
    has_controls: bool,
    tell: Tell,
) -> list[Reading]:
    """`tangent` of A's outputs in its weights along B - A, and what the first order explains.

    ρ = 1 is the whole way to B. Variant `explained` is 1 - Σ‖f(b) - f(a) - J(b - a)‖² /
    Σ‖f(b) - f(a)‖²: 1 where the first order is all there is, below 0 where it is worse than
    predicting no change. Buffers, BatchNorm's statistics among them, stay as A has them. In
    float64 on a sample; control `random`: a step as long in every tensor, anywhere.

    Cost: a derivative and six evaluations of the sample, twice with the control. Memory: A in
    float64 and four vectors of its weights.
    """
    sample = Sample(a, feed, seed, batch_size)
    line = line_between(a, b, sample.model)
    lines = [line, random_line(line, seed)] if has_controls else [line]
    found: list[list[Reading]] = []
    done = 0
    for one in lines:
        w = sample.vector(one.start)
        v = sample.vector(one.end) - w
        table = Table(sample.groups)
        with derivatives():
            for batch, rows, weights in sample.maps():
                table.add_tangent(batch, rows, weights, w, v, RHOS, "path")
                done += len(batch.units)
                tell(done, len(lines) * sample.units)
        made = readings_of(table.sums(sample.units, float(v.norm())))
        found.append([*made, *_explained(made)])
    return with_controls(found[0], {"random": found[1]} if has_controls else {})


def _explained(readings: Sequence[Reading]) -> list[Reading]:
    """The share of the whole change that the tangent at ρ = 1 leaves, taken from 1."""
    (whole,) = (one for one in readings if one.details.get("rho") == 1 and one.variant == "raw")
    gaps, lengths = (
        torch.tensor(whole.details[key], dtype=torch.float64)
        for key in ("gap_by_group", "length_by_group")
    )
    value, interval = None, None
    if whole.value is not None:
        value = 1.0 if whole.value == 0 else number(float(1 - gaps.sum() / lengths.sum()))
        interval = (1.0, 1.0) if whole.value == 0 else interval_of(ratio_interval(gaps, lengths))
    details = {
        "rho": 1.0, "direction": "path", "step": whole.details["step"],
        "residual_by_group": gaps.tolist(), "total_by_group": lengths.tolist(),
    }  # fmt: skip
    return [
        Reading("weights", WHOLE, "tangent", "explained", value, interval, whole.samples, {},
                whole.warnings, details)
    ]  # fmt: skip


def additivity(
    a: nn.Module,
    b: nn.Module,
    base: nn.Module,
    feed: Feed,
    *,
    seed: int,
    batch_size: int,
    has_controls: bool,
    tell: Tell,
) -> list[Reading]:
    """`sum` of the outputs at the base along the task vectors a - base and b - base.

    ρ = 1 adds both whole. Control `random`: two steps as long in every tensor, anywhere. In
    float64 on a sample. Cost: ten evaluations of the sample, twice with the control.
    """
    sample = Sample(base, feed, seed, batch_size)
    to_a, to_b = (line_between(base, one, sample.model) for one in (a, b))
    pairs = [(to_a, to_b)]
    if has_controls:
        pairs.append((random_line(to_a, seed), random_line(to_b, seed + 1)))
    found: list[list[Reading]] = []
    done = 0
    for first, second in pairs:
        w = sample.vector(first.start)
        u, v = sample.vector(first.end) - w, sample.vector(second.end) - w
        table = Table(sample.groups)
        with derivatives():
            for batch, rows, weights in sample.maps():
                y = weights.value(w)
                table.add_noise(y, torch.zeros_like(y))
                table.rows += rows
                for rho in SUM_RHOS:
                    steps = (rho * (u + v), rho * u, rho * v)
                    deltas = (weights.value(w + step) - y for step in steps)
                    table.add(Point("sum", rho, ""), batch.group, sum_sums(*deltas))
                done += len(batch.units)
                tell(done, len(pairs) * sample.units)
        step = float(u.norm() * v.norm()) ** 0.5
        found.append(readings_of(table.sums(sample.units, step)))
    return with_controls(found[0], {"random": found[1]} if has_controls else {})
