"""Which blocks to replace, by what: greedy, by operations saved for each unit of loss.

Holds: ``Candidate``, ``Step``, ``Search``, ``shortlist``.
May import: torch, ``secant.engine``, ``secant.errors``, ``secant.uses``.
"""

from __future__ import annotations

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
FLOOR = 0.01
"""Losses that differ by less than this part of the largest budget count as the same."""


@dataclass(frozen=True)
class Candidate:
    """One map at one site; `left` is what the fit leaves over, of the variance of its block."""

    site: str
    kind: str
    rank: int | None
    form: Map
    saved: float
    left: float


@dataclass(frozen=True)
class Step:
    """The network after one choice: what stands in where, and the loss on the choosing set."""

    site: str
    forms: dict[str, Map]
    increase: float


def shortlist(
    fits: Mapping[str, Fitted], places: Mapping[str, Place], blocks: Sequence[str], costs: Costs,
    most: int,
) -> list[Candidate]:  # fmt: skip
    """The `most` candidates that save most for what their fit leaves over.

    What a map leaves over is counted in the variance of its whole block's output: a sub-block that
    adds little to the stream may be fitted badly. A map is left out where another of its site saves
    as much and leaves less.
    """
    bases = Eigenbases()
    found = []
    for site, fit in fits.items():
        around = fits.get(blocks[places[site].block], fit)
        whole = max(around.total, fit.total if around is fit else 0.0) / around.rows
        options = []
        for name, error in fit.errors.items():
            kind, _, rank = name.partition(" ")
            form = Map(kind, fit.is_added, width=places[site].widths[1])
            products = _products(kind, int(rank or 0), places[site].widths)
            saved = costs.sites[site] - 2 * costs.rows[site] * products
            left = max(error, 0.0) / fit.rows / whole if whole > 0 else 0.0
            if saved > 0:
                options.append(
                    Candidate(site, kind, int(rank) if rank else None, form, saved, left)
                )
        found += [one for one in options if not any(_beats(other, one) for other in options)]
    found.sort(key=lambda one: -one.saved / max(one.left, 1e-6))
    chosen = []
    for one in found[:most]:
        form = fits[one.site].map(one.kind, one.rank, bases)
        chosen.append(Candidate(one.site, one.kind, one.rank, form, one.saved, one.left))
    return chosen


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
        self, runner: Runner, scorer: Scorer, batches: Sequence[Batch], costs: Costs, budget: float,
        progress: Progress,
    ) -> None:  # fmt: skip
        self.runner, self.scorer, self.batches = runner, scorer, batches
        self.costs, self.budget, self.progress = costs, budget, progress
        self.before: Losses = scorer.remember({})
        self.forms: dict[str, Map] = {}
        self.now = 0.0
        self.least: tuple[float, Candidate] | None = None

    def steps(self, candidates: Sequence[Candidate]) -> list[Step]:
        """All steps until no candidate stays within the budget.

        Raises: `InputError` if not even one candidate does, with the least rise found.
        """
        rises: dict[int, float] = {}
        for number, one in enumerate(candidates):
            rises[number] = self._rise(one)
            self.progress("each alone", number + 1, len(candidates))
        if self.least is None:
            raise InputError(
                "replace: nothing can be replaced here: no block has a map that costs less than it "
                "does. Name larger parts with --site."
            )
        found: list[Step] = []
        while True:
            chosen = self._next(candidates, rises)
            if chosen is None:
                return self._checked(found)
            one = candidates[chosen]
            step = self._taken(one)
            if step is None:
                del rises[chosen]
                continue
            found.append(step)
            self.progress("loss spent, of the budget", round(1000 * max(step.increase, 0)),
                          round(1000 * self.budget))  # fmt: skip

    def _checked(self, found: list[Step]) -> list[Step]:
        if not found:
            assert self.least is not None
            rise, one = self.least
            raise InputError(
                f"replace: no block can be replaced within a budget of {self.budget:g}. The least "
                f"rise of the loss found is {rise:.3g}, {one.site!r} {one.form.label}. Give a "
                f"--budget of {1.2 * rise:.2g} or more, name other sites with --site, or more rows "
                "to fit on."
            )
        return found

    def _gain(self, one: Candidate) -> float:
        """Operations saved beyond what is saved already; 0 where the site is gone."""
        if any(within(one.site, other) for other in self.forms):
            return 0.0
        inner = [other for other in self.forms if within(other, one.site)]
        return one.saved - sum(self.costs.saved(other, self.forms[other]) for other in inner)

    def _rise(self, one: Candidate) -> float:
        """The loss above what it is now, with this candidate too."""
        forms = {**without(self.forms, one.site), one.site: one.form}
        start = self.runner.places[one.site].block
        total = increase(self.scorer.losses(forms, start=start), self.before)
        if not self.forms and (self.least is None or total < self.least[0]):
            self.least = total, one
        return total - self.now

    def _next(self, candidates: Sequence[Candidate], rises: dict[int, float]) -> int | None:
        """The best candidate by looks no older than this step, or None if none is affordable."""
        fresh: set[int] = set() if self.forms else set(rises)
        floor = FLOOR * self.budget

        def worth(number: int) -> float:
            return self._gain(candidates[number]) / max(rises[number], floor)

        while True:
            open_ = [
                number for number, rise in rises.items()
                if self._gain(candidates[number]) > 0 and self.now + rise <= self.budget
            ]  # fmt: skip
            if not open_:
                return None
            best = max(open_, key=lambda number: (worth(number), -number))
            if best in fresh:
                return best
            seen = [number for number in open_ if number in fresh]
            if len(seen) >= LOOKS:
                return max(seen, key=lambda number: (worth(number), -number))
            rises[best] = self._rise(candidates[best])
            fresh.add(best)

    def _taken(self, one: Candidate) -> Step | None:
        """Put the candidate in, fit anew, and keep the better; None if the budget forbids it."""
        forms: dict[str, Map] = {**without(self.forms, one.site), one.site: one.form}
        block = self.runner.places[one.site].block
        total = increase(self.scorer.losses(forms, start=block), self.before)
        if self.forms:
            tell = lambda done, of: self.progress("fitted anew", done, of)  # noqa: E731
            again = refitted(self.runner, forms, block, self.batches, tell)
            better = increase(self.scorer.losses(again, start=block), self.before)
            if better < total:
                forms, total = again, better
        if not total <= self.budget:
            return None
        self.forms = forms
        self.now = increase(self.scorer.remember(forms), self.before)
        return Step(one.site, dict(forms), self.now)
