"""Which blocks to replace, by what: greedy, by operations saved for each unit of loss.

Holds: ``Candidate``, ``Step``, ``Search``, ``ranked``.
May import: torch, ``secant.engine``, ``secant.errors``, ``secant.uses``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from secant.engine.plan import Batch
from secant.errors import InputError
from secant.gauges.ridge import Eigenbases
from secant.uses.replace_costs import Costs, without
from secant.uses.replace_fit import Fitted
from secant.uses.replace_parts import AFFINE, DROP, RANK, Map, Place, within
from secant.uses.replace_runs import Runner
from secant.uses.replace_scores import Losses, Scorer, increase
from secant.uses.replace_sites import refitted

Progress = Callable[[str, int, int], None]

LOOKS = 3
"""Candidates that are looked at anew before a step is taken."""
FIRST_KINDS = 2
THRIFT = 0.5
"""A small budget is not spent on what is worth less than this part of a larger one's best."""
FLOOR = 0.01
"""Losses that differ by less than this part of the largest budget count as the same."""


@dataclass(frozen=True)
class Candidate:
    """One map at one site; `left` is what the fit leaves over, of the variance of its block."""

    site: str
    kind: str
    rank: int | None
    saved: float
    left: float


@dataclass(frozen=True)
class Step:
    """The network after one choice: what stands in where, and the loss on the choosing set."""

    site: str
    forms: dict[str, Map]
    increase: float


def ranked(
    fits: Mapping[str, Fitted], places: Mapping[str, Place], blocks: Sequence[str], costs: Costs
) -> list[Candidate]:
    """All candidates, first those that save most for what their fit leaves over.

    What a map leaves over is counted in the variance of its whole block's output: a sub-block that
    adds little to the stream may be fitted badly. The best `FIRST_KINDS` of each site come before
    all others, and none is left where another of its site saves as much and leaves less.
    """
    first: list[Candidate] = []
    later: list[Candidate] = []
    for site, fit in fits.items():
        around = fits.get(blocks[places[site].block], fit)
        whole = around.total / around.rows
        options = []
        for name, error in fit.errors.items():
            kind, _, rank = name.partition(" ")
            products = _products(kind, int(rank or 0), places[site].widths)
            saved = costs.sites[site] - 2 * costs.rows[site] * products
            left = max(error, 0.0) / fit.rows / whole if whole > 0 else 0.0
            if saved > 0:
                options.append(Candidate(site, kind, int(rank) if rank else None, saved, left))
        useful = [one for one in options if not any(_beats(other, one) for other in options)]
        useful.sort(key=_promise)
        first += useful[:FIRST_KINDS]
        later += useful[FIRST_KINDS:]
    return sorted(first, key=_promise) + sorted(later, key=_promise)


def _promise(one: Candidate) -> float:
    return -one.saved / max(one.left, 1e-6)


def _products(kind: str, rank: int, widths: tuple[int, int]) -> int:
    d, m = widths
    return {AFFINE: d * m, RANK: rank * (d + m)}.get(kind, 0)


def _beats(other: Candidate, one: Candidate) -> bool:
    """Whether another map of the site makes this one useless; equal ones go to the simpler."""
    if other.kind == DROP and other.left <= 1.05 * one.left + 1e-9 and one.kind != DROP:
        return True
    return other.saved >= one.saved and 1.05 * other.left + 1e-9 < one.left


