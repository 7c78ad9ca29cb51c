"""What one pass gathers of each recurrent layer: its transition as rows, and what it remembers.

Holds: ``TimeSums``, ``TimeResult``, ``gather``, ``Rows``, ``rows_of``.
May import: torch, jaxtyping, ``secant.errors``, ``secant.engine``, ``secant.gauges``,
``secant.load``, ``secant.maps``, ``secant.uses.horizons``.

Only sums are kept, by group of units, as for every fit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from secant.engine.plan import Batch
from secant.errors import InputError
from secant.gauges.fit import AffineMap, Fit, FitResult, Score, fit_from_sums
from secant.gauges.interval import FOLDS
from secant.gauges.moments import Moments, added, trained
from secant.gauges.ridge import Eigen, Eigenbases, ridge_weight
from secant.load.feed import Feed
from secant.maps.features import rows
from secant.maps.time import Transition, transitions
from secant.uses.horizons import Decay

WIDEST = 1024
"""Entries of a state past which its products would cost more than the model."""
DIRECTIONS = 16
"""Inputs wider than this are remembered along so many fixed random directions of theirs."""
LAGS = (0, 1, 2, 4, 8, 16, 32)
FEWEST_FOLDS = 3
"""Folds that a held-out score with an inner choice of ridge needs."""

Tell = Callable[[int, int], None]


class Rows(NamedTuple):
    """Steps of one batch that count, a row each."""

    before: Float[Tensor, "rows state"]
    inputs: Float[Tensor, "rows inputs"]
    after: Float[Tensor, "rows state"]


class TimeResult(NamedTuple):
    """What the sums of one layer say.

    `whole` fits the next state by state and input, `alone` by the state, `inputs` by the input;
    `memory` maps a lag to the score of the input so long ago by the state, and by today's input;
    `notes` say why it is empty.
    """

    whole: FitResult
    alone: FitResult
    inputs: FitResult
    memory: dict[int, tuple[Score, Score]]
    notes: list[str]


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
        self.is_chained, self.remembering = True, 0
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

    def add(self, found: Transition, steps: Rows, mask: Tensor | None, group: int) -> None:
        """One batch of this group; `steps` are its rows."""
        before, inputs, after = steps
        self.whole.update(torch.cat([before, inputs], 1), after, group)
        self.alone.update(before, after, group)
        self.inputs.update(inputs, after, group)
        self.is_chained &= found.is_chained
        deepest = self.lags[-1]
        counted = found.counted(mask)
        length = found.inputs.shape[1]
        if length <= deepest or not self.is_chained:
            return
        is_late = torch.ones(found.y.shape[0], length - deepest, dtype=torch.bool)
        is_late = is_late.to(found.y.device)
        if counted is not None:  # one that counts has counted steps before it, but for padding
            is_late = counted[:, deepest:] & counted[:, : length - deepest]
        seen = self._seen(found.inputs)
        past = torch.cat([seen[:, deepest - lag : length - lag] for lag in self.lags], -1)
        self.remembering += int(is_late.any(1).sum())
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
        notes = []
        if not self.is_chained:
            notes.append(
                "Its steps do not follow on one another (the model calls it for several sequences, "
                "or changes its state in between): no horizon, no memory."
            )
        elif self._folds() < FEWEST_FOLDS:
            notes.append(f"Too few units take {self.lags[-1] + 1} steps: no memory.")
        else:
            for place, lag in enumerate(self.lags):
                own, echo = (
                    fit_from_sums(self._of_lag(gauge.sums(), place), bases).scores["raw"]
                    for gauge in (self.memory, self.echo)
                )
                memory[lag] = own, echo
        return TimeResult(whole, alone, inputs, memory, notes)

    def _folds(self) -> int:
        """How many folds hold units long enough to remember."""
        if not self.memory.sum_rows.ndim:
            return 0
        filled = (self.memory.sum_rows > 0).nonzero()[:, 0]
        return len(set((filled % FOLDS).tolist()))

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

    def decay_without(self, groups: list[int]) -> Decay:
        """The best multiple of the centred state, fitted on all groups but these."""
        sums = self.alone.sums()
        kept = [sums.of(group) for group in range(len(sums.rows)) if group not in groups]
        before, after, centred = trained(added(kept))
        scalar = centred.xt.trace() / centred.xx.trace()
        return Decay(scalar, before + self.alone.x_centre, after + self.alone.y_centre)


def rows_of(found: Transition, mask: Tensor | None) -> Rows:
    """The steps that count, as rows."""
    counted = found.counted(mask)
    return Rows(*(rows(part, counted) for part in (found.x, found.inputs, found.y)))


def gather(
    model: nn.Module, feed: Feed, seed: int, tell: Tell
) -> tuple[dict[str, TimeSums], dict[str, str]]:
    """The sums of every recurrent layer, in one pass over the data; of others why they have none.

    How far back memory is asked for follows from the unit of the median length, whatever the
    batches.

    Raises: `InputError` as `transitions` does.
    """
    found: dict[str, TimeSums] = {}
    skipped: dict[str, str] = {}
    lengths = _middle_lengths(model, feed)
    done = 0
    for batch in feed.batches:
        forward, mask = feed.forward(model, batch)
        for site, part in transitions(model, forward).items():
            if site in skipped:
                continue
            try:
                steps = _finite(part, mask)
                if site not in found:
                    longest = lengths.get(site, part.y.shape[1])
                    found[site] = TimeSums(site, steps, longest, seed)
                found[site].add(part, steps, mask, batch.group)
            except InputError as error:
                skipped[site] = str(error)
                found.pop(site, None)
        done += len(batch.units)
        tell(done, len(feed.units))
    return found, skipped


def _finite(part: Transition, mask: Tensor | None) -> Rows:
    steps = rows_of(part, mask)
    if not all(bool(one.isfinite().all()) for one in steps):
        raise InputError(
            f"site {part.site!r}: its states or inputs hold values that are not finite, so that no "
            "later step can be fitted. Give units without them."
        )
    return steps


def _middle_lengths(model: nn.Module, feed: Feed) -> dict[str, int]:
    """How many steps each layer takes of the unit of the median length."""
    ordered = sorted(range(len(feed.lengths)), key=lambda u: (feed.lengths[u], feed.contents[u]))
    forward, mask = feed.forward(model, Batch(0, (ordered[len(ordered) // 2],)))
    lengths = {}
    for site, part in transitions(model, forward).items():
        taken = part.valid if mask is None or mask.shape != part.y.shape[:2] else part.counted(mask)
        lengths[site] = part.y.shape[1] if taken is None else int(taken.sum())
    return lengths
