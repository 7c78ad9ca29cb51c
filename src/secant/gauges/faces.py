"""Faces: slopes of a piecewise affine surface, and which neighbours are one piece.

Holds: the functions ``slopes_of``, ``areas_of``, ``edges_of`` and ``pieces_of``.
May import: torch, jaxtyping.

Cells are loops of vertices: `loop` (entries,) cell after cell, anticlockwise; cell c has the
entries start[c] to start[c + 1].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

EPSILON = torch.finfo(torch.float64).eps

SAFETY = 8.0
"""Rounding errors, in standard deviations, that a difference of slopes may be: as in `pieces`."""

Loop = Int64[Tensor, " entries"]
Start = Int64[Tensor, " starts"]
Places = Float64[Tensor, "vertices 2"]


class Slopes(NamedTuple):
    """`slope` (cells, width, 2); `spread` (cells, 2, 2): its covariance for values of error 1.

    The smaller eigenvalue of a spread is known to an epsilon of the larger, and counts as that
    where a cell is thinner than 1e-8 of its length: such a cell is told from others less well.
    """

    slope: Float64[Tensor, "cells width 2"]
    spread: Float64[Tensor, "cells 2 2"]


def _owner(loop: Tensor, start: Tensor) -> Tensor:
    cells = torch.arange(len(start) - 1, device=loop.device)
    return cells.repeat_interleave(start.diff(), output_size=len(loop))


def _following(loop: Tensor, start: Tensor) -> Tensor:
    after = torch.arange(1, len(loop) + 1, device=loop.device)
    after[start[1:] - 1] = start[:-1]
    return after


def areas_of(at: Places, loop: Loop, start: Start) -> Float64[Tensor, " starts-1"]:
    """Each cell's area, by the shoelace formula about its first vertex; coordinates squared."""
    owner = _owner(loop, start)
    here = at[loop] - at[loop[start[:-1]]][owner]
    there = here[_following(loop, start)]
    twice = here[:, 0] * there[:, 1] - here[:, 1] * there[:, 0]
    return twice.new_zeros(len(start) - 1).index_add_(0, owner, twice) / 2


def edges_of(loop: Loop, start: Start) -> tuple[Int64[Tensor, "edges 2"], Int64[Tensor, "edges 2"]]:
    """Every edge once: its two vertices, and the cells on its two sides, -1 where there is none.

    Cost: O(entries log entries).
    """
    ends = torch.stack([loop, loop[_following(loop, start)]], 1).sort(1).values
    owner = _owner(loop, start)
    _, edge = torch.unique(ends, dim=0, return_inverse=True)
    order = edge.argsort(stable=True)
    edge, ends, owner = edge[order], ends[order], owner[order]
    is_first = torch.ones_like(edge, dtype=torch.bool)
    is_first[1:] = edge[1:] != edge[:-1]
    sides = torch.full((int(is_first.sum()), 2), -1, dtype=torch.int64, device=loop.device)
    sides[edge[is_first], 0] = owner[is_first]
    sides[edge[~is_first], 1] = owner[~is_first]
    return ends[is_first], sides


def slopes_of(
    at: Places, values: Float64[Tensor, "vertices width"], loop: Loop, start: Start
) -> Slopes:
    r"""Slope of each cell's affine map, by least squares over its vertices; exact but for rounding.

    With centred places :math:`X` and values :math:`Y` of a cell, :math:`Y^T X (X^T X)^{-1}`; the
    spread is :math:`(X^T X)^{-1}`. Both are taken along the cell's long axis and across it, so
    that a thin cell loses no digits, and a cell that is thinner than rounding counts as so thin.
    """
    owner, count = _owner(loop, start), len(start) - 1
    many = start.diff().double()[:, None]

    def total(rows: Tensor) -> Tensor:
        return rows.new_zeros(count, *rows.shape[1:]).index_add_(0, owner, rows)

    x, y = (rows[loop] - (total(rows[loop]) / many)[owner] for rows in (at, values))
    a, b, c = total(torch.stack([x[:, 0] ** 2, x[:, 0] * x[:, 1], x[:, 1] ** 2], 1)).unbind(1)
    angle = torch.atan2(2 * b, a - c) / 2
    long = torch.stack([angle.cos(), angle.sin()], 1)
    wide = torch.stack([-angle.sin(), angle.cos()], 1)
    floor = (4 * EPSILON * (at.amax(0) - at.amin(0)).max()) ** 2
    s, t = (x * long[owner]).sum(1), (x * wide[owner]).sum(1)
    squares = total(s * s) + floor
    lean = total(s * t) / squares
    t = t - lean[owner] * s
    across = total(t * t) + floor
    slope = total(t[:, None] * y) / across[:, None]
    along = total(s[:, None] * y) / squares[:, None]
    # y = along s + slope (t - lean s), turned back to the coordinates.
    skew = wide - lean[:, None] * long
    spread = _outer(long) / squares[:, None, None] + _outer(skew) / across[:, None, None]
    return Slopes(along[:, :, None] * long[:, None] + slope[:, :, None] * skew[:, None], spread)


