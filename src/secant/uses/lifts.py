"""Lifts: other coordinates for the same points, in which a plane may do more, or no more.

Holds: ``LIFTS``, ``check_lifts``, ``lifted``, ``size_of``; ``site_features``.
May import: numpy, torch, ``secant.errors``, ``secant.load``, ``secant.maps``,
``secant.uses.exact_signs``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations_with_replacement
from typing import Final

import numpy as np
import torch
from torch import Tensor

from secant.errors import InputError
from secant.load.feed import Feed
from secant.maps.features import call_of, watch
from secant.uses.exact_signs import Array

LIFTS: Final = {
    "none": "the features as they are",
    "squash": "each feature divided by a power of two, into -1 to 1: linear, so nothing changes",
    "tanh": "each feature standardised, then its tanh: a squash that bends",
    "degree-2": "all products of up to two features",
    "degree-3": "all products of up to three features",
    "random": "ReLU of random affine maps of the standardised features",
}
"""`random` may be followed by a count of features, as in ``random:1000``."""

RANDOM_COUNT = 256


def check_lifts(names: Sequence[str]) -> None:
    """Raise `InputError` for a name that is no lift."""
    for name in names:
        kind, _, count = name.partition(":")
        is_count = kind == "random" and count.isdecimal() and int(count) > 0
        if kind not in LIFTS or (":" in name and not is_count):
            raise InputError(
                f"separable: a lift must be one of {', '.join(LIFTS)}, or random:COUNT; got "
                f"{name!r}. Name one of these."
            )


def size_of(name: str, features: int) -> int:
    """How many features the lift makes of so many."""
    kind, _, count = name.partition(":")
    if kind.startswith("degree-"):
        return math.comb(features + int(kind[-1]), int(kind[-1])) - 1
    return int(count or RANDOM_COUNT) if kind == "random" else features


def lifted(name: str, rows: Array, seed: int) -> Array:
    """The rows (n, d) in the lift's coordinates (n, `size_of`), in float64.

    `none` and `squash` are exact; of the others the numbers as computed are the points. The draws
    of `random`, weights of variance 1/d and biases of variance 1, are numpy's for `seed`.
    """
    kind = name.partition(":")[0]
    if kind == "none":
        return rows
    if kind == "squash" or kind.startswith("degree-"):
        _, exponents = np.frexp(np.abs(rows).max(0))
        scaled: Array = np.ldexp(rows, -exponents)
        return scaled if kind == "squash" else _products(scaled, int(kind[-1]))
    spread = rows.std(0)
    standard = (rows - rows.mean(0)) / np.where(spread > 0, spread, 1.0)
    if kind == "tanh":
        bent: Array = np.tanh(standard)
        return bent
    draw = np.random.default_rng(seed)
    count, width = size_of(name, rows.shape[1]), rows.shape[1]
    weights = draw.standard_normal((width, count)) / math.sqrt(width)
    random: Array = np.maximum(standard @ weights + draw.standard_normal(count), 0.0)
    return random


def _products(rows: Array, degree: int) -> Array:
    """Every monomial of degree 1 to `degree`."""
    found = [rows]
    for power in range(2, degree + 1):
        for places in combinations_with_replacement(range(rows.shape[1]), power):
            found.append(rows[:, list(places)].prod(1)[:, None])
    return np.concatenate(found, 1)


def site_features(
    feed: Feed, sites: Sequence[str], progress: Callable[[int, int], None]
) -> dict[str, Array]:
    """What the model hands on at each site for every unit, (units, features), in one pass.

    (batch, length, width) is the mean over positions, masked ones left out; of any other shape all
    entries. Of a module that one forward calls several times, the first call unless named.

    Raises: `InputError` for a site that is not called or that gives one unit another size.
    """
    calls = {call_of(site): site for site in sites}
    seen: dict[str, list[Tensor]] = {site: [] for site in sites}
    masks: list[Tensor | None] = [None]

    def listen(call: str, _: Tensor, y: Tensor) -> None:
        site = calls[call if "@" in call else f"{call}@1"]
        seen[site].append(_per_unit(y, masks[0]).double().cpu())

    order: list[int] = []
    with torch.no_grad(), watch(feed.loaded.model, list(calls), listen):
        for batch in feed.batches:
            forward, masks[0] = feed.forward(feed.loaded.model, batch)
            forward()
            order += batch.units
            progress(len(order), len(feed.units))
    return {site: _in_order(site, parts, order) for site, parts in seen.items()}


def _per_unit(y: Tensor, mask: Tensor | None) -> Tensor:
    if y.ndim != 3:
        return y.flatten(1) if y.ndim > 1 else y[:, None]
    if mask is None or mask.shape != y.shape[:2]:
        return y.double().mean(1)
    weight = mask.double()[..., None]
    # Padded positions may hold anything, NaN too.
    kept = torch.where(mask[..., None], y.double(), 0.0)
    return kept.sum(1) / weight.sum(1)


def _in_order(site: str, parts: list[Tensor], order: list[int]) -> Array:
    sizes = sorted({tuple(one.shape[1:]) for one in parts})
    if len(sizes) != 1 or sum(len(one) for one in parts) != len(order):
        raise InputError(
            f"site {site!r} must give each unit features of one size; got sizes {sizes} for "
            f"{sum(len(one) for one in parts)} of {len(order)} units. Choose another site."
        )
    features = torch.cat(parts)
    back = torch.empty_like(features)
    back[order] = features
    found: Array = back.numpy()
    return found
