"""The regressors of a fit with context, as sums: a row, its sequence's mean, its previous row.

Holds: ``Design``, ``design_of``.
May import: torch, jaxtyping, ``secant.gauges`` (_shapes, moments).

Of the nine blocks of their products five differ, so sums are kept and weighed block by block.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from secant.gauges._shapes import Scalar
from secant.gauges.moments import Moments


class Design(NamedTuple):
    """Sums over rows of z = (row, mean, previous, is first) and target t, z'z by its blocks."""

    rows: Scalar
    z: Float64[Tensor, " p"]
    t: Float64[Tensor, " m"]
    row: Float64[Tensor, "d d"]
    mean: Float64[Tensor, "d d"]  # of mean with mean, and of row with mean
    before: Float64[Tensor, "d d"]  # row with previous
    mean_before: Float64[Tensor, "d d"]
    previous: Float64[Tensor, "d d"]
    first: Float64[Tensor, "d 2"]  # row and mean with "is first"
    firsts: Scalar
    zt: Float64[Tensor, "p m"]
    tt: Float64[Tensor, "m m"]

    def moments(self) -> Moments:
        """The same with z'z put together. Memory: (3d + 1)²."""
        d = len(self.row)
        square = self.row.new_zeros(3 * d + 1, 3 * d + 1)
        upper = (
            (0, 0, self.row), (0, 1, self.mean), (0, 2, self.before), (1, 1, self.mean),
            (1, 2, self.mean_before), (2, 2, self.previous),
        )  # fmt: skip
        for i, j, block in upper:
            square[i * d : (i + 1) * d, j * d : (j + 1) * d] = block
            square[j * d : (j + 1) * d, i * d : (i + 1) * d] = block.T
        square[-1, : 2 * d] = square[: 2 * d, -1] = self.first.T.flatten()
        square[-1, -1] = self.firsts
        return Moments(self.rows, self.z, self.t, square, self.zt, self.tt)

    def residual(
        self,
        weight: Float64[Tensor, "p m"],
        square: Float64[Tensor, "p p"],
        z_mean: Float64[Tensor, " p"],
        t_mean: Float64[Tensor, " m"],
    ) -> Scalar:
        """Σ‖(t - t_mean) - (z - z_mean)·weight‖², with weight·weight' in `square`.

        Cost: one pass over the blocks, which are never put together.
        """
        d = len(self.row)
        q = [[square[i * d : (i + 1) * d, j * d : (j + 1) * d] for j in range(3)] for i in range(3)]
        explained = (q[0][0] * self.row).sum() + ((q[1][1] + 2 * q[0][1]) * self.mean).sum()
        explained += 2 * (q[0][2] * self.before).sum() + 2 * (q[1][2] * self.mean_before).sum()
        explained += (q[2][2] * self.previous).sum() + square[-1, -1] * self.firsts
        explained += 2 * square[-1, : 2 * d] @ self.first.T.flatten()
        # About the means: with w = z - z_mean and u = t - t_mean, Σ uu' - 2 Σ u'Ww + Σ w'WW'w.
        of_mean, of_sum = z_mean @ weight, self.z @ weight
        explained += self.rows * of_mean @ of_mean - 2 * of_sum @ of_mean
        crossed = (weight * self.zt).sum() - of_sum @ t_mean - of_mean @ self.t
        crossed += self.rows * of_mean @ t_mean
        total = self.tt.trace() - 2 * self.t @ t_mean + self.rows * t_mean @ t_mean
        return (total - 2 * crossed + explained).clamp_min(0)


def design_of(
    sums: Moments, states: dict[str, Tensor], x_mean: Float64[Tensor, " d"], spread: Scalar
) -> Design:
    """Sums of regressors and target, from those of row and target and a `ContextFit`'s states.

    A previous row enters about `x_mean`, the mean of all rows, so that a first row's stand-in is 0
    and the result does not hang on the centre; "is first" is scaled to `spread`, a dimension's.
    """
    rows, x, t, xx, xt, tt = sums
    mean, sequences = states["mean"], states["sequences"]
    count = rows - sequences  # rows that have a previous one
    last = x - states["last_total"]
    outer = last.outer(x_mean)
    later_t = t - states["first_t"]
    zt = [
        xt,
        states["mean_t"],
        states["previous_t"] - x_mean.outer(later_t),
        spread * states["first_t"][None],
    ]
    return Design(
        rows=rows,
        z=torch.cat([x, x, last - count * x_mean, (spread * sequences)[None]]),
        t=t,
        row=xx,
        mean=mean,
        before=states["previous"] - (x - states["first_total"]).outer(x_mean),
        mean_before=mean - states["mean_last"] - (x - states["mean_total"]).outer(x_mean),
        previous=xx - states["last"] - outer - outer.T + count * x_mean.outer(x_mean),
        first=spread * torch.stack([states["first_total"], states["mean_total"]], 1),
        firsts=spread**2 * sequences,
        zt=torch.cat(zt),
        tt=tt,
    )
