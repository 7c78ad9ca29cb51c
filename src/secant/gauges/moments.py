"""First and second moments of paired rows, as plain sums that add.

Holds: ``Moments``, ``check_rows``, ``moments`` (rows to sums), ``recentred``.
May import: torch, ``secant.errors``.

Everything held out is computed from these sums, so no row is ever kept.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from secant.errors import InputError


class Moments(NamedTuple):
    """Sums over rows of x (width d) and target t (width m), all float64.

    Shapes may carry leading group dimensions; the formulas then hold group by group.
    """

    rows: Tensor  # ()
    x: Tensor  # (d,)
    t: Tensor  # (m,)
    xx: Tensor  # (d, d)
    xt: Tensor  # (d, m)
    tt: Tensor  # (m, m)

    def minus(self, other: Moments) -> Moments:
        """Sums over the rows of this set that are not in `other`, a subset of it."""
        return Moments(*(a - b for a, b in zip(self, other, strict=True)))

    def of(self, group: int) -> Moments:
        """The sums of one group."""
        return Moments(*(a[group] for a in self))

    def total(self, groups: list[int]) -> Moments:
        """The sums over several groups, in the order given."""
        return Moments(*(a[groups].sum(0) for a in self))


def check_rows(x: Tensor, t: Tensor) -> None:
    """Refuse what is not one row of each a sample."""
    if x.ndim != 2 or t.ndim != 2 or len(x) != len(t):
        raise InputError(
            "fit: both tensors must be two-dimensional with one row each per sample; got "
            f"{tuple(x.shape)} and {tuple(t.shape)}. Flatten batch and position into rows."
        )


def moments(x: Tensor, t: Tensor) -> Moments:
    """Sums of one batch of rows, `x` (n, d) and `t` (n, m). Cost: n(d² + dm + m²) products."""
    check_rows(x, t)
    x, t = x.double(), t.double()
    rows = torch.tensor(float(len(x)), dtype=torch.float64, device=x.device)
    return Moments(rows, x.sum(0), t.sum(0), x.T @ x, x.T @ t, t.T @ t)


def recentred(sums: Moments, x_mean: Tensor, t_mean: Tensor) -> Moments:
    """The same sums about `x_mean` (d,) and `t_mean` (m,)."""
    rows, x, t, xx, xt, tt = sums
    return Moments(
        rows,
        x - rows * x_mean,
        t - rows * t_mean,
        xx - x.outer(x_mean) - x_mean.outer(x) + rows * x_mean.outer(x_mean),
        xt - x.outer(t_mean) - x_mean.outer(t) + rows * x_mean.outer(t_mean),
        tt - t.outer(t_mean) - t_mean.outer(t) + rows * t_mean.outer(t_mean),
    )
