"""First and second moments of paired rows, as plain sums that add.

Holds: ``Moments``, ``added``, ``Gram``, ``gram``, ``precision_of``, ``symmetric_product``,
``target_rows``, ``summed_product``, ``check_rows``, ``moments`` (rows to sums), ``recentred``,
``squared``, ``squared_target``, ``crossed``, ``lengths`` (single sums about means),
``update_moments``, ``Trained``, ``trained``.
May import: torch, jaxtyping, ``secant.errors``, ``secant.gauges._shapes``.

Everything held out is computed from these sums, so no row is ever kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from secant.errors import InputError
from secant.gauges._shapes import Scalar

WIDE = 128
"""Columns from which on float64 products of two sets of rows would slow a survey."""

BLOCK = 192
"""Columns of a symmetric product taken at once; blocks below the diagonal are copied."""

ROWS = 4096
"""Rows summed in the precision of products; from there on sums are float64."""


class Moments(NamedTuple):
    """Sums over rows of x (width d) and target t (width m), all float64.

    Shapes may carry leading group dimensions; the formulas then hold group by group.
    """

    rows: Float64[Tensor, " *groups"]
    x: Float64[Tensor, "*groups d"]
    t: Float64[Tensor, "*groups m"]
    xx: Float64[Tensor, "*groups d d"]
    xt: Float64[Tensor, "*groups d m"]
    tt: Float64[Tensor, "*groups m m"]

    def minus(self, other: Moments) -> Moments:
        """Sums over the rows of this set that are not in `other`, a subset of it."""
        return Moments(*(a - b for a, b in zip(self, other, strict=True)))

    def of(self, group: int) -> Moments:
        """The sums of one group."""
        return Moments(*(a[group] for a in self))


def added(parts: Sequence[Moments]) -> Moments:
    """The sums over several sets of rows, in the order given."""
    return Moments(*(reduce(Tensor.add, values) for values in zip(*parts, strict=True)))


@dataclass(frozen=True)
class Gram:
    """Rows about a centre with their own sums, made once where two sites share a tensor.

    Products of rows with themselves are float64, for a state after a LayerNorm has a direction
    without any variance, which float32 would fill with noise; others are of `precision_of`.
    """

    raw: Float[Tensor, "n d"]  # as they came
    centre: Float64[Tensor, " d"]
    rows: Float64[Tensor, "n d"]  # less the centre
    total: Float64[Tensor, " d"]
    product: Float64[Tensor, "d d"]

    @cached_property
    def single(self) -> Float32[Tensor, "n d"]:
        """`rows` in float32."""
        return self.rows.float()

    def in_precision(self, precision: torch.dtype) -> Float[Tensor, "n d"]:
        """`rows` in float32 or float64."""
        return self.single if precision == torch.float32 else self.rows


def precision_of(x: Gram, y: Gram) -> torch.dtype:
    """That of products of x with y: float32 where both are wide and came so, else float64.

    Narrow products cost little in float64, and their few roundings would not average out.
    """
    is_wide = min(x.raw.shape[1], y.raw.shape[1]) >= WIDE
    is_double = torch.float64 in (x.raw.dtype, y.raw.dtype)
    return torch.float32 if is_wide and not is_double else torch.float64


def gram(rows: Float[Tensor, "n d"], centre: Float[Tensor, " d"]) -> Gram:
    """`rows` (n, d) about `centre` (d,). Cost: about n·d²·(1 + BLOCK / d) / 2 products."""
    centre = centre.double()
    about = rows.to(torch.float64, copy=True).sub_(centre)
    return Gram(rows, centre, about, about.sum(0), symmetric_product(about))


def symmetric_product(rows: Float64[Tensor, "n d"]) -> Float64[Tensor, "d d"]:
    """rows'rows."""
    width = rows.shape[1]
    square = rows.new_empty(width, width)
    for start in range(0, width, BLOCK):
        end = start + BLOCK
        square[start:end, start:] = rows[:, start:end].T @ rows[:, start:]
        square[end:, start:end] = square[start:end, end:].T
    return square


def target_rows(x: Gram, y: Gram) -> Float[Tensor, "n m"]:
    """What is fitted, in `precision_of` the two: y - x where both have one width, else y.

    The difference is that of the rows as they came, so that a small update keeps its digits.
    """
    precision = precision_of(x, y)
    if x.raw.shape != y.raw.shape:
        return y.in_precision(precision)
    difference = y.raw.to(precision) - x.raw.to(precision)
    return difference.sub_((y.centre - x.centre).to(precision))


def summed_product(a: Float[Tensor, "n d"], b: Float[Tensor, "n m"]) -> Float[Tensor, "d m"]:
    """a'b, with products as precise as `a` and `b` are; of few rows the sum too."""
    whole = a[:ROWS].T @ b[:ROWS]
    for start in range(ROWS, len(a), ROWS):
        whole = whole.double()
        whole += a[start : start + ROWS].T @ b[start : start + ROWS]
    return whole


