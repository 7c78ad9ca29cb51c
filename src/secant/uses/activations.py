"""How alike the units of two models are in what they do: correlations of their activations.

Holds: ``activation_terms``.
May import: torch, ``secant.engine``, ``secant.errors``, ``secant.load``, ``secant.maps``,
``secant.uses``.

Li et al. 2016, arXiv:1511.07543; matched as in REPAIR (Jordan et al. 2022, arXiv:2211.08403).
A unit's activation is taken where a product reads it, after the nonlinearity, and where one
makes it: behind a ReLU units that are never on are all alike.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from secant.engine.plan import Batch
from secant.errors import InputError
from secant.load.feed import Feed
from secant.maps.graph import Captured, capture
from secant.maps.symmetries import Block, Symmetries, find_symmetries
from secant.uses.dissection import Inputs
from secant.uses.matching import Term

Grid = tuple[tuple[int, ...], tuple[int, ...]]
"""The axes of an activation's units, and their sizes."""


class _Sums:
    """Sums over samples of the activations of two models and of their products."""

    def __init__(self) -> None:
        self.count = 0
        self.single: list[Tensor] = []
        self.square: list[Tensor] = []
        self.product: Tensor | None = None
        self.centres: list[Tensor] = []

    def add(self, a: Tensor, b: Tensor) -> None:
        """Add samples (units, samples) of both."""
        if self.product is None:
            # About the first batch's means: no large numbers are subtracted at the end.
            self.centres = [each.mean(1, keepdim=True) for each in (a, b)]
            self.single = [torch.zeros(len(each), dtype=torch.float64) for each in (a, b)]
            self.square = [torch.zeros(len(each), dtype=torch.float64) for each in (a, b)]
            self.product = torch.zeros(len(a), len(b), dtype=torch.float64)
        left, right = (each - centre for each, centre in zip((a, b), self.centres, strict=True))
        for i, each in enumerate((left, right)):
            self.single[i] += each.double().sum(1)
            self.square[i] += each.double().square().sum(1)
        self.product += (left @ right.T).double()
        self.count += a.shape[1]

    def correlation(self) -> Tensor:
        """(units of a, units of b); 0 where an activation does not vary."""
        assert self.product is not None
        mean = [single / self.count for single in self.single]
        deviation = [
            (square / self.count - m.square()).clamp_min(0).sqrt()
            for square, m in zip(self.square, mean, strict=True)
        ]
        covariance = self.product / self.count - mean[0].outer(mean[1])
        scale = deviation[0].outer(deviation[1])
        # Rounding of float32 products, not variance.
        floor = 1e-6 * deviation[0].max() * deviation[1].max()
        return torch.where(scale > floor, covariance / scale, 0.0).float()


def activation_terms(feeds: tuple[Feed, Feed]) -> tuple[Symmetries, list[Term]]:
    """The symmetries of the second model, and terms whose products are sums of correlations.

    Texts of one length make a batch, so that no padding counts as an activation.

    Raises: `InputError` if the graphs of the models differ.
    """
    batches = _batches(feeds[1])
    example = max(batches, key=lambda batch: (len(batch.units), feeds[1].lengths[batch.units[0]]))
    captured = [_captured(feed, example) for feed in feeds]
    found = find_symmetries(captured[1].module, captured[1].source)
    nodes = [{node.name: node for node in each.nodes} for each in captured]
    missing = [name for name in found.values if name not in nodes[0]]
    if missing:
        raise InputError(
            f"align: the models must do the same operations; {missing[0]!r} of "
            f"{captured[1].name!r} is none of {captured[0].name!r}. Align models of one kind."
        )
    relevant = {axis for s in found for axis in (s.axis, *s.within)}
    sums: dict[tuple[str, int], _Sums] = {}
    grids: dict[tuple[str, int], Grid] = {}
    with torch.inference_mode():
        for batch in batches:
            values = [
                each.run(*_call(feed, batch)) for each, feed in zip(captured, feeds, strict=True)
            ]
            for name, blocks in found.values.items():
                pair = [v[n[name]] for v, n in zip(values, nodes, strict=True)]
                for place, block in enumerate(blocks):
                    units = [_units(block, value, relevant) for value in pair]
                    if units[0] is None or units[1] is None:
                        continue
                    key = name, place
                    grids[key] = _grid(block, relevant)
                    sums.setdefault(key, _Sums()).add(units[0], units[1])
    terms = []
    for key, (axes, sizes) in grids.items():
        correlation = sums[key].correlation()
        eye = torch.eye(len(correlation))
        # Products with the identity are the correlations themselves.
        terms.append(Term(axes, correlation.reshape(*sizes, -1), eye.reshape(*sizes, -1)))
    return found, terms


def _captured(feed: Feed, example: Batch) -> Captured:
    args, kwargs = _call(feed, example)
    has_length = feed.units.texts is not None or feed.units.fields is not None
    return capture(feed.loaded.model, feed.loaded.name, args, kwargs, has_length=has_length)


def _call(feed: Feed, batch: Batch) -> tuple[tuple[object, ...], dict[str, object]]:
    forward, _ = feed.forward(Inputs(), batch)
    args, kwargs = forward()
    return args, kwargs


def _batches(feed: Feed) -> list[Batch]:
    """The feed's batches, those of several lengths taken apart."""
    found = []
    for batch in feed.batches:
        for length in sorted({feed.lengths[unit] for unit in batch.units}):
            units = tuple(unit for unit in batch.units if feed.lengths[unit] == length)
            found.append(Batch(batch.group, units))
    return found


def _grid(block: Block, relevant: set[int]) -> Grid:
    kept = [(a, n) for a, n in zip(block.axes, block.shape, strict=True) if a in relevant]
    return tuple(a for a, _ in kept), tuple(n for _, n in kept)


def _units(block: Block, value: Tensor, relevant: set[int]) -> Tensor | None:
    """The block's entries as (units, samples); None where units and samples share a dimension.

    The value may have another batch or length than the example that the block was made with.
    """
    held = {d for a, d in zip(block.axes, block.dims, strict=True) if a in relevant}
    for dim, size in enumerate(value.shape):
        factors = [i for i, owner in enumerate(block.owners) if owner == dim]
        if dim in held:
            if prod(block.view[i] for i in factors) != size:
                return None
        elif any(block.sizes[i] != block.view[i] for i in factors):
            return None
    shape: list[int] = []
    narrow: list[tuple[int, int, int]] = []
    for dim, size in enumerate(value.shape):
        if dim not in held:
            shape.append(size)
            continue
        for i, owner in enumerate(block.owners):
            if owner == dim:
                narrow.append((len(shape), block.starts[i], block.sizes[i]))
                shape.append(block.view[i])
    value = value.reshape(shape)
    for place, start, size in narrow:
        value = value.narrow(place, start, size)
    fine: list[int] = []
    front: list[int] = []
    sizes = iter(value.shape)
    for dim in range(max(held) + 1):
        if dim not in held:
            fine.append(next(sizes))
            continue
        for owner in block.owners:
            if owner == dim:
                next(sizes)
        for axis, size, own in zip(block.axes, block.shape, block.dims, strict=True):
            if own == dim:
                if axis in relevant:
                    front.append(len(fine))
                fine.append(size)
    value = value.reshape([*fine, *sizes]).movedim(front, list(range(len(front))))
    return value.flatten(0, len(front) - 1).flatten(1)
