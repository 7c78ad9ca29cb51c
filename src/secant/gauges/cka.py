"""Linear CKA: how alike two sets of features of the same units are, up to rotation and scale.

Holds: ``hsic_sums``, ``cka_from_sums``, ``cka_interval``.
May import: torch, jaxtyping, ``secant.errors``, ``secant.gauges``.
"""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from secant.errors import InputError
from secant.gauges.interval import jackknife_interval

FEWEST_ROWS = 4
"""Rows that the unbiased estimate needs: it divides by n - 3."""


def hsic_sums(x: Tensor, y: Tensor) -> Float64[Tensor, " three"]:
    r"""Unbiased HSIC of x with y, x with x and y with y, of one batch, times its rows.

    .. math:: \frac{1}{n (n-3)} \left( \mathrm{tr} \tilde K \tilde L
              + \frac{1^T \tilde K 1 \; 1^T \tilde L 1}{(n-1)(n-2)}
              - \frac{2}{n-2} 1^T \tilde K \tilde L 1 \right)

    K = xx', L = yy' with their diagonals set to 0. No bias, whatever the number of features, so
    that sums over batches estimate what one batch of all rows would. Cost: n² (p + q).

    Source: Song et al. 2012, JMLR 13, eq. 5; in batches Nguyen, Raghu and Kornblith 2021,
    arXiv:2010.15327.
    """
    if len(x) != len(y) or len(x) < FEWEST_ROWS:
        raise InputError(
            f"cka: both features must be of the same rows, at least {FEWEST_ROWS}; got {len(x)} "
            f"and {len(y)}. Give a larger batch."
        )
    grams = []
    for features in (x, y):
        # A shift changes nothing; without it no digits are lost to a far-off mean.
        rows = features.double() - features.double().mean(0)
        gram = rows @ rows.T
        grams.append(gram - gram.diag().diag())
    n = len(x)
    found = []
    for k, other in ((0, 1), (0, 0), (1, 1)):
        left, right = grams[k], grams[other]
        crossed = (left * right).sum() - 2 / (n - 2) * (left.sum(0) @ right.sum(0))
        found.append((crossed + left.sum() * right.sum() / ((n - 1) * (n - 2))) / (n - 3))
    return torch.stack(found)


def cka_from_sums(sums: Float64[Tensor, "*groups 3"]) -> Float64[Tensor, "*groups"]:
    """HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)); nan where either set of features is constant.

    1: one is the other rotated, scaled and shifted; 0: not related (a little below for noise).
    Source: Kornblith et al. 2019, arXiv:1905.00414.
    """
    spread = sums[..., 1].clamp_min(0).sqrt() * sums[..., 2].clamp_min(0).sqrt()
    return torch.where(spread > 0, sums[..., 0] / spread, torch.nan)


def cka_interval(
    sums: Float64[Tensor, "groups 3"],
    others: Float64[Tensor, "groups 3"] | None = None,
    level: float = 0.95,
) -> tuple[float, float]:
    """Interval of the CKA of all groups; with `others`, of that less theirs, paired by group.

    The jackknife over groups of whole units with a Student quantile, groups less one.
    """
    keep = 1 - torch.eye(len(sums), dtype=torch.float64)
    values, left_out = cka_from_sums(sums.sum(0)), cka_from_sums(keep @ sums)
    if others is not None:
        values = values - cka_from_sums(others.sum(0))
        left_out = left_out - cka_from_sums(keep @ others)
    return jackknife_interval(float(values), left_out, level)
