"""Where planes and combinations that may decide separability come from; none is proven here.

Holds: ``candidates``, ``Candidate``.
May import: numpy, scipy, ``secant.uses`` (combinations, exact_signs).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh
from scipy.linalg.lapack import dpotrf, dpotrs
from scipy.optimize import linprog
from scipy.special import expit

from secant.uses.combinations import Mask, free_columns
from secant.uses.exact_signs import Array

STEPS = 40
POLISHING = 8
"""Newton steps after a plane is found: each makes its margin larger."""

FIRST_PROOF, NEXT_PROOF, CONVERGED = 1e-3, 1e-3, 1e-15
"""Squared Newton decrement from which weights are worth a proof, its factor from one to the next,
and where steps end."""

METHODS = ("highs-ipm", "highs-ds", "highs")


class Candidate(NamedTuple):
    """A plane (w, b), or weights of the rows, or both."""

    method: str
    plane: Array | None
    weights: Array | None


def candidates(rows: Array, is_positive: Mask) -> Iterator[Candidate]:
    """Newton's steps on the logistic loss, then the linear programme by each method of HiGHS.

    rows (n, d), of which no two are equal. Once a Newton step separates, a few more follow and no
    programme.
    """
    view = _View(rows)
    sides = np.where(is_positive, 1.0, -1.0)
    has_plane = yield from _newton(view, sides)
    if not has_plane:
        yield from _programmes(view, sides)


class _View:
    """The rows in coordinates fit for float64, with a last column of ones: `table` (n, k).

    Centred and scaled free columns; where they are more than the rows, the coordinates of the rows
    in their own span.
    """

    def __init__(self, rows: Array) -> None:
        self.rows = rows
        self.columns = free_columns(rows)
        part = rows[:, self.columns]
        with np.errstate(over="ignore"):
            scale = part.std(0)
        self.scale = np.where((scale > 0) & np.isfinite(scale), scale, 1.0)
        centred = (part - part.mean(0)) / self.scale
        self.back: Array | None = None
        if centred.shape[1] >= len(rows):
            values, vectors = eigh(centred @ centred.T, check_finite=False)
            is_kept = values > 1e-13 * values[-1]
            lengths = np.sqrt(values[is_kept])
            self.back = centred.T @ (vectors[:, is_kept] / lengths)
            centred = vectors[:, is_kept] * lengths
        self.table = np.concatenate([centred, np.ones((len(rows), 1))], 1)

    def plane(self, v: Array, sides: Array) -> Array | None:
        """(w, b) with b half-way between the classes; None if they overlap along w."""
        w = np.zeros(self.rows.shape[1])
        slopes = v[:-1] if self.back is None else self.back @ v[:-1]
        w[self.columns] = slopes / self.scale
        with np.errstate(over="ignore", invalid="ignore"):
            w /= np.abs(w).max()
            places = self.rows @ w
        low, high = places[sides > 0].min(), places[sides < 0].max()
        if not low > high:
            return None
        return np.append(w, -(low / 2 + high / 2))


def _newton(view: _View, sides: Array) -> Generator[Candidate, None, bool]:
    """Newton's method on the sum of log(1 + exp(-y (w·x + b))): True if some step separates."""
    signed = sides[:, None] * view.table
    v = np.zeros(signed.shape[1])
    margins = np.zeros(len(signed))
    proof_at, left = FIRST_PROOF, POLISHING
    has_plane = False
    for _ in range(STEPS):
        weights = expit(-margins)
        gradient = weights @ signed
        step = _solved(signed, weights * expit(margins), gradient)
        decrement = float(gradient @ step)
        if decrement < proof_at and not has_plane:
            proof_at = decrement * NEXT_PROOF
            yield Candidate("Newton", None, weights)
        if not decrement > CONVERGED or not left:
            break
        v, margins = _stepped(signed, v, margins, step, decrement)
        plane = view.plane(v, sides)
        if plane is not None:
            has_plane, left = True, left - 1
            yield Candidate("Newton", plane, expit(-margins))
    return has_plane


def _solved(signed: Array, curvature: Array, gradient: Array) -> Array:
    """Newton's step; where the curvature is singular in float64, with as small a ridge as will do.

    Both are divided by the largest curvature, which shrinks as rows are separated.
    """
    largest = float(curvature.max())
    if not largest > 0:
        return np.zeros_like(gradient)
    half = np.sqrt(curvature / largest)[:, None] * signed
    hessian = half.T @ half
    diagonal = np.einsum("ii->i", hessian)
    ridge = 1e-13 * float(diagonal.max())
    while True:
        diagonal += ridge
        factor, failed = dpotrf(hessian, lower=1, clean=0)
        if not failed:
            return np.asarray(dpotrs(factor, gradient / largest, lower=1)[0])
        ridge *= 10


def _stepped(
    signed: Array, v: Array, margins: Array, step: Array, decrement: float
) -> tuple[Array, Array]:
    """The longest of the step's halves that lowers the loss as a descent must (Armijo)."""
    loss, along, length = np.logaddexp(0, -margins).sum(), signed @ step, 1.0
    while length > 1e-9:
        moved = margins + length * along
        if np.logaddexp(0, -moved).sum() <= loss - 1e-4 * length * decrement:
            break
        length /= 2
    return v + length * step, margins + length * along


def _programmes(view: _View, sides: Array) -> Iterator[Candidate]:
    """Largest t with y (w·x + b) >= t for every row and all of |w|, |b| at most 1.

    Its multipliers are weights λ whose combination λ A has t as the sum of its absolute values.
    """
    signed = sides[:, None] * view.table
    count, width = signed.shape
    for method in METHODS:
        found = linprog(
            np.append(np.zeros(width), -1.0),
            A_ub=np.concatenate([-signed, np.ones((count, 1))], 1),
            b_ub=np.zeros(count),
            bounds=[(-1, 1)] * width + [(None, 1)],
            method=method,
        )
        if found.x is None:
            continue
        plane = view.plane(found.x[:-1], sides) if np.any(found.x[:-1]) else None
        weights = np.maximum(-found.ineqlin.marginals, 0.0)
        yield Candidate(method, plane, polished(signed, weights) if weights.any() else None)


def polished(signed: Array, weights: Array) -> Array:
    """The nearest weights on the same rows with λ A = 0; as they were if one is then negative."""
    chosen = weights > 1e-10 * weights.max()
    part = weights[chosen]
    for _ in range(2):
        part = part - np.linalg.lstsq(signed[chosen].T, part @ signed[chosen], rcond=1e-12)[0]
    if not part.min() >= 0 or not part.max() > 0:
        return weights
    better = np.zeros_like(weights)
    better[chosen] = part
    return better