class Search:
    """Greedy choice, looking first at what looked best before: gains mostly shrink (Minoux 1978).

    A step takes the candidate with the most operations saved for its rise of the loss. All maps
    from its block on are then fitted anew, in order, and kept so where that lowers the loss.
    """

    def __init__(
        self, runner: Runner, scorer: Scorer, batches: Sequence[Batch], costs: Costs,
        budgets: Sequence[float], progress: Progress,
    ) -> None:  # fmt: skip
        self.runner, self.scorer, self.batches = runner, scorer, batches
        self.costs, self.budgets, self.progress = costs, budgets, progress
        self.budget = budgets[0]
        self.before: Losses = scorer.remember({})
        self.forms: dict[str, Map] = {}
        self.now = 0.0
        self.least: tuple[float, Candidate, Map] | None = None
        self.candidates: list[Candidate] = []
        self.maps: list[Map] = []
        self.rises: dict[int, float] = {}
        self.fresh: set[int] = set()
        self.refused: set[int] = set()
        if not math.isfinite(self.before.mean):
            raise InputError(
                "replace: the model's own loss on this data is not a finite number, so no rise of "
                "it can be told. Look for NaN in the data, or give a wider --dtype."
            )

    def steps(
        self, candidates: Sequence[Candidate], fits: Mapping[str, Fitted], most: int
    ) -> list[Step]:
        """All steps until no candidate stays within the largest budget.

        The budgets are spent one after the other, so that the sets of all are beginnings of one
        sequence. The first `most` candidates are looked at, each alone; where the largest budget
        outlasts them, as many again, on the network as it then is, until a round adds nothing.

        Raises: `InputError` if not even one candidate keeps the budget, with the least rise found.
        """
        found: list[Step] = []
        bases = Eigenbases()
        while True:
            before = len(found)
            more = list(candidates[len(self.candidates) :][:most])
            self.candidates += more
            for number, one in enumerate(more):
                self.maps.append(fits[one.site].map(one.kind, one.rank, bases))
                place = len(self.maps) - 1
                if self._gain(place) > 0:
                    self.rises[place] = self._rise(place)
                    self.fresh.add(place)
                self.progress("each alone", number + 1, len(more))
            for budget in self.budgets:
                self.budget = budget
                self.refused.clear()
                found += self._spent()
            if len(found) == before or len(self.candidates) == len(candidates):
                return self._checked(found)

    def _spent(self) -> list[Step]:
        """Steps with the candidates at hand."""
        found: list[Step] = []
        while (chosen := self._next()) is not None:
            step = self._taken(chosen)
            if step is None:
                continue
            self.fresh.clear()
            self.refused.clear()
            found.append(step)
            self.progress("loss spent, of the budget", round(1000 * max(step.increase, 0)),
                          round(1000 * self.budgets[-1]))  # fmt: skip
        return found

    def _checked(self, found: list[Step]) -> list[Step]:
        if self.least is None:
            raise InputError(
                "replace: nothing can be replaced here: no block has a map that costs less than it "
                "does. Name larger parts with --site."
            )
        if not found:
            rise, one, form = self.least
            raise InputError(
                f"replace: no block can be replaced within a budget of {self.budget:g}. The least "
                f"rise of the loss found is {rise:.3g}, {one.site!r} {form.label}. Give a "
                f"--budget of {1.2 * rise:.2g} or more, name other sites with --site, or more rows "
                "to fit on."
            )
        return found

    def _gain(self, number: int) -> float:
        """Operations saved beyond what is saved already; 0 where the site is gone."""
        one = self.candidates[number]
        if any(within(one.site, other) and one.site != other for other in self.forms):
            return 0.0
        inner = [other for other in self.forms if within(other, one.site)]
        return one.saved - sum(self.costs.saved(other, self.forms[other]) for other in inner)

    def _with(self, number: int) -> dict[str, Map]:
        site = self.candidates[number].site
        return {**without(self.forms, site), site: self.maps[number]}

    def _block(self, number: int) -> int:
        return self.runner.places[self.candidates[number].site].block

    def _rise(self, number: int) -> float:
        """The loss above what it is now, with this candidate too."""
        losses = self.scorer.losses(self._with(number), start=self._block(number))
        total = increase(losses, self.before)
        is_least = self.least is None or total < self.least[0]
        if not self.forms and math.isfinite(total) and is_least:
            self.least = total, self.candidates[number], self.maps[number]
        return total - self.now

    def _next(self) -> int | None:
        """The best candidate by looks no older than the last step.

        None if none is affordable, or if what a larger budget can have is worth far more.
        """
        floor = FLOOR * self.budgets[-1]

        def worth(number: int) -> tuple[float, int]:
            return self._gain(number) / max(self.rises[number], floor), -number

        while True:
            useful = [
                number for number, rise in self.rises.items()
                if self._gain(number) > 0 and self.now + rise <= self.budgets[-1]
            ]  # fmt: skip
            open_ = [
                number for number in useful
                if number not in self.refused and self.now + self.rises[number] <= self.budget
            ]  # fmt: skip
            if not open_ or max(map(worth, open_))[0] < THRIFT * max(map(worth, useful))[0]:
                return None
            best = max(open_, key=worth)
            seen = [number for number in open_ if number in self.fresh]
            if best in self.fresh or len(seen) >= LOOKS:
                return max(seen, key=worth)
            self.rises[best] = self._rise(best)
            self.fresh.add(best)

    def _taken(self, number: int) -> Step | None:
        """Put the candidate in, fit anew, and keep the better; None if the budget forbids it."""
        forms, block = self._with(number), self._block(number)
        total = increase(self.scorer.losses(forms, start=block), self.before)
        if self.forms:
            tell = lambda done, of: self.progress("fitted anew", done, of)  # noqa: E731
            again = refitted(self.runner, forms, block, self.batches, tell)
            better = increase(self.scorer.losses(again, start=block), self.before)
            if better < total:
                forms, total = again, better
        if not total <= self.budget:
            self.rises[number] = total - self.now
            self.refused.add(number)
            return None
        self.forms = forms
        self.now = increase(self.scorer.remember(forms), self.before)
        return Step(self.candidates[number].site, dict(forms), self.now)
