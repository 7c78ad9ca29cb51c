"""Loss against operations saved, of the chosen set and of blocks dropped otherwise.

Holds: ``Point``, ``Curve``, ``Trail``, ``trail``, ``dropped``, ``influence_order``,
``random_orders``, ``most_saved``, ``differences``.
May import: torch, numpy, ``secant.uses``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from secant.uses.replace_costs import Costs, without
from secant.uses.replace_fit import Fitted
from secant.uses.replace_parts import DROP, Map, within
from secant.uses.replace_runs import Forms
from secant.uses.replace_scores import Losses, Scorer, increase, increase_interval

RESAMPLES = 2000
BEYOND = 1.5
"""A control goes on until its loss has risen by so many times the largest budget."""

Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class Point:
    """What stands in at how many sites, the share of operations saved, the rise of the loss."""

    replaced: int
    sites: list[str]
    saved: float
    increase: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Curve:
    """One order of replacing, step by step; the model as it is comes first."""

    name: str
    points: list[Point]


@dataclass(frozen=True)
class Trail:
    """A curve with the losses of its points, unit by unit: (points, units)."""

    curve: Curve
    losses: Tensor


def trail(
    name: str, stages: Sequence[Forms], scorer: Scorer, before: Losses, costs: Costs,
    known: dict[frozenset[str], Losses], limit: float = float("inf"), tell: Tell = lambda *_: None,
) -> Trail:  # fmt: skip
    """Score each stage on the scorer's units until the loss has risen by more than `limit`.

    `known` keeps the losses of sets of dropped blocks, which several orders begin with.
    """
    points = [Point(0, [], 0.0, 0.0, (0.0, 0.0))]
    found = [before.sums]
    for number, forms in enumerate(stages):
        key = frozenset(forms)
        if key in known:
            losses = known[key]
        else:
            start = min(scorer.runner.places[site].block for site in forms)
            losses = scorer.losses(forms, start=start)
            if all(form.kind == DROP for form in forms.values()):
                known[key] = losses
        rise = increase(losses, before)
        points.append(
            Point(len(forms), list(forms), costs.share(forms), rise,
                  increase_interval(losses, before))
        )  # fmt: skip
        found.append(losses.sums)
        tell(number + 1, len(stages))
        if not rise <= limit:
            break
    tell(len(stages), len(stages))
    return Trail(Curve(name, points), torch.stack(found))


def dropped(fits: Mapping[str, Fitted], order: Sequence[str]) -> list[dict[str, Map]]:
    """The first of the order dropped, the first two, and so on; what lies in one goes with it."""
    stages: list[dict[str, Map]] = []
    for site in order:
        forms = stages[-1] if stages else {}
        if not any(within(site, other) for other in forms):
            stages.append({**without(forms, site), site: fits[site].map(DROP)})
    return stages


def influence_order(fits: Mapping[str, Fitted], blocks: Sequence[str]) -> list[str]:
    """Blocks by how little they turn their input: 1 - mean cosine of input and output.

    Source: the block influence of Men et al. 2024, arXiv:2403.03853.
    """
    known = [(fits[b].influence, place, b) for place, b in enumerate(blocks)
             if b in fits and fits[b].influence is not None]  # fmt: skip
    return [block for _, _, block in sorted(known)]


def random_orders(blocks: Sequence[str], draws: int, seed: int) -> list[list[str]]:
    """So many orders of the blocks, from one seed."""
    generator = torch.Generator().manual_seed(seed)
    return [
        [blocks[place] for place in torch.randperm(len(blocks), generator=generator).tolist()]
        for _ in range(draws)
    ]


def most_saved(one: Trail, weights: np.ndarray, counts: np.ndarray, budget: float) -> np.ndarray:
    """For each row of `weights` (resamples, units) the most saved at points within the budget."""
    gaps = (one.losses - one.losses[:1]).double().numpy()
    rises = weights @ gaps.T / (weights @ counts)[:, None]
    saved = np.array([point.saved for point in one.curve.points])
    best: np.ndarray = np.where(rises <= budget, saved, -np.inf).max(1)
    return best


def differences(
    ours: Trail, controls: Mapping[str, Sequence[Trail]], counts: Tensor, budget: float, seed: int
) -> dict[str, dict[str, object]]:
    """Share of operations saved at a budget by our curve, and by ours less that of each control.

    Of every curve the point that saves most with the loss within the budget; several draws of one
    control are averaged. The interval is the percentile bootstrap over scored units, the same ones
    for all curves; sets, maps and draws are held as they are.
    """
    units = len(counts)
    draw = np.random.default_rng(seed)
    weights = draw.multinomial(units, np.full(units, 1 / units), size=RESAMPLES).astype(float)
    of = counts.double().numpy()
    whole = np.ones((1, units))
    found: dict[str, dict[str, object]] = {}

    def entry(value: np.ndarray, resampled: np.ndarray) -> dict[str, object]:
        low, high = np.quantile(resampled, [0.025, 0.975])
        return {"value": float(value[0]), "interval": [float(low), float(high)]}

    mine = most_saved(ours, whole, of, budget), most_saved(ours, weights, of, budget)
    found["saved"] = entry(*mine)
    for name, trails in controls.items():
        theirs = [
            np.mean([most_saved(one, rows, of, budget) for one in trails], axis=0)
            for rows in (whole, weights)
        ]
        found[name] = entry(mine[0] - theirs[0], mine[1] - theirs[1])
        found[name]["saved"] = float(theirs[0][0])
    return found
