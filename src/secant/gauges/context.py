"""Fit with context: the best affine map from a row, its sequence's mean and its previous row.

Holds: ``ContextFit``, ``starts_of``.
May import: torch, torchmetrics, jaxtyping, ``secant.errors``, ``secant.gauges`` (_shapes, moments,
ridge, design, fit).

A site that mixes positions falls short of 1 per position for two reasons, which `Fit` cannot tell
apart. This gauge gives the map two looks at its neighbours; what it still misses is more often
nonlinear.
"""

from __future__ import annotations

from functools import reduce

import torch
from jaxtyping import Bool
from torch import Tensor
from torchmetrics import Metric

from secant.errors import InputError
from secant.gauges._shapes import Scalar
from secant.gauges.design import Design, design_of
from secant.gauges.fit import Score, add_sum, add_to_group, members_of, residual_within
from secant.gauges.moments import (
    Gram,
    Moments,
    added,
    check_rows,
    summed_product,
    symmetric_product,
    target_rows,
    trained,
    update_moments,
)
from secant.gauges.ridge import cholesky_solution, chosen_ridges, lifted_cholesky

STATES = (
    "previous", "previous_t", "mean", "mean_last", "last", "mean_t",
    "last_total", "first_total", "first_t", "mean_total", "sequences",
)  # fmt: skip


def starts_of(mask: Bool[Tensor, "batch length"]) -> Bool[Tensor, " rows"]:
    """Where sequences begin among the rows that `mask` keeps."""
    counts = mask.sum(1)
    counts = counts[counts > 0]
    starts = torch.zeros(int(counts.sum()), dtype=torch.bool, device=mask.device)
    starts[counts.cumsum(0) - counts] = True
    return starts


class ContextFit(Metric):
    r"""Held-out residual of the best affine map from (x_i, mean of x, x_{i-1}) to y_i.

    .. math:: \sum_n \|y_n - A x_n - M \bar x_{s(n)} - P x_{n-1} - b - c\,[n\ \text{first}]\|^2

    :math:`\bar x_s` is the mean over the sequence of the row. The first row of a sequence has no
    previous one: it takes the mean of all rows, and has a constant of its own in the map, for
    blocks treat the first position apart.

    Update: ``x`` (rows, d) and ``y`` (rows, m) as `Gram` about one centre each, the same at every
    update; ``starts`` (rows,), true where a sequence begins; ``group`` as for `Fit`.
    The moments of x, y and x with y are those of `Fit` and are not kept twice.

    Compute: takes the sums of `Fit` on the same rows and its `raw` and `beyond` scores, and gives
    the scores with this residual over their totals: no unit, 1 is affine in the row and its two
    neighbours, and the gain over `Fit` is what context explains.

    Products are taken in `precision_of` the two, whose rounding is relative to each pair of
    columns; sums over batches are float64. Ridge strengths start at 1e-6, far above it.

    Cost: n·d² + n·d·m products a batch of n rows. Memory: GROUPS · (4d² + 2dm) float64.

    Raises: `InputError` for shapes that do not match.

    Source: ours; the regressors are DESIGN.md's "per position + context".
    """

    full_state_update = False
    higher_is_better = True
    STRENGTHS = (1e-6, 1e-3, 1.0)

    def __init__(self, width: int, output_width: int) -> None:
        super().__init__()
        self.widths = width, output_width
        self.is_update = width == output_width
        for name in STATES:
            add_sum(self, f"sum_{name}")

    def update(self, x: Gram, y: Gram, starts: Tensor, group: int) -> None:
        """Add the rows of one group."""
        check_rows(x.rows, y.rows)
        if starts.shape != (len(x.rows),) or not bool(starts[:1].all()):
            raise InputError(
                f"context: `starts` must be true at the first of {len(x.rows)} rows and hold one "
                f"entry for each; got shape {tuple(starts.shape)}. Take it from `starts_of(mask)`."
            )
        first = starts.nonzero()[:, 0]
        count = torch.diff(first, append=first.new_tensor([len(starts)]))
        sequence = starts.cumsum(0) - 1
        target = target_rows(x, y)
        x_sum = x.rows.new_zeros(len(first), x.rows.shape[1]).index_add_(0, sequence, x.rows)
        t_sum = y.rows.new_zeros(len(first), y.rows.shape[1]).index_add_(0, sequence, y.rows)
        if self.is_update:
            t_sum -= x_sum
        mean, last = x_sum / count[:, None], x.rows[first + count - 1]
        totals = {
            "last_total": last.sum(0),
            "first_total": x.rows[first].sum(0),
            "first_t": target[first].double().sum(0),
            "mean_total": mean.sum(0),
            "sequences": x.rows.new_tensor(float(len(first))),
        }
        now = x.in_precision(target.dtype)
        mean, last, x_sum, t_sum = (one.to(now.dtype) for one in (mean, last, x_sum, t_sum))
        previous = now.roll(1, 0)
        previous[first] = 0
        sums = {
            "previous": summed_product(now, previous),
            "previous_t": summed_product(previous, target),
            "mean": summed_product(mean, x_sum),
            "mean_last": summed_product(mean, last),
            "last": summed_product(last, last),
            "mean_t": summed_product(mean, t_sum),
        }
        for name, value in (sums | totals).items():
            add_to_group(self, f"sum_{name}", group, value)

    def compute(self, sums: Moments, scores: dict[str, Score]) -> dict[str, Score]:
        """`raw` and, where it is among `scores`, `beyond` with context."""
        return residual_within(self.residuals(sums), scores)

    def residuals(self, sums: Moments) -> list[Scalar]:
        """Held-out residual sums, one a group, in the order of the folds; `sums` of row and y.

        Cost: `chosen_ridges` at three widths, and a Cholesky factor and solve for each fold.
        """
        if self.is_update:
            sums = update_moments(sums)
        x_mean = sums.x.sum(0) / sums.rows.sum()
        variance = sums.xx.sum(0).trace() / sums.rows.sum() - x_mean.square().sum()
        spread = (variance / len(x_mean)).clamp_min(0).sqrt()
        states = {name: getattr(self, f"sum_{name}") for name in STATES}
        members = members_of(sums.rows)

        def design(groups: list[int]) -> Design:
            mine = {
                name: reduce(Tensor.add, [state[g] for g in groups])
                for name, state in states.items()
            }
            return design_of(added([sums.of(g) for g in groups]), mine, x_mean, spread)

        folds = [design(of_fold).moments() for of_fold in members]
        everything = added(folds)
        ridges = chosen_ridges(folds, self.STRENGTHS)
        residuals = []
        for k, of_fold in enumerate(members):
            z_mean, t_mean, train = trained(everything.minus(folds[k]))
            weight = cholesky_solution(train.xt, lifted_cholesky(train.xx, ridges[k]))
            square = symmetric_product(weight.T)
            for group in of_fold:
                residuals.append(design([group]).residual(weight, square, z_mean, t_mean))
        return residuals
