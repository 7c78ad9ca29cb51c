"""Replace: blocks that are nearly affine become their affine map, or go, within a loss budget.

Holds: ``replace``.
May import: torch, ``secant.engine``, ``secant.errors``, ``secant.gauges``,
``secant.load``, ``secant.maps``, ``secant.readings``, ``secant.surveys``, ``secant.uses``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from secant.engine.plan import Batch
from secant.errors import InputError
from secant.gauges.interval import few_units
from secant.load.data import Units, load_data
from secant.load.feed import Feed
from secant.load.models import Loaded, load_model
from secant.load.options import DEFAULTS, LoadOptions
from secant.maps.sites import find_sites
from secant.readings import number, writable
from secant.surveys import versions
from secant.uses.replace_costs import Costs, costs_of
from secant.uses.replace_curves import (
    BEYOND,
    Trail,
    differences,
    dropped,
    influence_order,
    random_orders,
    trail,
)
from secant.uses.replace_files import written
from secant.uses.replace_fit import Fitted
from secant.uses.replace_heal import healed
from secant.uses.replace_parts import Map, installed, standing
from secant.uses.replace_result import Chosen, Healing, Met, Replacement
from secant.uses.replace_runs import Forms, Runner
from secant.uses.replace_scores import Losses, Scorer, increase, increase_interval
from secant.uses.replace_search import Search, Step, ranked
from secant.uses.replace_sites import candidate_sites, watched
from secant.uses.scores import task_of
from secant.uses.timing import medians

Progress = Callable[[str, int, int], None]

GROUPS = 12
ROLES = {"fit": range(6), "choose": range(6, 8), "score": range(8, 12)}
"""Groups of units by the hash of their content: half to fit on, a sixth to choose on."""
BUDGETS = (0.05, 0.1, 0.2)
FEWEST = 3
ROWS_PER_DIMENSION = 10
INFLUENCE, RANDOM = "block influence", "random"


def replace(
    model: str | nn.Module | Loaded,
    data: Any = "demo:digits",
    *,
    budgets: Sequence[float] = BUDGETS,
    sites: list[str] | None = None,
    column: str = "text",
    loading: LoadOptions = DEFAULTS,
    rows: int | None = None,
    batch_size: int = 32,
    most: int = 48,
    draws: int = 8,
    heal: int = 0,
    seed: int = 0,
    progress: Progress = lambda label, done, total: None,
    out: Path | None = None,
) -> Replacement:
    """Replace blocks by cheaper affine maps, or drop them, while the loss rises by no more.

    The repeated blocks and their sub-blocks (attention, MLP) may be dropped, dropped but for a
    shift, or replaced by the affine map that fits them best, of low rank or whole. Those that the
    fit leaves least over for what they save are tried; a set is chosen greedily, by operations
    saved for each unit of loss, and after each choice all maps behind it are fitted anew, in order,
    to what the model's own sites give: errors do not stack.

    The loss is that of the labels or of the next token, in nats; for other models the squared
    change of the outputs, of their variance. Three sets of units, told apart by the hash of their
    content: maps are fitted on the first, the set is chosen on the second, and all that is said
    here is of the third. Beside the curve of loss against operations saved stand those of blocks
    dropped at random and by block influence (arXiv:2403.03853).

    Args:
        model, data, loading, column, rows: as in `survey`.
        budgets: how far the loss may rise, each in the loss's own unit.
        sites: candidates, as globs; they then are what is dropped at random, too.
        most: candidates that are tried, each alone, before the choice; as many again each time that
            the budget outlasts them.
        draws: orders in which blocks are dropped at random.
        heal: steps of training of the stand-ins of the largest budget alone, towards the model's
            own outputs on the units fitted on; kept if that lowers the loss on the choosing units.
        out: folder for the model of the largest budget, as `model.safetensors` and `model.pt2`
            (for `torch.export.load`). See `Replacement.load` for the first.

    Raises: `InputError` if no budget is met, with the least rise found; if nothing could be
    replaced; for budgets that are not above 0; for too few units.

    Cost: `most` forwards of a sixth of the data and for each choice a few more and two of the half
    to fit on; each point of a curve a forward of a third. Less where the blocks are a chain.
    """
    started = time.perf_counter()
    wanted = sorted(set(budgets))
    if not wanted or not all(0 < one < math.inf for one in wanted):
        raise InputError(
            f"replace: budgets must be numbers above 0; got {list(budgets)}. Give for example 0.05."
        )
    with nullcontext() if out is None else writable(out):
        loaded = model if isinstance(model, Loaded) else load_model(model, loading)
        units = data if isinstance(data, Units) else load_data(data, column, loading, rows)
        feed = Feed(loaded, units, groups=GROUPS, batch_size=batch_size, seed=seed)
        sets = _sets(feed)
        task, why = task_of(feed, loaded.model)
        blocks = _blocks(loaded.model, sites)
        runner = Runner(loaded.model, feed, blocks)
        found = watched(
            runner, blocks if sites else candidate_sites(loaded.model, blocks), sets["fit"],
            lambda done, total: progress("fitted", done, total),
        )  # fmt: skip
        runner.find_chain()
        costs = costs_of(runner, list(found.fits))
        search = Search(
            runner, Scorer(runner, task, sets["choose"]), sets["fit"], costs, wanted, progress
        )
        steps = search.steps(ranked(found.fits, runner.places, blocks, costs), found.fits, most)
        run = _Run(runner, Scorer(runner, task, sets["score"]), costs, found.fits, progress)
        ours = run.ours(steps)
        controls = run.controls(blocks, wanted[-1], draws, seed)
        assert search.least is not None
        least = search.least[0]
        met = [run.met(one, steps, least, ours, controls, seed) for one in wanted]
        last = _last(steps, wanted[-1])
        assert last is not None, "the search keeps within the largest budget"
        healing, chosen = run.healed(steps[last].forms, search, heal, task is not None, seed)
        result = Replacement(
            loaded.name, units.name, {name: _count(batches) for name, batches in sets.items()},
            "squared change of the outputs" if task is None else task.kind,
            "shares of the outputs' variance" if task is None else task.unit,
            0.0 if task is None else run.before.mean, met,
            [one.curve for one in (ours, *(each for many in controls.values() for each in many))],
            {site: number(fit.beyond) for site, fit in found.fits.items()}, found.left,
            [*feed.notes, *_notes(found.fits, _count(sets["score"]), why, task is None, met)],
            seed, versions(), time.perf_counter() - started, healing,
            stands=[_stand(runner, site, form) for site, form in chosen.items()],
            module=installed(loaded.model, runner.stands_for(chosen)),
        )  # fmt: skip
        if out is not None:
            inputs = feed.inputs(sets["score"][0])[0]
            files, told = written(result.module, inputs, out)  # type: ignore[arg-type]
            result.files.extend(files)
            result.notes.extend(told)
    return result


def _sets(feed: Feed) -> dict[str, list[Batch]]:
    """The batches of each role.

    Raises: `InputError` unless each has some units.
    """
    sets = {role: [b for b in feed.batches if b.group in groups] for role, groups in ROLES.items()}
    if any(_count(batches) < FEWEST for batches in sets.values()):
        found = ", ".join(f"{_count(batches)} to {role}" for role, batches in sets.items())
        raise InputError(
            f"replace: units are needed to fit, to choose and to score on, {FEWEST} at the least; "
            f"of {len(feed.units)} the hash gives {found} on. Give some hundred."
        )
    return sets


def _count(batches: Sequence[Batch]) -> int:
    return sum(len(batch.units) for batch in batches)


def _blocks(model: nn.Module, sites: list[str] | None) -> list[str]:
    found = find_sites(model, sites)
    single = [site for site in found if "@" in site]
    if single:
        raise InputError(
            f"replace: {single[0]!r} is one call of a module that has several, and it would be "
            "replaced in all. Name the module without @."
        )
    return found


def _last(steps: Sequence[Step], budget: float) -> int | None:
    """The last step that kept the budget on the choosing units, None if none did."""
    kept = [number for number, step in enumerate(steps) if step.increase <= budget]
    return kept[-1] if kept else None


def _stand(runner: Runner, site: str, form: Map) -> dict[str, Any]:
    place = runner.places[site]
    return asdict(place) | {"kind": form.kind, "rank": form.rank, "is_added": form.is_added}


@dataclass
class _Run:
    """Everything that is said of the scoring units."""

    runner: Runner
    scorer: Scorer
    costs: Costs
    fits: Mapping[str, Fitted]
    progress: Progress

    def __post_init__(self) -> None:
        self.before: Losses = self.scorer.remember({})
        self.known: dict[frozenset[str], Losses] = {}

    def ours(self, steps: Sequence[Step]) -> Trail:
        """The steps of the search."""
        return trail(
            "replaced", [step.forms for step in steps], self.scorer, self.before, self.costs, {},
            tell=lambda done, total: self.progress("scored", done, total),
        )  # fmt: skip

    def controls(
        self, blocks: Sequence[str], budget: float, draws: int, seed: int
    ) -> dict[str, list[Trail]]:
        """Blocks dropped by their influence, and at random."""
        spared = [b for b in blocks if b in self.fits and self.costs.sites[b] > 0]
        orders = {RANDOM: random_orders(spared, draws, seed)}
        by_influence = [one for one in influence_order(self.fits, blocks) if one in spared]
        if by_influence:
            orders[INFLUENCE] = [by_influence]
        found: dict[str, list[Trail]] = {}
        total = sum(len(many) for many in orders.values())
        done = 0
        for name, many in orders.items():
            for order in many:
                found.setdefault(name, []).append(
                    trail(name, dropped(self.fits, order), self.scorer, self.before, self.costs,
                          self.known, BEYOND * budget)
                )  # fmt: skip
                done += 1
                self.progress("controls", done, total)
        return found

    def met(
        self, budget: float, steps: Sequence[Step], least: float, ours: Trail,
        controls: Mapping[str, Sequence[Trail]], seed: int,
    ) -> Met:  # fmt: skip
        """What one budget's choice comes to."""
        last = _last(steps, budget)
        against = differences(ours, controls, self.before.counts, budget, seed)
        sizes = self._sizes({})
        if last is None:
            note = f"No choice stays within it: the least rise is {least:.3g}, on choosing units."
            return Met(budget, [], 0.0, 0.0, None, sizes, sizes, against, note)
        forms, point = steps[last].forms, ours.curve.points[last + 1]
        note = ""
        if point.interval is not None and point.interval[0] > budget:
            note = "On the scoring units the loss rises by more than this budget."
        before, after = sizes, self._sizes(forms)
        before["seconds"], after["seconds"] = self._seconds(forms)
        chosen = [
            Chosen(site, form.kind, form.rank, form.is_added, self.runner.places[site].widths,
                   self.costs.saved(site, form) / self.costs.whole,
                   number(self.fits[site].beyond))
            for site, form in forms.items()
        ]  # fmt: skip
        return Met(
            budget, chosen, point.saved, point.increase, point.interval, before, after, against,
            note,
        )  # fmt: skip

    def healed(
        self, forms: Forms, search: Search, steps: int, is_classes: bool, seed: int
    ) -> tuple[Healing | None, Forms]:
        """The forms after training, if that is wanted and lowers the loss on the choosing units."""
        if not steps:
            return None, forms
        trained = healed(
            self.runner, forms, search.batches, steps, is_classes=is_classes, seed=seed,
            tell=lambda done, total: self.progress("healed", done, total),
        )  # fmt: skip
        was, now = (search.scorer.losses(one).mean for one in (forms, trained))
        before, after = (self.scorer.losses(one) for one in (forms, trained))
        is_kept = now < was
        told = Healing(
            steps, is_kept, increase(before, self.before), increase(after, self.before),
            increase_interval(after, self.before),
        )  # fmt: skip
        return told, trained if is_kept else forms

    def _sizes(self, forms: Forms) -> dict[str, float]:
        model = self.runner.model
        with standing(model, self.runner.stands_for(forms)):
            parameters = float(sum(one.numel() for one in model.parameters()))
        flops = self.costs.whole * (1 - self.costs.share(forms))
        return {"parameters": parameters, "flops": flops}

    def _seconds(self, forms: Forms) -> tuple[float, float]:
        """Median seconds of a batch, the model and the changed one in turn."""
        batch = max(self.scorer.batches, key=lambda one: len(one.units))
        before, after = medians(
            [partial(self.runner.run, batch, which) for which in ({}, forms)],
            self.runner.like.device, self.progress,
        )  # fmt: skip
        return before, after


def _notes(
    fits: Mapping[str, Fitted], scored: int, why: str, is_distilled: bool, met: Sequence[Met]
) -> list[str]:
    """What must be known of the run."""
    notes = few_units(scored)
    if is_distilled:
        notes.append(
            f"No loss of its own: {why}. The loss is the squared change of the outputs, of their "
            "variance over the scoring units."
        )
    short = {
        site: len(fit.centres[0]) for site, fit in fits.items()
        if fit.rows < ROWS_PER_DIMENSION * len(fit.centres[0])
    }  # fmt: skip
    if short:
        site, width = max(short.items(), key=lambda one: one[1])
        notes.append(
            f"{fits[site].rows} rows to fit {width} dimensions at {site!r}"
            + (f" and too few at {len(short) - 1} more sites" if len(short) > 1 else "")
            + f"; {ROWS_PER_DIMENSION * width} are wanted. More data would give better maps."
        )
    return notes + [f"Budget {one.budget:g}: {one.note}" for one in met if one.note]