def check_rows(x: Tensor, t: Tensor) -> None:
    """Refuse what is not one row of each a sample."""
    if x.ndim != 2 or t.ndim != 2 or len(x) != len(t):
        raise InputError(
            "fit: both tensors must be two-dimensional with one row each per sample; got "
            f"{tuple(x.shape)} and {tuple(t.shape)}. Flatten batch and position into rows."
        )


def moments(x: Gram, y: Gram) -> Moments:
    """Sums of one batch of rows. Cost: n·d·m products beyond those of the two Grams.

    Of equal widths, x't is taken as x'x + x'(t - x): a small update then keeps its own digits in
    products of float32, and their diagonal, of which traces are made, is summed in float64.
    """
    check_rows(x.rows, y.rows)
    rows = torch.tensor(float(len(x.rows)), dtype=torch.float64, device=x.rows.device)
    target = target_rows(x, y)
    now = x.in_precision(target.dtype)
    product = summed_product(now, target).double()
    if x.rows.shape == y.rows.shape:
        torch.sum(now * target, 0, dtype=torch.float64, out=product.diagonal())
        product += x.product
    return Moments(rows, x.total, y.total, x.product, product, y.product)


def recentred(
    sums: Moments, x_mean: Float64[Tensor, " d"], t_mean: Float64[Tensor, " m"]
) -> Moments:
    """The same sums about `x_mean` (d,) and `t_mean` (m,). Cost: one pass over each matrix."""
    rows, x, t, xx, xt, tt = sums
    x_half, t_half = x - rows * x_mean / 2, t - rows * t_mean / 2
    return Moments(
        rows,
        x - rows * x_mean,
        t - rows * t_mean,
        _less_outers(xx, x_half, x_mean, x_mean, x_half),
        _less_outers(xt, x - rows * x_mean, t_mean, x_mean, t),
        _less_outers(tt, t_half, t_mean, t_mean, t_half),
    )


def _less_outers(
    matrix: Float64[Tensor, "n k"],
    a: Float64[Tensor, " n"],
    b: Float64[Tensor, " k"],
    c: Float64[Tensor, " n"],
    d: Float64[Tensor, " k"],
) -> Float64[Tensor, "n k"]:
    """matrix - ab' - cd'."""
    return torch.addmm(matrix, torch.stack([a, c], 1), torch.stack([b, d]), alpha=-1)


def squared(weight: Float64[Tensor, "d d"], sums: Moments, x_mean: Float64[Tensor, " d"]) -> Scalar:
    """Σ weight ∘ x'x about `x_mean`, without forming it; `weight` (d, d) symmetric."""
    at_mean = weight @ x_mean
    whole = torch.dot(weight.flatten(), sums.xx.flatten())
    return whole - 2 * sums.x @ at_mean + sums.rows * (x_mean @ at_mean)


def squared_target(
    weight: Float64[Tensor, "m m"], sums: Moments, t_mean: Float64[Tensor, " m"]
) -> Scalar:
    """Σ weight ∘ t't about `t_mean`; `weight` (m, m) symmetric."""
    at_mean = weight @ t_mean
    whole = torch.dot(weight.flatten(), sums.tt.flatten())
    return whole - 2 * sums.t @ at_mean + sums.rows * (t_mean @ at_mean)


def crossed(
    weight: Float64[Tensor, "d m"],
    sums: Moments,
    x_mean: Float64[Tensor, " d"],
    t_mean: Float64[Tensor, " m"],
) -> Scalar:
    """Σ weight ∘ x't about the means; `weight` (d, m)."""
    at_mean, of_mean = weight @ t_mean, x_mean @ weight
    whole = torch.dot(weight.flatten(), sums.xt.flatten())
    return whole - sums.x @ at_mean - of_mean @ sums.t + sums.rows * (x_mean @ at_mean)


def lengths(
    sums: Moments, x_mean: Float64[Tensor, " d"], t_mean: Float64[Tensor, " m"]
) -> tuple[Scalar, Scalar]:
    """Traces of x'x and t't about the means."""
    x = sums.xx.trace() - 2 * sums.x @ x_mean + sums.rows * (x_mean @ x_mean)
    t = sums.tt.trace() - 2 * sums.t @ t_mean + sums.rows * (t_mean @ t_mean)
    return x, t


def update_moments(sums: Moments) -> Moments:
    """The sums of x and t - x from those of x and t, which must have one width.

    For an update of relative norm r the difference costs log10(1/r²) of float64's 16 digits,
    products of float32 rows included, for those are summed in float64.
    """
    rows, x, t, xx, xt, tt = sums
    return Moments(rows, x, t - x, xx, xt - xx, tt - xt - xt.mT + xx)


class Trained(NamedTuple):
    """Training sums of a fold, about their own means."""

    x_mean: Float64[Tensor, " d"]
    t_mean: Float64[Tensor, " m"]
    centred: Moments


def trained(sums: Moments) -> Trained:
    """Means of the training rows and the sums about them."""
    x_mean, t_mean = sums.x / sums.rows, sums.t / sums.rows
    return Trained(x_mean, t_mean, recentred(sums, x_mean, t_mean))
