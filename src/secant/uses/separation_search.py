"""Where planes and combinations that may decide separability come from; none is proven here.

Holds: ``newton``, ``programmes``, ``Candidate``.
May import: numpy, scipy, ``secant.uses`` (exact_signs, points).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.linalg.lapack import dpotrf, dpotrs
from scipy.optimize import linprog
from scipy.special import expit

from secant.uses.exact_signs import Array
from secant.uses.points import View

STEPS = 40
WIDEST_GAP = 1e-4

SHRINKING = 0.7
"""A row whose weight falls below this share in a step is on its way to none."""

FIRST_PROOF, NEXT_PROOF, CONVERGED = 0.1, 1e-2, 1e-15
"""Squared Newton decrement from which weights are worth a proof, its factor from one to the next,
and where steps end."""

METHODS = ("highs-ipm", "highs-ds", "highs")


class Candidate(NamedTuple):
    """A plane (w, b), or weights of the rows, or both."""

    method: str
    plane: Array | None
    weights: Array | None


def newton(view: View, sides: Array, *, is_widest: bool) -> Iterator[Candidate]:
    """Newton's method on the sum of log(1 + exp(-y (w·x + b))), then, if asked, the widest plane.

    Where some rows can be moved away from all others, as those with the one value of a column that
    is 0 elsewhere, there is no minimum: their weights shrink by a factor of e a step, for ever,
    and those of the others settle. So rows with shrinking weights are left out of a proof.
    """
    signed = sides[:, None] * view.table
    v = np.zeros(signed.shape[1])
    margins = np.zeros(len(signed))
    before = np.zeros(len(signed))
    proof_at = FIRST_PROOF
    for _ in range(STEPS):
        weights = expit(-margins)
        gradient = weights @ signed
        step = _solved(signed, weights * expit(margins), gradient)
        decrement = float(gradient @ step)
        if decrement < proof_at:
            proof_at = decrement * NEXT_PROOF
            yield Candidate("Newton", None, np.where(weights > SHRINKING * before, weights, 0.0))
        if not decrement > CONVERGED:
            break
        v, margins = _stepped(signed, v, margins, step, decrement)
        before = weights
        plane = view.plane(v, sides)
        if plane is not None:
            yield Candidate("Newton", plane, expit(-margins))
            if is_widest:
                yield from _widest(view, sides, plane)
            return


def _widest(view: View, sides: Array, plane: Array) -> Iterator[Candidate]:
    """The plane of largest margin, from one that separates: Mehrotra's method on the programme
    least |w|² with y (w·x + b) >= 1, whose multipliers weigh the nearest points of the hulls.

    Source: Mehrotra 1992, SIAM Journal on Optimization 2, for its predictor and corrector.
    """
    shape = view.shape
    slopes = plane[:-1] if shape.back is None else plane[:-1] @ shape.back
    signed = sides[:, None] * np.append(shape.table, np.ones((len(shape.table), 1)), 1)
    places = shape.table @ slopes
    v = np.append(slopes, -(places[sides > 0].min() + places[sides < 0].max()) / 2)
    if not (signed @ v).min() > 0:
        return
    v, weights = _mehrotra(signed, 2 * v / (signed @ v).min())
    found = view.halved(v[:-1] if shape.back is None else shape.back @ v[:-1], sides)
    if found is not None:
        yield Candidate("widest plane", found, weights)


def _mehrotra(signed: Array, v: Array) -> tuple[Array, Array]:
    """v and multipliers for: least |v|² / 2 without its last entry, with A v >= 1.

    Until the gap between the two problems is under `WIDEST_GAP` of |v|², or steps run out.
    """
    count, width = signed.shape
    slack = signed @ v - 1
    free = np.append(np.ones(width - 1), 0.0)
    weights = np.full(count, float(free @ v**2) / count) / slack
    for _ in range(STEPS):
        gap = float(weights @ slack)
        if gap < WIDEST_GAP * float(free @ v**2):
            break
        dual, primal = free * v - weights @ signed, signed @ v - 1 - slack
        pull = weights / slack
        hessian = np.diag(free) + (pull[:, None] * signed).T @ signed
        factor, failed = dpotrf(hessian, lower=1, clean=0)
        if failed:
            break
        target, shift = -weights * slack, np.zeros(count)
        for is_corrector in (False, True):
            right = -dual + (target / slack - pull * primal) @ signed
            step = dpotrs(factor, right, lower=1)[0]
            d_slack = signed @ step + primal
            d_weights = target / slack - pull * d_slack
            length = min(_room(slack, d_slack), _room(weights, d_weights))
            if not is_corrector:
                after = float((weights + length * d_weights) @ (slack + length * d_slack))
                shift = (after / gap) ** 3 * gap / count - d_weights * d_slack
                target = target + shift
        v, slack = v + length * step, slack + length * d_slack
        weights = weights + length * d_weights
    return v, weights


def _room(values: Array, step: Array) -> float:
    """The longest step, up to 1, that keeps a hundredth of every value."""
    falls = step < 0
    return min(1.0, 0.99 * float((values[falls] / -step[falls]).min(initial=2.0)))


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


def programmes(view: View, sides: Array) -> Iterator[Candidate]:
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
        if found.status != 0:
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
