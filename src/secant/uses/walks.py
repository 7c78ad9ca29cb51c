"""A model's outputs at points of weight space: scores and chords, group by group.

Holds: ``Stop``, ``Walker``, ``Walk``; ``loss_readings``, ``barrier_readings``, ``barrier``,
``chord_readings``; ``mean_of``, ``warned``, ``samples_of``, ``length_of``.
May import: torch, ``secant.errors``, ``secant.gauges``, ``secant.load``, ``secant.maps``,
``secant.curves``, ``secant.readings``, ``secant.uses`` (anatomy, channels, pairs, scores).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from secant.curves import Point, SiteSums, readings_of
from secant.errors import InputError
from secant.experiments import NOISE_ULPS
from secant.gauges.chord import chord_sums
from secant.gauges.interval import GROUPS, jackknife_interval
from secant.load.feed import Feed
from secant.maps.calls import first_tensor
from secant.maps.derivatives import prepared_copy
from secant.readings import NO_INTERVAL, Reading, interval_of, number
from secant.uses.anatomy import mean_interval
from secant.uses.channels import Channels, Settled
from secant.uses.pairs import WHOLE, Line, line_between
from secant.uses.scores import Task, counted, parts_of, task_of, token_ids

SAME = 0.01
"""Outputs that differ by less do so by rounding, in half precision at the worst."""
FEWEST_GROUPS = 3
Tell = Callable[[int, int], None]


class Stop(NamedTuple):
    """A point on a line, with what it needs besides its weights."""

    line: Line
    t: float
    settled: Settled


@dataclass(frozen=True)
class Walk:
    """Sums over the data at several stops, by group of units.

    `loss` and `right` are (stops, groups), None without a task; `counts` (groups,) what they are
    means over. `gaps` and `lengths` are those of the chord between the first stop and the last.
    `picked` counts the units whose largest output is another than at the first stop; it is there
    for outputs (units, classes).
    """

    stops: tuple[Stop, ...]
    counts: Tensor
    loss: Tensor | None
    right: Tensor | None
    gaps: Tensor
    lengths: Tensor
    noise: float
    units: int
    rows: int
    members: Tensor
    picked: Tensor | None


class Walker:
    """A copy of A that is given the weights of one stop after another, batch by batch.

    The batch is the outer loop, so that no output is kept for longer than its batch. Half
    precision is walked in float32, in which its weights are exact: steps would drown in rounding.
    """

    def __init__(self, feed: Feed, *, has_repair: bool) -> None:
        self.feed = feed
        wide = torch.float64 if feed.loaded.dtype == torch.float64 else torch.float32
        self.model = prepared_copy(feed.loaded.model, wide)
        self.channels = Channels(self.model, feed, has_repair=has_repair)
        used = {batch.group for batch in feed.batches}
        if len(used) < FEWEST_GROUPS:
            raise InputError(
                f"compare needs units in at least {FEWEST_GROUPS} groups; got {len(feed.units)} "
                "units. Give some dozens."
            )
        self.task, self.why_no_task = task_of(feed, self.model)

    def line(self, a: nn.Module, b: nn.Module) -> Line:
        """The line between two models. `a` may lack biases that REPAIR gave this one."""
        return line_between(self._like(a), self._like(b), self.model)

    def _like(self, model: nn.Module) -> nn.Module:
        lacking = [name for name, layer in self.channels.layers.items()
                   if getattr(model.get_submodule(name), "bias", None) is None]  # fmt: skip
        if not lacking:
            return model
        twin = prepared_copy(model, torch.float64)
        for name in lacking:
            layer = twin.get_submodule(name)
            zero = torch.zeros(len(layer.weight)).to(layer.weight)  # type: ignore[arg-type]
            layer.bias = nn.Parameter(zero, requires_grad=False)
        return twin

    def put(self, stop: Stop) -> None:
        """Give the copy the weights and statistics of a stop."""
        stop.line.put(self.model, stop.t)
        stop.settled.put(self.model)

    def bare(self, line: Line, ts: Sequence[float]) -> list[Stop]:
        """Stops with the statistics as stored (and in between, as far between)."""
        return [Stop(line, t, Settled()) for t in ts]

    def stops(self, line: Line, ts: Sequence[float], tell: Tell = lambda *_: None) -> list[Stop]:
        """Stops with the statistics of channels estimated at each, ends included."""
        if not self.channels.is_needed:
            return self.bare(line, ts)
        goals, total, done = None, len(ts) + 2 * bool(self.channels.layers), 0
        if self.channels.layers:
            ends = []
            for t in (0.0, 1.0):
                line.put(self.model, t)
                ends.append(self.channels.settle()[1])
                done += 1
                tell(done, total)
            goals = ends[0], ends[1]
        found = []
        for t in ts:
            line.put(self.model, t)
            settled, _ = self.channels.settle(None if goals is None else (*goals, t))
            found.append(Stop(line, t, settled))
            done += 1
            tell(done, total)
        return found

    def check_reaches(self, b: nn.Module) -> None:
        """Refuse a pair whose tensors agree but whose code does not.

        Raises: `InputError` if the copy with B's weights gives other outputs than B.
        """
        self.line(self.feed.loaded.model, b).put(self.model, 1.0)
        outputs = []
        for model in (self.model, b):
            forward, mask = self.feed.forward(model, self.feed.batches[0])
            with torch.no_grad():
                outputs.append(counted(first_tensor(forward(), WHOLE, "output"), mask).double())
        ours, theirs = outputs
        if ours.shape != theirs.shape:
            apart, whole = 1.0, 1.0
        else:
            apart, whole = float((ours - theirs).norm()), float(theirs.norm())
        if apart > SAME * whole:
            raise InputError(
                f"with the other's weights, the code of model {self.feed.loaded.name!r} must give "
                f"the other's outputs; they are off by {apart / whole if whole else apart:.2g} of "
                "their norm. The two differ in something that is no tensor, such as an activation "
                "or the number of heads: compare two checkpoints of one model."
            )

    @torch.no_grad()
    def walk(self, stops: Sequence[Stop], tell: Tell = lambda *_: None) -> Walk:
        """Every stop on every batch. Cost: a forward of the data for each."""
        shape = len(stops), GROUPS
        loss, right, gaps, lengths, picked = (
            torch.zeros(shape, dtype=torch.float64) for _ in range(5)
        )
        counts, members = (torch.zeros(GROUPS, dtype=torch.float64) for _ in range(2))
        squares, rows, done, is_classes = 0.0, 0, 0, False
        total = sum(len(batch.units) for batch in self.feed.batches)
        for batch in self.feed.batches:
            group = batch.group
            forward, mask = self.feed.forward(self.model, batch)
            is_text = self.task is not None and self.task.labels is None
            ids = token_ids(self.feed, batch) if is_text else None
            self.put(stops[-1])
            start = end = counted(first_tensor(forward(), WHOLE, "output"), mask)
            for place, stop in enumerate(stops):
                output = end
                if place < len(stops) - 1:
                    self.put(stop)
                    output = counted(first_tensor(forward(), WHOLE, "output"), mask)
                start = output if place == 0 else start
                if self.task is not None:
                    wrong, hits, scored = self.task.sums(output, ids, mask, batch)
                    loss[place, group] += wrong.cpu()
                    right[place, group] += hits.cpu()
                    counts[group] += scored if place == 0 else 0
                if 0 < stop.t < 1:
                    for part in parts_of(output):
                        gap, length = chord_sums(start[part], output[part], end[part], stop.t)
                        gaps[place, group] += gap.cpu()
                        lengths[place, group] += length.cpu()
                is_classes = output.ndim == 2 and output.shape[1] > 1
                if is_classes:
                    picked[place, group] += (output.argmax(1) != start.argmax(1)).sum().cpu()
            squares += float(start.double().square().sum())
            members[group] += len(batch.units)
            kept = mask is not None and start.ndim > 2
            rows += int(mask.sum()) if kept and mask is not None else len(batch.units)
            done += len(batch.units)
            tell(done, total)
        used = members > 0
        noise = NOISE_ULPS * torch.finfo(start.dtype).eps * squares**0.5
        has_task = self.task is not None
        return Walk(
            tuple(stops), counts[used], loss[:, used] if has_task else None,
            right[:, used] if has_task else None, gaps[:, used], lengths[:, used], noise,
            total, rows, members[used], picked[:, used] if is_classes else None,
        )  # fmt: skip


def warned(value: float | None, interval: object) -> list[str]:
    """Why a mean lacks its value or its interval."""
    if value is None:
        return ["The loss is not finite at some of these points."]
    return [] if interval is not None else [NO_INTERVAL]


def mean_of(sums: Tensor, counts: Tensor) -> dict[str, Any]:
    """A mean over units or tokens, with its interval over groups."""
    value = number(float(sums.sum() / counts.sum()))
    interval = None if value is None else interval_of(mean_interval(sums, counts))
    return {"value": value, "interval": interval}


def loss_readings(walk: Walk, control: Walk | None, task: Task) -> list[Reading]:
    """Loss and share correct at every stop, beside those of the control, paired by group."""
    found = []
    for gauge, sums, others in (
        ("loss", walk.loss, None if control is None else control.loss),
        ("accuracy", walk.right, None if control is None else control.right),
    ):
        assert sums is not None
        for place, stop in enumerate(walk.stops):
            held = mean_of(sums[place], walk.counts)
            controls = {}
            if others is not None:
                difference = mean_of(sums[place] - others[place], walk.counts)
                controls["random"] = mean_of(others[place], walk.counts) | {
                    "difference": difference
                }
            unit = task.unit if gauge == "loss" else "share"
            details = {
                "t": stop.t, "unit": unit, "sum_by_group": sums[place].tolist(),
                "count_by_group": walk.counts.tolist(),
            }  # fmt: skip
            found.append(
                Reading("weights", WHOLE, gauge, task.kind, held["value"], held["interval"],
                        samples_of(walk), controls, warned(*held.values()), details)
            )  # fmt: skip
    return found


def samples_of(walk: Walk) -> dict[str, int]:
    """Units, and what of them a mean is over."""
    return {"units": walk.units, "scored": int(walk.counts.sum())}


def excess(sums: Tensor, ends: Tensor, counts: Tensor, ts: Tensor) -> Tensor:
    """How far the mean at every stop lies above the straight line between the means `ends`."""
    mean, between = (one.sum(-1) / counts.sum(-1) for one in (sums, ends))
    return mean - torch.lerp(between[:1], between[1:], ts)


def barrier(
    sums: Tensor, ends: Tensor, counts: Tensor, ts: Tensor, level: float = 0.95
) -> dict[str, Any]:
    """The largest excess over the stops, the stop, and a 95 % interval.

    The jackknife over groups, the maximum taken anew each time: a group is left out at all stops
    at once, so what its units share cancels, and another highest stop counts as spread. Student,
    groups less one. The first stop lies on the line, so no barrier is below 0 and the interval is
    cut there. A maximum over noisy means is biased upwards, by less than the half-width.

    Args:
        sums: (stops, groups), summed losses; `ends` (2, groups) those that the line joins.
        counts: (groups,) what the means are over; `ts` (stops,) where the stops lie.
    """
    above = excess(sums, ends, counts, ts)
    value = number(float(above.max()))
    if value is None or not bool(torch.isfinite(above).all()):
        return {"value": None, "interval": None, "worst_t": None}
    others = 1 - torch.eye(len(counts), dtype=torch.float64)
    left_out = torch.stack(
        [excess(sums * keep, ends * keep, counts * keep, ts).max() for keep in others.unbind()]
    )
    low, high = jackknife_interval(value, left_out, level)
    interval = interval_of((max(low, 0.0), high))
    return {"value": value, "interval": interval, "worst_t": float(ts[above.argmax()])}


def barrier_readings(walk: Walk, control: Walk | None, task: Task) -> list[Reading]:
    """The barrier of the loss, and of the share that is wrong.

    The control steps from A in a random direction up to half of the way, as far as the path gets
    from its nearer end, and is held against the same line.
    """
    found = []
    ts = torch.tensor([stop.t for stop in walk.stops], dtype=torch.float64)
    near = ts <= 0.5
    for variant in ("loss", "error"):
        sums = _sums(walk, variant)
        held = barrier(sums, sums[[0, -1]], walk.counts, ts)
        worst = held.pop("worst_t")
        controls = {}
        if control is not None:
            steps = _sums(control, variant)[near]
            controls["random"] = barrier(steps, sums[[0, -1]], walk.counts, ts[near])
        unit = task.unit if variant == "loss" else "share"
        details = {"worst_t": worst, "unit": unit, "stops": len(walk.stops), "task": task.kind}
        found.append(
            Reading("weights", WHOLE, "barrier", variant, held["value"], held["interval"],
                    samples_of(walk), controls, warned(held["value"], held["interval"]), details)
        )  # fmt: skip
    return found


def _sums(walk: Walk, variant: str) -> Tensor:
    assert walk.loss is not None
    assert walk.right is not None
    return walk.loss if variant == "loss" else walk.counts - walk.right


def chord_readings(walk: Walk, step: float) -> list[Reading]:
    """The chord of the outputs at every stop between the ends."""
    points = {}
    for place, stop in enumerate(walk.stops):
        if 0 < stop.t < 1:
            table = torch.stack([walk.gaps[place], walk.lengths[place]], 1)
            nothing = torch.full((len(table), 1), torch.nan, dtype=torch.float64)
            points[Point("chord", stop.t, "")] = torch.cat([table, nothing], 1)
    return readings_of(SiteSums("weights", WHOLE, step, walk.units, walk.rows, walk.noise, points))


def length_of(line: Line) -> float:
    """The norm of the step from one end to the other."""
    steps = (line.end[key].double() - one.double() for key, one in line.start.items()
             if key not in line.buffers)  # fmt: skip
    return math.hypot(*(float(step.norm()) for step in steps))
