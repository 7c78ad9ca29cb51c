"""Fit with context: the best affine map from a row, its sequence's mean and its previous row.

Holds: ``ContextFit``, ``starts_of``.
May import: torch, torchmetrics, jaxtyping, ``secant.errors``, ``secant.gauges`` (moments, ridge,
fit, interval).

A site that mixes positions falls short of 1 per position for two reasons, which `Fit` cannot tell
apart. This gauge gives the map two looks at its neighbours; what it still misses is more often
nonlinear.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor
from torchmetrics import Metric

from secant.errors import InputError
from secant.gauges.fit import Score, add_sum, add_to_group, fold_residuals, residual_within
from secant.gauges.moments import Gram, Moments, check_rows, update_moments

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

    The products with the previous row are taken in float32 of centred rows, whose rounding is
    relative to each pair of columns; sums are float64. Ridge strengths start at 1e-6, far above it.

    Cost: 2 n·d·m float32 products a batch of n rows. Memory: GROUPS · (4d² + 2dm) float64.

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
        target = y.rows - x.rows if self.is_update else y.rows
        x_sum = x.rows.new_zeros(len(first), x.rows.shape[1]).index_add_(0, sequence, x.rows)
        t_sum = target.new_zeros(len(first), target.shape[1]).index_add_(0, sequence, target)
        mean, last = x_sum / count[:, None], x.rows[first + count - 1]
        now = x.rows.float()
        previous = now.roll(1, 0)
        previous[first] = 0
        sums = {
            "previous": now.T @ previous,
            "previous_t": previous.T @ target.float(),
            "mean": mean.T @ x_sum,
            "mean_last": mean.T @ last,
            "last": last.T @ last,
            "mean_t": mean.T @ t_sum,
            "last_total": last.sum(0),
            "first_total": x.rows[first].sum(0),
            "first_t": target[first].sum(0),
            "mean_total": mean.sum(0),
            "sequences": x.rows.new_tensor(float(len(first))),
        }
        for name in STATES:
            add_to_group(self, f"sum_{name}", group, sums[name])

    def moments(self, sums: Moments) -> Moments:
        """Per-group sums of (row, mean, previous, is first) and target, from those of row and y.

        A previous row enters about the mean of all rows, so that a first row's stand-in is 0 and
        the result does not hang on the centre; "is first" is scaled to the spread of a dimension.
        """
        if self.is_update:
            sums = update_moments(sums)
        d, count = sums.x.shape[1], sums.rows - self.sum_sequences
        x_mean = sums.x.sum(0) / sums.rows.sum()
        variance = sums.xx.sum(0).trace() / sums.rows.sum() - x_mean.square().sum()
        spread = (variance / d).clamp_min(0).sqrt()
        later, last = sums.x - self.sum_first_total, sums.x - self.sum_last_total
        mean = self.sum_mean
        before = self.sum_previous - later[:, :, None] * x_mean
        mean_before = (
            mean - self.sum_mean_last - (sums.x - self.sum_mean_total)[:, :, None] * x_mean
        )
        outer = last[:, :, None] * x_mean
        both = sums.xx - self.sum_last - outer - outer.mT
        both += count[:, None, None] * x_mean.outer(x_mean)
        firsts = spread * torch.stack([self.sum_first_total, self.sum_mean_total], 1)
        square = sums.xx.new_zeros(len(sums.xx), 3 * d + 1, 3 * d + 1)
        square[:, :d, :d], square[:, d : 2 * d, d : 2 * d] = sums.xx, mean
        square[:, 2 * d : -1, 2 * d : -1] = both
        square[:, -1, : 2 * d] = square[:, : 2 * d, -1] = firsts.flatten(1)
        square[:, -1, -1] = spread**2 * self.sum_sequences
        for i, j, block in ((0, 1, mean), (0, 2, before), (1, 2, mean_before)):
            square[:, i * d : (i + 1) * d, j * d : (j + 1) * d] = block
            square[:, j * d : (j + 1) * d, i * d : (i + 1) * d] = block.mT
        later_t = (sums.t - self.sum_first_t)[:, None, :]
        crossed = [
            sums.xt,
            self.sum_mean_t,
            self.sum_previous_t - x_mean[:, None] * later_t,
            spread * self.sum_first_t[:, None, :],
        ]
        number = spread * self.sum_sequences[:, None]
        total = torch.cat([sums.x, sums.x, last - count[:, None] * x_mean, number], 1)
        return Moments(sums.rows, total, sums.t, square, torch.cat(crossed, 1), sums.tt)

    def compute(self, sums: Moments, scores: dict[str, Score]) -> dict[str, Score]:
        """`raw` and, where it is among `scores`, `beyond` with context."""
        return residual_within(fold_residuals(self.moments(sums), self.STRENGTHS), scores)
