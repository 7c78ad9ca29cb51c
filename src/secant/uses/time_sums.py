"""What one pass gathers of each recurrent layer: its transition as rows, and what it remembers.

Holds: ``TimeSums``, ``TimeResult``, ``gather``, ``Rows``, ``rows_of``.
May import: torch, jaxtyping, ``secant.errors``, ``secant.engine``, ``secant.gauges``,
``secant.load``, ``secant.maps``.

Only sums are kept, by group of units, as for every fit.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from secant.errors import InputError
from secant.gauges.fit import AffineMap, Fit, FitResult, Score, fit_from_sums
from secant.gauges.moments import Moments, added, trained
from secant.gauges.ridge import Eigen, Eigenbases, ridge_weight
from secant.load.feed import Feed
from secant.maps.time import Transition, transitions

WIDEST = 1024
"""Entries of a state past which its products would cost more than the model."""
DIRECTIONS = 16
"""Inputs wider than this are remembered along so many fixed random directions of theirs."""
LAGS = (0, 1, 2, 4, 8, 16, 32)

Tell = Callable[[int, int], None]


class Rows(NamedTuple):
    """Steps of one batch that count, a row each."""

    before: Float[Tensor, "rows state"]
    inputs: Float[Tensor, "rows inputs"]
    after: Float[Tensor, "rows state"]


class TimeResult(NamedTuple):
    """What the sums of one layer say.

    `whole` fits the next state by state and input, `alone` by the state, `inputs` by the input;
    `memory` maps a lag to the score of the input so long ago by the state, and by today's input.
    """

    whole: FitResult
    alone: FitResult
    inputs: FitResult
    memory: dict[int, tuple[Score, Score]]


class TimeSums:
    """The gauges of one layer; their centres are the means of its first batch."""

    def __init__(self, site: str, first: Rows, longest: int, seed: int) -> None:
        self.site = site
        self.state, self.width = first.before.shape[1], first.inputs.shape[1]
        if self.state > WIDEST:
            raise InputError(
                f"site {site!r}: its state has {self.state} entries, more than {WIDEST}: no fit. "
                "Survey a narrower recurrence."
            )
        self.lags = [lag for lag in LAGS if lag <= longest // 2]
        self.project: Tensor | None = None
        if self.width > DIRECTIONS:
            draw = torch.Generator().manual_seed(seed % 2**63)
            self.project = torch.randn(self.width, DIRECTIONS, generator=draw, dtype=torch.float64)
        h, u, y = (part.double().mean(0) for part in first)
        past = self._seen(u[None])[0].repeat(len(self.lags))
        place = h.device
        self.whole = Fit(torch.cat([h, u]), y).to(place)
        self.alone, self.inputs = Fit(h, y).to(place), Fit(u, y).to(place)
        self.memory, self.echo = Fit(y, past).to(place), Fit(u, past).to(place)

    def _seen(self, inputs: Tensor) -> Tensor:
        """The inputs, or their random directions."""
        inputs = inputs.double()
        return inputs if self.project is None else inputs @ self.project.to(inputs)

    def add(self, found: Transition, mask: Tensor | None, group: int) -> None:
        """One batch of this group."""
        before, inputs, after = rows_of(found, mask)
        self.whole.update(torch.cat([before, inputs], 1), after, group)
        self.alone.update(before, after, group)
        self.inputs.update(inputs, after, group)
        deepest = self.lags[-1]
        counted = found.counted(mask)
        steps = found.inputs.shape[1]
        if steps <= deepest:
            return
        is_late = torch.ones(found.y.shape[0], steps - deepest, dtype=torch.bool)
        is_late = is_late.to(found.y.device)
        if counted is not None:  # one that counts has counted steps before it, but for padding
            is_late = counted[:, deepest:] & counted[:, : steps - deepest]
        seen = self._seen(found.inputs)
        past = torch.cat([seen[:, deepest - lag : steps - lag] for lag in self.lags], -1)
        if is_late.any():
            self.memory.update(found.y[:, deepest:][is_late], past[is_late], group)
            self.echo.update(found.inputs[:, deepest:][is_late], past[is_late], group)

    def result(self) -> TimeResult:
        """Everything solved.

        Raises: `InputError` for units in fewer than three folds.
        """
        bases = Eigenbases()
        whole, alone = self.whole.compute(bases), self.alone.compute(bases)
        inputs = self.inputs.compute(bases)
        memory: dict[int, tuple[Score, Score]] = {}
        if self.memory.sum_rows.ndim:
            for place, lag in enumerate(self.lags):
                own, echo = (
                    fit_from_sums(self._of_lag(gauge.sums(), place), bases).scores["raw"]
                    for gauge in (self.memory, self.echo)
                )
                memory[lag] = own, echo
        return TimeResult(whole, alone, inputs, memory)

    def _of_lag(self, sums: Moments, place: int) -> Moments:
        width = sums.t.shape[-1] // len(self.lags)
        own = slice(place * width, (place + 1) * width)
        return Moments(
            sums.rows, sums.x, sums.t[..., own], sums.xx, sums.xt[..., own], sums.tt[..., own, own]
        )

    def map_without(self, groups: list[int], ridge: float) -> tuple[AffineMap, Tensor]:
        """The fitted map of [h, u] on all groups but these, and the mean state after."""
        sums = self.whole.sums()
        kept = [sums.of(group) for group in range(len(sums.rows))
                if group not in groups and sums.rows[group] > 0]  # fmt: skip
        x_mean, y_mean, centred = trained(added(kept))
        basis = Eigen(*torch.linalg.eigh(centred.xx))
        weight = ridge_weight(basis, centred.xt, ridge)
        mean = y_mean + self.whole.y_centre
        return AffineMap(weight, mean - (x_mean + self.whole.x_centre) @ weight), mean

    def scalar_without(self, groups: list[int]) -> Tensor:
        """The best multiple of the centred state, fitted on all groups but these."""
        sums = self.alone.sums()
        kept = [sums.of(group) for group in range(len(sums.rows)) if group not in groups]
        centred = trained(added(kept)).centred
        return centred.xt.trace() / centred.xx.trace()


def rows_of(found: Transition, mask: Tensor | None) -> Rows:
    """The steps that count, as rows."""
    counted = found.counted(mask)
    parts = (found.x, found.inputs, found.y)
    if counted is None:
        return Rows(*(part.flatten(0, 1) for part in parts))
    return Rows(*(part[counted] for part in parts))


def gather(model: nn.Module, feed: Feed, seed: int, tell: Tell) -> dict[str, TimeSums]:
    """The sums of every recurrent layer, in one pass over the data.

    Raises: `InputError` where a layer's values are not finite, or as `transitions` does.
    """
    found: dict[str, TimeSums] = {}
    done = 0
    for batch in feed.batches:
        forward, mask = feed.forward(model, batch)
        for site, part in transitions(model, forward).items():
            rows = rows_of(part, mask)
            if not all(bool(one.isfinite().all()) for one in rows):
                raise InputError(
                    f"site {site!r}: its states or inputs hold values that are not finite, so "
                    "that no later step can be fitted. Give units without them."
                )
            if site not in found:
                found[site] = TimeSums(site, rows, _length(part, mask), seed)
            found[site].add(part, mask, batch.group)
        done += len(batch.units)
        tell(done, len(feed.units))
    return found


def _length(found: Transition, mask: Tensor | None) -> int:
    """The median number of steps that a unit counts."""
    counted = found.counted(mask)
    if counted is None:
        return found.y.shape[1]
    return int(statistics.median(counted.sum(1).tolist()))
