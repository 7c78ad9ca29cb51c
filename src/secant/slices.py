"""Slices: the exact affine pieces of a model over a window of a plane of inputs.

Holds: ``slice_pieces`` and its result ``SlicePieces``.
May import: torch, ``secant.errors``, ``secant.maps``, ``secant.gauges``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from secant.gauges.faces import areas_of, edges_of, pieces_of, slopes_of
from secant.maps.slice import Plane, Window, partition, plane_of

LIMIT = 250_000
"""Cells followed before giving up: some ten seconds for 3 x 256 units on one core."""

EPSILON = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class SlicePieces:
    """A window {origin + a u + b v} cut into convex cells, on each of which the model is affine.

    `at` (vertices, 2): corners of cells, as (a, b). `values` (vertices, width): the output there.
    `loop`, `start`: cell c has the corners loop[start[c]:start[c + 1]], anticlockwise.
    `slopes` (cells, width, 2): the derivative by a and b. `piece` (cells,): the number of the
    affine piece. `decisions` (cells,): a code of the sides that all units take. All float64 or
    int64. `units`: scalars at which the model can kink. `error` (width,): of the values.
    """

    plane: Plane
    window: Window
    at: Tensor
    values: Tensor
    loop: Tensor
    start: Tensor
    slopes: Tensor
    piece: Tensor
    decisions: Tensor
    units: int
    error: Tensor

    @property
    def cells(self) -> int:
        """How many convex cells: one for each region, and a few more under max pooling."""
        return len(self.start) - 1

    @cached_property
    def regions(self) -> int:
        """How many activation regions: cells on which all units take the same sides are one."""
        return len(torch.unique(self.decisions))

    @cached_property
    def count(self) -> int:
        """How many affine pieces, at least 1: neighbouring regions of one map are one."""
        return int(self.piece.max()) + 1

    @cached_property
    def areas(self) -> Tensor:
        """(cells,), in units of u times v."""
        return areas_of(self.at, self.loop, self.start)

    @cached_property
    def edges(self) -> tuple[Tensor, Tensor]:
        """(edges, 2) vertices, and (edges, 2) cells on the two sides, -1 beyond the window."""
        return edges_of(self.loop, self.start)

    def polygon(self, cell: int) -> Tensor:
        """(corners, 2): the corners of one cell, anticlockwise."""
        return self.at[self.loop[self.start[cell] : self.start[cell + 1]]]


def slice_pieces(
    model: Callable[..., Any],
    origin: Tensor,
    u: Tensor,
    v: Tensor,
    extent: float | Window = 1.0,
    *,
    limit: int = LIMIT,
) -> SlicePieces:
    """The exact affine pieces of `model` on {origin + a u + b v}: |a|, |b| <= extent.

    `extent` may also be ((a from, a to), (b from, b to)). `origin`, `u` and `v` are one input
    each, without the batch dimension; `model` is as in `pieces`, and the operations that can be
    followed are the same.

    Returns `SlicePieces`: `count` pieces, `regions` (activation regions), convex `cells` with
    their corners, `slopes` and `areas`. 1 piece means affine in this window, and proves nothing
    beside it. Neighbours whose slopes differ by no more than rounding explains are one piece; see
    `secant.gauges.faces.pieces_of`. Under max pooling a region can be several cells.

    Cost: one forward pass in float64 over the vertices of each layer's cells, and cuts: about a
    second for 3 x 256 units and 50,000 cells on one core. Memory: three to four times vertices
    times the widest layer.

    Raises: `InputError` if origin and directions make no plane or the window is empty, more than
    `limit` cells or 512 MiB a layer would be needed, the model refuses the input, or it is not
    piecewise affine and continuous (the message names the operation).

    Source: Humayun et al. 2023, arXiv:2302.12828 (SplineCam).
    """
    plane = plane_of(origin, u, v)
    window = extent if isinstance(extent, tuple) else ((-extent, extent), (-extent, extent))
    found = partition(model, plane, window, limit=limit)
    loop, start = found.cells
    error = torch.maximum(found.rounding, 4 * EPSILON * found.values.abs().amax(0))
    slopes = slopes_of(found.at, found.values, loop, start)
    _, sides = edges_of(loop, start)
    piece = pieces_of(slopes, sides, error)
    return SlicePieces(
        plane, window, found.at, found.values, loop, start, slopes.slope, piece,
        found.decisions, found.units, error,
    )  # fmt: skip
