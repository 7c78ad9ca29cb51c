"""Gordan's alternative in whole numbers: a plane through 0 that leaves all rows on one side, or
a combination of them that is 0.

Holds: ``alternative``.
May import: numpy, ``secant.uses.exact_signs``.
"""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from secant.uses.exact_signs import Whole

GREEDY = 4
"""Pivots for each equation before least index takes over."""


class Alternative(NamedTuple):
    """Exactly one of the two: `plane` v with A v > 0, or `weights` λ >= 0 with λ A = 0, Σ λ = 1."""

    plane: list[int] | None
    weights: dict[int, Fraction] | None


def alternative(rows: Whole) -> Alternative:
    """Which of Gordan's two holds for the rows A, (n, d) whole numbers, with its proof.

    The first phase of the simplex method on λ A = 0, Σ λ = 1, λ >= 0, in whole numbers over one
    denominator (Edmonds). The first pivots enter the column of largest coefficient; all after them
    go by least index (Bland 1977), so that it ends.

    Cost: a pivot takes (d + 1)(n + d + 2) products of integers of up to d times the digits of the
    entries; d pivots at least.
    """
    count, width = rows.shape
    height = width + 1
    # Columns: λ, then one artificial variable a row, then the right side. The last row of the
    # table holds the reduced costs of "sum of the artificial variables", negated.
    table = np.zeros((height + 1, count + height + 1), dtype=object)
    table[:width, :count] = rows.T
    table[width, :count] = 1
    table[:height, count : count + height] = np.eye(height, dtype=np.int64).astype(object)
    table[width, -1] = 1
    table[height] = table[:height].sum(0)
    table[height, count : count + height] = 0
    basis = list(range(count, count + height))
    scale = 1
    for pivots in itertools.count():
        entering = _entering(table[height, :count], is_largest=pivots < GREEDY * height)
        if entering is None:
            break
        leaving = _leaving(table, basis, entering, height)
        pivot = table[leaving, entering]
        column = table[:, entering].copy()
        column[leaving] = 0
        kept = table[leaving].copy()
        table = (table * pivot - column[:, None] * kept[None, :]) // scale
        table[leaving] = kept
        scale, basis[leaving] = pivot, entering
    if table[height, -1] > 0:
        # Reduced costs of the artificial variables: the dual y, up to sign and scale. It has
        # y·(a, 1) <= 0 for every row and y·(0, 1) > 0, so -y without its last entry is a plane.
        return Alternative([int(v) for v in _dual(table, count, height, scale)], None)
    found: dict[int, Fraction] = {}
    for place, variable in enumerate(basis):
        if variable < count and table[place, -1] != 0:
            found[variable] = Fraction(int(table[place, -1]), int(scale))
    return Alternative(None, found)


def _entering(costs: Whole, *, is_largest: bool) -> int | None:
    """A column that lowers the cost: the one of largest coefficient, or of least index."""
    if is_largest:
        place = int(costs.argmax())
        return place if costs[place] > 0 else None
    return next((place for place, cost in enumerate(costs) if cost > 0), None)


def _leaving(table: Whole, basis: list[int], entering: int, height: int) -> int:
    """The row of least ratio, of those the variable of least index. One exists: Σ λ = 1."""
    best: tuple[Any, Any, int, int] | None = None
    for place in range(height):
        step = table[place, entering]
        if step <= 0:
            continue
        side = table[place, -1]
        if best is not None:
            ahead = side * best[1] - best[0] * step
            if ahead > 0 or (ahead == 0 and basis[place] > best[2]):
                continue
        best = side, step, basis[place], place
    assert best is not None, "the set of combinations is bounded"
    return best[3]


def _dual(table: Whole, count: int, height: int, scale: int) -> Whole:
    """The plane, in whole numbers: scale times the cost's part that each equation carries."""
    duals: Whole = scale + table[height, count : count + height]
    return -duals[: height - 1]
