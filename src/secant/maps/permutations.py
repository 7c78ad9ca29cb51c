"""Orders of a model's symmetric axes, and tensors put in these orders.

Holds: ``Orders``, ``identity_orders``, ``random_orders``, ``reordered``, ``permute``.
May import: torch, ``secant.maps.symmetries``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from secant.maps.symmetries import Block, Symmetries, state_of

Orders = dict[int, Tensor]
"""For each symmetric axis where its entries come from, int64; the last dimension is the axis,
those before it the axes within which it has orders of their own."""


Within = Mapping[int, tuple[int, ...]]
"""For each symmetric axis those around it, outermost first."""


def identity_orders(symmetries: Symmetries) -> Orders:
    """Every entry where it is."""
    return {
        s.axis: torch.arange(s.size).expand(*(symmetries.sizes[a] for a in s.within), -1).clone()
        for s in symmetries
    }


def random_orders(symmetries: Symmetries, generator: torch.Generator) -> Orders:
    """Uniformly drawn orders of every axis, within every entry of the axes around it."""
    return {
        axis: torch.rand(order.shape, generator=generator).argsort(-1)
        for axis, order in identity_orders(symmetries).items()
    }


def reordered(values: Tensor, axes: tuple[int, ...], orders: Orders, within: Within) -> Tensor:
    """Values on a grid of `axes` with every symmetric axis in its order.

    Entry x of an outer axis comes from entry p(x), and then entry y within x from q_x(y).
    """
    for axis in sorted(set(axes) & set(orders), key=lambda a: len(within[a])):
        for dim, each in enumerate(axes):
            if each == axis:
                values = moved(values, axes, dim, orders[axis], within[axis])
    return values


def moved(
    values: Tensor, axes: tuple[int, ...], dim: int, order: Tensor, outer: tuple[int, ...]
) -> Tensor:
    """Values with one dimension in its order, which may depend on the axes `outer`."""
    order = order.to(values.device)
    if not outer:
        return values.index_select(dim, order)
    shape = [1] * values.ndim
    for axis, size in zip(outer, order.shape, strict=False):
        shape[axes.index(axis)] = size
    shape[dim] = order.shape[-1]
    # The order's own dimensions stand as `outer` does; here they stand as in `axes`.
    places = [axes.index(axis) for axis in outer] + [dim]
    arranged = order.permute([places.index(p) for p in sorted(places)]).reshape(shape)
    return values.gather(dim, arranged.expand_as(values))


def permuted_blocks(
    tensor: Tensor, blocks: tuple[Block, ...], orders: Orders, within: Within
) -> Tensor:
    """The tensor with each of its blocks in these orders."""
    found = tensor.clone()
    for block in blocks:
        block.write(found, reordered(block.read(tensor), block.axes, orders, within))
    return found


@torch.no_grad()
def permute(model: nn.Module, symmetries: Symmetries, orders: Orders) -> None:
    """Put the units of `model` in these orders, in place: it stays the same function."""
    within = {s.axis: s.within for s in symmetries}
    state = state_of(model)
    for name, blocks in symmetries.blocks.items():
        state[name].copy_(permuted_blocks(state[name], blocks, orders, within))