def _outer(rows: Tensor) -> Tensor:
    return rows[:, :, None] * rows[:, None, :]


def _eigenvalues(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The smaller and the larger eigenvalue of symmetric (n, 2, 2) matrices."""
    a, b, c = matrix[:, 0, 0], matrix[:, 0, 1], matrix[:, 1, 1]
    reach = torch.hypot((a - c) / 2, b)
    larger = (a + c) / 2 + reach
    return torch.maximum((a + c) / 2 - reach, EPSILON * larger), larger


def pieces_of(
    slopes: Slopes, sides: Int64[Tensor, "edges 2"], error: Float64[Tensor, " width"]
) -> Int64[Tensor, " cells"]:
    r"""For each cell the number of its piece, from 0: neighbours with one affine map are one.

    Two neighbours differ if in any output j the difference d of their slopes is more than
    rounding can explain:

    .. math:: d^T (C + C')^{-1} d > (8 r_j)^2

    with C, C' the spreads of the two and r the error of the values. As in `pieces` the tolerance
    bounds what errors can do, and grows where a cell is thin, since there rounding decides. A
    cell that cannot be told from its neighbours joins one alone, the least certain first and
    always the smaller the larger, and is afterwards judged by the larger's slope, so that a row
    of thin cells cannot join two wide ones that differ.

    Unit: a label. Exact, so without a standard error. Cost: O(edges x width) a round; some tens.

    Source: tolerance ours, as in `secant.gauges.pieces`.
    """
    pairs = sides[(sides >= 0).all(1)]
    root = torch.arange(len(slopes.slope), device=pairs.device)
    alone = root.clone()
    rank = torch.empty_like(root)
    rank[_eigenvalues(slopes.spread)[1].argsort(descending=True, stable=True)] = alone
    bend = _bend(slopes, pairs, error)
    while bool((bend <= 1).any()):
        near = bend <= 1
        close, least = pairs[near], bend[near]
        is_smaller = rank[close[:, 0]] < rank[close[:, 1]]
        small = torch.where(is_smaller, close[:, 0], close[:, 1])
        large = torch.where(is_smaller, close[:, 1], close[:, 0])
        lowest = least.new_full((len(root),), torch.inf).scatter_reduce(0, small, least, "amin")
        is_chosen = least == lowest[small]
        target = alone.clone()
        target.scatter_reduce_(0, small[is_chosen], large[is_chosen], "amax", include_self=False)
        # A cell whose target itself moves waits, and is judged again by where that has gone.
        moves = (target != alone) & (target[target] == target)
        root = torch.where(moves, target, alone)[root]
        joined = root[pairs]
        is_new = (joined != pairs).any(1)
        pairs, bend = joined, bend.clone()
        bend[is_new] = _bend(slopes, pairs[is_new], error)
        apart = pairs[:, 0] != pairs[:, 1]
        pairs, bend = pairs[apart], bend[apart]
    number: Tensor = torch.unique(root, return_inverse=True)[1]
    return number


def _bend(slopes: Slopes, pairs: Tensor, error: Tensor) -> Tensor:
    """How far the slopes of each pair differ, in what rounding allows; 1 is the limit."""
    one, two = pairs.unbind(1)
    spread = slopes.spread[one] + slopes.spread[two]
    smaller, larger = _eigenvalues(spread)
    a, b, c = spread[:, 0, 0], spread[:, 0, 1], spread[:, 1, 1]
    angle = torch.atan2(2 * b, a - c) / 2
    long = torch.stack([angle.cos(), angle.sin()], 1)
    wide = torch.stack([-angle.sin(), angle.cos()], 1)
    change = slopes.slope[one] - slopes.slope[two]
    parts = [
        torch.einsum("pwi,pi->pw", change, axis).square() / value[:, None]
        for axis, value in ((long, larger), (wide, smaller))
    ]
    squares = parts[0] + parts[1]
    # An output that is 0 throughout allows nothing and bends by nothing.
    return torch.where(squares > 0, squares / (SAFETY * error) ** 2, 0.0).amax(1)
