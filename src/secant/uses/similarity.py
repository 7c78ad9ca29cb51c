"""Whether two models have come to the same features: CKA of their blocks on the same units.

Holds: ``similarity``.
May import: torch, ``secant.errors``, ``secant.engine``, ``secant.gauges``, ``secant.load``,
``secant.maps``, ``secant.readings``.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secant.engine.plan import Batch
from secant.gauges.cka import FEWEST_ROWS, cka_from_sums, cka_interval, hsic_sums
from secant.gauges.interval import GROUPS
from secant.load.feed import Feed
from secant.maps.features import watch
from secant.readings import NO_INTERVAL, Reading, interval_of, number

ROWS = 64
"""Units compared with one another at a time."""
FEWEST_GROUPS = 3


def similarity(
    a: nn.Module,
    b: nn.Module,
    fresh: nn.Module | None,
    missing: Mapping[str, str],
    feed: Feed,
    sites: Sequence[str],
    tell: Callable[[int, int], None],
) -> list[Reading]:
    """Linear CKA of what each of `sites` gives in A and in B, unbiased, in batches.

    A unit is one row: all its features, or where there is padding their mean over the positions
    that count. Control `fresh`: A against the same architecture with new weights. Cost: a forward
    of the data for each model.
    """
    batches = _batches(feed)
    others = {"pair": b} | ({} if fresh is None else {"fresh": fresh})
    sums: dict[str, dict[str, Tensor]] = {name: {} for name in others}
    with torch.no_grad():
        for done, batch in enumerate(batches, start=1):
            ours = _features(a, feed, sites, batch)
            for name, model in others.items():
                for site, theirs in _features(model, feed, sites, batch).items():
                    if site in ours:
                        table = sums[name].setdefault(
                            site, torch.zeros(GROUPS, 3, dtype=torch.float64)
                        )
                        table[batch.group] += hsic_sums(ours[site], theirs).cpu()
            tell(done, len(batches))
    groups = sorted({batch.group for batch in batches})
    units = sum(len(batch.units) for batch in batches)
    found = []
    for site, table in sums["pair"].items():
        table = table[groups]
        beside = sums.get("fresh", {}).get(site)
        controls: dict[str, Any] = {
            name: {"value": None, "interval": None, "missing": reason}
            for name, reason in missing.items()
        }
        if beside is not None:
            beside = beside[groups]
            apart = float(cka_from_sums(table.sum(0)) - cka_from_sums(beside.sum(0)))
            controls["fresh"] = _held(beside) | {
                "difference": {"value": number(apart), "interval": _interval(table, beside)}
            }
        held, warnings = _held(table), []
        if held["value"] is None:
            warnings.append("The features of one model do not vary: no similarity exists.")
        elif held["interval"] is None:
            warnings.append(NO_INTERVAL)
        found.append(
            Reading("features", site, "cka", "linear", held["value"], held["interval"],
                    {"units": units}, controls, warnings, {"hsic_by_group": table.tolist()})
        )  # fmt: skip
    return found


def _held(sums: Tensor) -> dict[str, Any]:
    return {"value": number(float(cka_from_sums(sums.sum(0)))), "interval": _interval(sums)}


def _interval(sums: Tensor, others: Tensor | None = None) -> tuple[float, float] | None:
    return interval_of(cka_interval(sums, others)) if len(sums) >= FEWEST_GROUPS else None


def _features(
    model: nn.Module, feed: Feed, sites: Sequence[str], batch: Batch
) -> dict[str, Tensor]:
    """What every call of the sites gives, a row a unit."""
    forward, mask = feed.forward(model, batch)
    found: dict[str, Tensor] = {}

    def keep(site: str, _: Tensor, y: Tensor) -> None:
        if mask is not None and y.ndim == 3 and y.shape[:2] == mask.shape:
            kept = mask.to(y.dtype).unsqueeze(2)
            # Padding may hold anything, NaN too, so it is put aside rather than weighed with 0.
            y = torch.where(kept > 0, y, 0.0).sum(1) / kept.sum(1)
        found[site] = y.flatten(1) if y.ndim > 1 else y.unsqueeze(1)

    with watch(model, sites, keep):
        forward()
    return found


def _batches(feed: Feed) -> list[Batch]:
    """Units of one group, in the order of a hash: those of a plan's batch are of one length."""
    members: dict[int, list[int]] = defaultdict(list)
    for batch in feed.batches:
        members[batch.group] += batch.units
    found = []
    for group, units in members.items():
        units.sort(key=lambda unit: (hashlib.blake2b(feed.contents[unit]).digest(), unit))
        count = -(-len(units) // ROWS)
        parts = [tuple(units[place::count]) for place in range(count)]
        found += [Batch(group, part) for part in parts if len(part) >= FEWEST_ROWS]
    return found
