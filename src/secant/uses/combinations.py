"""What convex combinations of two classes prove: that their hulls meet, or how near they come.

Holds: ``proves_meeting``, ``interior_proof``, ``hull_distance``, ``meets_exactly``,
``free_columns``, ``signed``.
May import: numpy, scipy, ``secant.uses.exact_signs``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import qr, solve_triangular
from scipy.linalg.lapack import dpotrf

from secant.uses.exact_signs import TINY, Array, Whole, rounding, whole

Mask = NDArray[np.bool_]
CUTS = (0.0, 1e-9, 1e-6, 1e-3)
"""Shares of the largest weight under which a row may be left out of a combination."""

DEPENDENT = 1e-10
"""Columns whose part outside the others' span is under this share of them are tried as dependent;
what counts is the exact check that follows."""

LARGEST_DENOMINATOR = 64


def signed(rows: Array, is_positive: Mask) -> Array:
    """A, the rows (x, 1), negated where the class is the other one: (n, d + 1).

    A plane (w, b) separates if A (w, b) > 0; the classes' hulls meet if λ A = 0 for some λ >= 0
    other than 0 (Gordan 1873).
    """
    ones = np.ones((len(rows), 1))
    table: Array = np.where(is_positive, 1.0, -1.0)[:, None] * np.concatenate([rows, ones], 1)
    return table


def distinct_columns(rows: Array) -> NDArray[np.intp]:
    """Columns that are not constant, the first of those that are equal."""
    first: dict[bytes, int] = {}
    for place, column in enumerate(np.ascontiguousarray((rows + 0.0).T)):  # -0 is 0
        if (column != column[0]).any():
            first.setdefault(column.tobytes(), place)
    return np.array(sorted(first.values()), dtype=np.intp)


def free_columns(rows: Array) -> NDArray[np.intp]:
    """Columns that are left when those that are exactly affine in them are taken out.

    Constant columns, repeated columns, and any whose dependence on others has coefficients that
    are fractions with denominators up to 64: each is checked in whole numbers. A dependence with
    other coefficients is not seen, and its column stays.
    """
    kept = distinct_columns(rows)
    if not 0 < len(kept) < len(rows):
        return kept
    centred = rows[:, kept] - rows[:, kept].mean(0)
    centred /= np.maximum(np.abs(centred).max(0), TINY)
    triangle, order = qr(centred, mode="r", pivoting=True, check_finite=False)
    sizes = np.abs(np.diag(triangle))
    rank = int((sizes > DEPENDENT * sizes[0]).sum())
    if rank == len(kept):
        return kept
    basis = np.sort(kept[order[:rank]])
    others = [place for place in kept if place not in set(basis.tolist())]
    stays = [place for place in others if not _is_affine_in(rows[:, basis], rows[:, place])]
    return np.sort(np.concatenate([basis, np.array(stays, dtype=np.intp)]))


def _is_affine_in(basis: Array, column: Array) -> bool:
    """Whether a column is, exactly, a combination of the basis and 1 with simple fractions."""
    table = np.concatenate([basis, np.ones((len(basis), 1))], 1)
    guess = np.linalg.lstsq(table, column, rcond=None)[0]
    if not np.isfinite(guess).all():
        return False
    simple = [Fraction(float(one)).limit_denominator(LARGEST_DENOMINATOR) for one in guess]
    if np.abs(np.array([float(one) for one in simple]) - guess).max() > 1e-6:
        return False
    common = math.lcm(*(one.denominator for one in simple))
    weights = np.array([int(one * common) for one in simple] + [-common], dtype=object)
    entries, _ = whole(np.concatenate([table, column[:, None]], 1))
    return not (entries[:, weights != 0] @ weights[weights != 0]).any()


def proves_meeting(rows: Array, is_positive: Mask, weights: Array) -> bool:
    r"""Whether these weights, all positive, prove that the hulls of the two classes meet, exactly.

    Let A (n, k) be the signed rows with their free columns, P any square matrix, B = A P. If
    |λ B| / σ_min(B) < min λ, then λ - λ B (B'B)^-1 B' is positive and exactly orthogonal to the
    columns of B, so to those of A: an exact combination lies near. P is the inverse of a triangular
    factor of A, so that σ_min(B) >= sqrt(1 - |I - B'B|) is near 1. Every number is bounded with its
    rounding: B by γ_k |A| |P|, B'B by γ_n |B|², λ A by γ_n λ |A|.

    Cost: some products (n, k) by (k, k).
    """
    if not weights.min() > 0:
        return False
    return any(
        _shortfall(table, triangle, weights) < 1 for table, triangle in _tables(rows, is_positive)
    )


def interior_proof(rows: Array, is_positive: Mask, weights: Array) -> Array | None:
    """Weights of which the positive ones pass `proves_meeting`, near the given; None if not found.

    Rows with little weight are left out, by growing cuts: those of one class alone to the far
    side of others may have none. None where no cut leaves a proof, as where hulls only touch in
    rows that are no more than their dimension.

    Cost: a product (k, n) by (n, k) and a factor for each cut, then that of the proof.
    """
    largest = float(weights.max())
    if not largest > 0:
        return None
    before = -1
    for cut in CUTS:
        places = np.flatnonzero(weights > cut * largest)
        if len(places) == before:
            continue
        before = len(places)
        for table, triangle in _tables(rows[places], is_positive[places]):
            found = weights[places]
            for _ in range(2):
                inner = solve_triangular(triangle, found @ table, trans="T", check_finite=False)
                found = found - table @ solve_triangular(triangle, inner, check_finite=False)
            # Half of what is needed: the same weights pass again whatever the order of sums.
            if found.min() > 0 and _shortfall(table, triangle, found) < 0.5:
                proof = np.zeros(len(rows))
                proof[places] = found
                return proof
    return None


def _tables(rows: Array, is_positive: Mask) -> Iterator[tuple[Array, Array]]:
    """A with exact scales, and R with R'R near A'A, if columns are independent; the second way of
    choosing them only if those of the first, which is cheap, are not.
    """
    for choose in (distinct_columns, free_columns):
        table = signed(rows[:, choose(rows)], is_positive)
        if len(table) <= table.shape[1]:
            continue
        _, exponents = np.frexp(np.abs(table).max(0))
        table = np.ldexp(table, -exponents)
        triangle = _triangle(table)
        if triangle is not None:
            yield table, triangle
            return


def _shortfall(table: Array, triangle: Array, weights: Array) -> float:
    """An upper bound on |λ B| / (σ_min(B) min λ), rounded outward."""
    count, width = table.shape
    inverse = solve_triangular(triangle, np.eye(width), check_finite=False)
    basis = table @ inverse
    error = rounding(width) * float(np.linalg.norm(np.abs(table) @ np.abs(inverse)))
    error += count * width * TINY
    length = float(np.linalg.norm(basis))
    tilt = float(np.linalg.norm(np.eye(width) - basis.T @ basis)) + rounding(count + 2) * length**2
    if not tilt < 0.5:
        return math.inf
    least = math.sqrt(1 - tilt) * (1 - 1e-12) - error
    left = np.abs(weights @ table) + rounding(count + 1) * (weights @ np.abs(table)) + count * TINY
    residual = float(np.linalg.norm(np.abs(inverse).T @ left)) * (1 + rounding(width**2))
    return residual / (least * float(weights.min())) * (1 + 1e-6) if least > 0 else math.inf


def _triangle(table: Array) -> Array | None:
    """R with R'R near A'A: by Cholesky where columns are far from dependent, which is faster."""
    factor, failed = dpotrf(table.T @ table, lower=0, clean=1)
    sizes = np.abs(np.diag(factor))
    if failed or not sizes.min() > 1e-4 * sizes.max():
        factor = qr(table, mode="r", check_finite=False)[0][: table.shape[1]]
        sizes = np.abs(np.diag(factor))
    return np.asarray(factor) if sizes.min() > 1e-13 * sizes.max() else None


def hull_distance(rows: Array, is_positive: Mask, weights: Array) -> float:
    r"""An upper bound, rounded outward, on the distance between the hulls of the two classes.

    .. math:: | \sum_{+} λ_i x_i / \sum_{+} λ_i - \sum_{-} λ_i x_i / \sum_{-} λ_i |

    is the distance of two points of them, whatever the weights λ >= 0. A margin is at most half of
    it. Infinite where a class has no weight. In the unit of the rows.
    """
    used = weights > 0
    rows, is_positive, weights = rows[used], is_positive[used], weights[used]
    if is_positive.all() or not is_positive.any():
        return math.inf
    count = len(rows)
    centred = rows - rows.mean(0)  # one more rounding of each entry
    means, sizes = [], []
    for chosen in (is_positive, ~is_positive):
        total = float(weights[chosen].sum())
        means.append(weights[chosen] @ centred[chosen] / total)
        sizes.append(weights[chosen] @ np.abs(centred[chosen]) / total)
    apart = np.abs(means[0] - means[1]) + rounding(2 * count + 8) * (sizes[0] + sizes[1])
    return float(np.linalg.norm(apart + count * TINY)) * (1 + rounding(rows.shape[1] + 4))


def meets_exactly(table: Whole, weights: Mapping[int, Fraction]) -> bool:
    """Whether λ >= 0, some λ > 0, and λ A = 0, for whole numbers A (n, k) and fractions λ."""
    if not weights or min(weights.values()) < 0 or max(weights.values()) <= 0:
        return False
    common = math.lcm(*(one.denominator for one in weights.values()))
    factors = np.array([int(one * common) for one in weights.values()], dtype=object)
    return not (factors @ table[list(weights)]).any()
