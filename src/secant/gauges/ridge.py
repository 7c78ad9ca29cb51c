"""Ridge regression from moments: the strength chosen on inner folds, the solve, its eigenbasis.

Holds: ``RIDGES``, ``lifted_cholesky``, ``cholesky_solution``, ``chosen_ridges``, ``Eigen``,
``Eigenbases``, ``ridge_weight``.
May import: torch, jaxtyping, ``secant.errors``, ``secant.gauges`` (_shapes, moments).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import Future
from threading import Lock
from typing import NamedTuple, cast

import torch
from jaxtyping import Float64
from torch import Tensor

from secant.errors import InputError
from secant.gauges._shapes import Scalar
from secant.gauges.moments import Moments, added, crossed, lengths, trained

RIDGES = (0.0, 1e-6, 1e-4, 1e-2, 1.0)
"""Strengths, in units of the mean eigenvalue of the inputs."""

RANK_CUT = 1e-12  # float64 sums carry eigenvalues down to about here
NOTHING = 1e-10  # stands for strength 0 while choosing: Cholesky needs a rank-deficient x lifted
SKETCH = 16
"""Random directions of the output on which a strength is chosen.

The squared residual over Gaussian directions is an unbiased estimate of the whole, at a fraction
of its cost; outputs no wider than this are used as they are.
"""


def sketched(sums: Moments) -> Moments:
    """The same moments with targets projected on SKETCH fixed random directions, if wider."""
    width = sums.t.shape[-1]
    if width <= SKETCH:
        return sums
    generator = torch.Generator().manual_seed(width)
    directions = torch.randn(width, SKETCH, generator=generator, dtype=torch.float64)
    directions = directions.to(sums.t.device)
    rows, x, t, xx, xt, tt = sums
    return Moments(rows, x, t @ directions, xx, xt @ directions, directions.T @ tt @ directions)


def mean_eigenvalue(xx: Float64[Tensor, "d d"]) -> Scalar:
    """The unit of a strength; 1 where x is constant, for then any strength gives weight 0."""
    mean = xx.diagonal().mean()
    return torch.where(mean > 0, mean, torch.ones_like(mean))


def lifted_cholesky(xx: Float64[Tensor, "d d"], ridge: float) -> Float64[Tensor, "d d"]:
    """The factor of x'x + ridge · mean eigenvalue; a strength of 0 becomes NOTHING.

    Where rounding has left x'x further below zero than that, the strength grows until it is not.
    """
    strength, unit = max(ridge, NOTHING), mean_eigenvalue(xx)
    factor, failed = torch.linalg.cholesky_ex(_lifted(xx, strength * unit))
    while failed:
        strength *= 10
        if strength > 1e3:
            raise InputError(
                "fit: the sums of the inputs are not finite or not those of real rows, so no "
                "affine map exists. Look for nan or infinite activations at this site."
            )
        factor, failed = torch.linalg.cholesky_ex(_lifted(xx, strength * unit))
    return cast(Tensor, factor)


def _lifted(xx: Float64[Tensor, "d d"], lift: Scalar) -> Float64[Tensor, "d d"]:
    lifted = xx.clone()
    lifted.diagonal().add_(lift)
    return lifted


def cholesky_solution(
    target: Float64[Tensor, "d m"], factor: Float64[Tensor, "d d"]
) -> Float64[Tensor, "d m"]:
    """`torch.cholesky_solve`, which copies the factor first: dear where `target` is narrow."""
    half = torch.linalg.solve_triangular(factor, target, upper=False)
    return cast(Tensor, torch.linalg.solve_triangular(factor.T, half, upper=True))


def chosen_ridges(folds: Sequence[Moments], strengths: tuple[float, ...] = RIDGES) -> list[float]:
    """For each fold the strength with the least residual on a neighbour, by a fit without both.

    The outer fold is never seen by its own choice. One fit serves both of a pair; of an odd number
    the last is paired with the first, which is then tested on two neighbours.

    Cost: (folds + 1) // 2 · strengths Cholesky factors of the inputs' width.
    """
    count = len(folds)
    folds = [sketched(fold) for fold in folds]
    everything = added(folds)
    losses = torch.zeros(count, len(strengths), dtype=torch.float64)
    for first in range(0, count, 2):
        second = (first + 1) % count
        one, other = folds[first], folds[second]
        train = trained(everything.minus(one).minus(other))
        means = train.x_mean, train.t_mean
        for place, ridge in enumerate(strengths):
            factor = lifted_cholesky(train.centred.xx, ridge)
            weight = cholesky_solution(train.centred.xt, factor)
            losses[first, place] += residual_sum(other, weight, *means).cpu()
            losses[second, place] += residual_sum(one, weight, *means).cpu()
    return [strengths[int(loss.argmin())] for loss in losses]


def residual_sum(
    sums: Moments,
    weight: Float64[Tensor, "d m"],
    x_mean: Float64[Tensor, " d"],
    t_mean: Float64[Tensor, " m"],
) -> Scalar:
    """Σ‖(t - t_mean) - (x - x_mean)·weight‖²; cheap for a narrow `weight` (d, m)."""
    _, total = lengths(sums, x_mean, t_mean)
    of_mean, of_sum = x_mean @ weight, sums.x @ weight
    explained = torch.dot(weight.flatten(), (sums.xx @ weight).flatten())
    explained = explained - 2 * of_sum @ of_mean + sums.rows * (of_mean @ of_mean)
    return total - 2 * crossed(weight, sums, x_mean, t_mean) + explained


class Eigen(NamedTuple):
    """Eigenvalues, ascending, and eigenvectors as columns."""

    values: Float64[Tensor, " d"]
    vectors: Float64[Tensor, "d d"]


class Eigenbases:
    """Symmetric eigenproblems, each solved once: a block's output is the next one's input.

    Known by the bytes of the matrix, so nobody has to say which sites share a tensor. Keeps the
    last few only. Threads may share one: who comes second waits for the first.
    """

    def __init__(self, keep: int = 48) -> None:
        self.keep = keep
        self.solved: dict[bytes, Future[Eigen]] = {}
        self.lock = Lock()

    def __call__(self, matrix: Float64[Tensor, "d d"]) -> Eigen:
        """Eigenvalues and eigenvectors of `matrix`."""
        key = hashlib.blake2b(matrix.cpu().numpy().tobytes(), digest_size=16).digest()
        with self.lock:
            is_first = key not in self.solved
            if is_first:
                if len(self.solved) == self.keep:
                    del self.solved[next(iter(self.solved))]
                self.solved[key] = Future()
            found = self.solved[key]
        if is_first:
            try:
                found.set_result(Eigen(*torch.linalg.eigh(matrix)))
            except Exception as error:
                found.set_exception(error)
        return found.result()


def ridge_weight(
    basis: Eigen, target: Float64[Tensor, "d m"], ridge: float
) -> Float64[Tensor, "d m"]:
    """Weight (d, m) for centred rows with x'x in `basis` and x't = `target`.

    A strength of 0 is exact here: directions that the rows do not reach get weight 0.
    """
    values, vectors = basis
    floor = RANK_CUT * values[-1].clamp_min(0)
    inverse = 1 / (values + ridge * values.mean())
    shrink = torch.where(values > floor, inverse, torch.zeros_like(values))
    return vectors @ (shrink[:, None] * (vectors.T @ target))
