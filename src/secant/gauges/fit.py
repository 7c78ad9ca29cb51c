"""Fit: how much of a map the best affine map explains, held out.

Holds: ``Fit``, its result ``FitResult`` and ``AffineMap``, the functions that take sums to them.
May import: torch, torchmetrics, ``secant.errors``, ``secant.gauges.moments``, ``...interval``.

Where output and input have one shape, the sums are kept of the update t = y - x: an affine
map absorbs x, so its residual is the same, and no float is lost to the difference of two
nearly equal large numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from secant.errors import InputError
from secant.gauges.interval import FOLDS, GROUPS, ratio_interval
from secant.gauges.moments import Moments, check_rows, moments, recentred

RIDGES = (0.0, 1e-6, 1e-4, 1e-2, 1.0)  # in units of the mean eigenvalue of the inputs
RANK_CUT = 1e-12  # float64 sums carry eigenvalues down to about here
EPSILON = torch.finfo(torch.float64).eps
WHITENED_CUT = 1e-9  # DESIGN.md: directions kept for `whitened`


class AffineMap(NamedTuple):
    """y ≈ x @ weight + bias; `weight` (d, m), `bias` (m,), float64."""

    weight: Tensor
    bias: Tensor


class Score(NamedTuple):
    """1 - Σ residual / Σ total over groups, with its 95 % interval."""

    value: float
    interval: tuple[float, float] | None
    residual: list[float]
    total: list[float]


class FitResult(NamedTuple):
    """What `Fit.compute` returns.

    `scores` maps variant (raw, beyond, update, whitened) to its held-out score; `beyond` and
    `update` exist only where input and output have one width. `residual_alone` is the score
    of the best scalar multiple of the centred input, the control of `raw`. `procrustes` is
    in-sample. `rank` is the number of directions of y that `whitened` keeps, the fewest over folds;
    `ridges` the strength chosen for each fold.
    """

    scores: dict[str, Score]
    residual_alone: Score | None
    procrustes: float
    affine: AffineMap
    rank: int
    ridges: list[float]
    rows: int
    leading_share: float


class Eigen(NamedTuple):
    """Centred training covariance sums in the eigenbasis of the inputs."""

    values: Tensor
    vectors: Tensor
    target: Tensor  # vectors.T @ xt


class Trained(NamedTuple):
    """Training sums of a fold, about their own means."""

    x_mean: Tensor
    t_mean: Tensor
    centred: Moments


def trained(sums: Moments) -> Trained:
    """Means of the training rows and the sums about them."""
    x_mean, t_mean = sums.x / sums.rows, sums.t / sums.rows
    return Trained(x_mean, t_mean, recentred(sums, x_mean, t_mean))


def eigen(centred: Moments) -> Eigen:
    """Diagonalise the inputs' second moments once; every ridge strength is then a division."""
    values, vectors = torch.linalg.eigh(centred.xx)
    return Eigen(values, vectors, vectors.T @ centred.xt)


def shrinkage(values: Tensor, ridge: float) -> Tensor:
    """1 / (eigenvalue + ridge · mean eigenvalue), 0 where the rows do not reach."""
    floor = RANK_CUT * values[-1].clamp_min(0)
    inverse = 1 / (values + ridge * values.mean())
    return torch.where(values > floor, inverse, torch.zeros_like(values))


def affine_weight(basis: Eigen, ridge: float) -> Tensor:
    """Ridge weight (d, m) for centred rows."""
    return basis.vectors @ (shrinkage(basis.values, ridge)[:, None] * basis.target)


def residual_sum(held: Moments, weight: Tensor) -> Tensor:
    """Σ‖t - x·weight‖² over held-out rows whose sums are about the training means."""
    return held.tt.trace() - 2 * (weight * held.xt).sum() + (weight * (held.xx @ weight)).sum()


def chosen_ridge(
    folds: Moments, outer: int, pairs: dict[tuple[int, int, int], list[Tensor]]
) -> float:
    """The strength with the least inner residual for `outer`; the outer fold is never seen."""
    losses = torch.stack(
        [
            torch.stack(pairs[min(outer, inner), max(outer, inner), inner])
            for inner in range(len(folds.rows))
            if inner != outer
        ]
    )
    return RIDGES[int(losses.sum(0).argmin())]


def inner_losses(folds: Moments) -> dict[tuple[int, int, int], list[Tensor]]:
    """Residuals at every strength, trained without a pair of folds, tested on one of the pair."""
    count = len(folds.rows)
    everything = folds.total(list(range(count)))
    losses: dict[tuple[int, int, int], list[Tensor]] = {}
    for first in range(count):
        for second in range(first + 1, count):
            train = trained(everything.minus(folds.of(first)).minus(folds.of(second)))
            basis = eigen(train.centred)
            outer = basis.target @ basis.target.T
            for tested in (first, second):
                held = recentred(folds.of(tested), train.x_mean, train.t_mean)
                rotated = basis.vectors.T @ held.xx @ basis.vectors
                crossed = basis.vectors.T @ held.xt
                losses[first, second, tested] = []
                for ridge in RIDGES:
                    shrink = shrinkage(basis.values, ridge)
                    linear = (shrink[:, None] * basis.target * crossed).sum()
                    square = shrink @ (rotated * outer) @ shrink
                    losses[first, second, tested].append(held.tt.trace() - 2 * linear + square)
    return losses


def output_moments(held: Moments, *, is_update: bool) -> Tensor:
    """Second moments of y: of t itself, or of x + t where the sums hold the update."""
    if not is_update:
        return held.tt
    return held.xx + held.xt + held.xt.T + held.tt


def score(residual: list[Tensor], total: list[Tensor], *, is_exact: bool = False) -> Score:
    """Pool the groups; nan where the total is 0, for then there is nothing to explain.

    `is_exact` says that the residual is all rounding: it counts as 0, and the score as 1.
    """
    rss, tss = torch.stack(residual), torch.stack(total)
    if is_exact:
        rss = torch.zeros_like(rss)
    if not bool(tss.sum() > 0):
        return Score(float("nan"), None, rss.tolist(), tss.tolist())
    value = float(1 - rss.sum() / tss.sum())
    return Score(value, ratio_interval(rss, tss), rss.tolist(), tss.tolist())


def fit_from_sums(groups: Moments, fold_of: list[int], *, is_update: bool) -> FitResult:
    """All fit scores from per-group sums.

    Cost: (FOLDS choose 2) + 2·FOLDS + 2 symmetric eigenproblems of the inputs' width.
    """
    fold_count = max(fold_of) + 1
    members = [
        [g for g, fold in enumerate(fold_of) if fold == k and groups.rows[g] > 0]
        for k in range(fold_count)
    ]
    if sum(bool(m) for m in members) < 3:
        raise InputError(
            "fit: held-out scores with an inner choice of ridge need units in at least 3 folds; "
            f"got {sum(bool(m) for m in members)}. Give more documents, sequences or images."
        )
    members = [m for m in members if m]
    everything = groups.total([g for m in members for g in m])
    folds = Moments(
        *(torch.stack(parts) for parts in zip(*(groups.total(m) for m in members), strict=True))
    )
    pairs = inner_losses(folds)
    names = ("rss", "rounding", "raw", "update", "scalar", "white_rss", "white")
    sums: dict[str, list[Tensor]] = {name: [] for name in names}
    ranks, ridges = [], []
    for k, groups_of_fold in enumerate(members):
        train = trained(everything.minus(folds.of(k)))
        ridge = chosen_ridge(folds, k, pairs)
        weight = affine_weight(eigen(train.centred), ridge)
        covariance = output_moments(train.centred, is_update=is_update)
        values, vectors = torch.linalg.eigh(covariance)
        kept = values > WHITENED_CUT * values[-1]
        whiten = vectors[:, kept] / values[kept].clamp_min(1e-300).sqrt()
        ranks.append(int(kept.sum()))
        ridges.append(ridge)
        scale = train.centred.xt.trace() / train.centred.xx.trace() if is_update else None
        for g in groups_of_fold:
            held = recentred(groups.of(g), train.x_mean, train.t_mean)
            output = output_moments(held, is_update=is_update)
            crossed = weight.T @ held.xt
            explained = weight.T @ held.xx @ weight
            error = held.tt - crossed - crossed.T + explained
            terms = held.tt.trace() + 2 * crossed.trace().abs() + explained.trace().abs()
            sums["rss"].append(error.trace().clamp_min(0))
            sums["rounding"].append(len(weight) * EPSILON * terms)
            sums["raw"].append(output.trace().clamp_min(0))
            sums["update"].append(held.tt.trace().clamp_min(0))
            sums["white_rss"].append((whiten * (error @ whiten)).sum().clamp_min(0))
            sums["white"].append((whiten * (output @ whiten)).sum().clamp_min(0))
            if scale is not None:
                bare = held.tt.trace() - 2 * scale * held.xt.trace() + scale**2 * held.xx.trace()
                sums["scalar"].append(bare.clamp_min(0))
    # Less than width · eps of the terms it is the difference of is rounding, not residual.
    is_exact = bool(torch.stack(sums["rss"]).sum() <= torch.stack(sums["rounding"]).sum())
    scores = {"raw": score(sums["rss"], sums["raw"], is_exact=is_exact)}
    if is_update:
        scores["beyond"] = score(sums["rss"], sums["scalar"], is_exact=is_exact)
        scores["update"] = score(sums["rss"], sums["update"], is_exact=is_exact)
    scores["whitened"] = score(sums["white_rss"], sums["white"])
    full = trained(everything)
    basis = eigen(full.centred)
    total = output_moments(full.centred, is_update=is_update)
    in_sample = residual_sum(full.centred, affine_weight(basis, 0.0)).clamp_min(0)
    weight = affine_weight(basis, sorted(ridges)[len(ridges) // 2])
    bias = full.t_mean - full.x_mean @ weight
    if is_update:
        weight = weight + torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
    return FitResult(
        scores=scores,
        residual_alone=score(sums["scalar"], sums["raw"]) if is_update else None,
        procrustes=float(1 - in_sample / total.trace()),
        affine=AffineMap(weight, bias),
        rank=min(ranks),
        ridges=ridges,
        rows=int(everything.rows),
        leading_share=float(total.diagonal().max() / total.trace()),
    )


class Fit(Metric):
    r"""Held-out R² of the best affine map from x to y.

    .. math:: R^2 = 1 - \sum_n \|y_n - A x_n - b\|^2 / \sum_n \|y_n - \bar y\|^2

    with A, b and the mean taken from the other folds. `beyond` divides by the residual of the
    best scalar multiple of the centred input instead; `update` by the sum of y - x; `whitened`
    weighs every direction of y alike, on those with eigenvalue above 1e-9 of the largest.

    Update: ``x`` (rows, d), ``y`` (rows, m), floating, and ``group``, the group of the units
    that the rows came from; group g belongs to fold g mod FOLDS. All rows of a unit go to
    one group. Half precision is promoted to float64.

    Compute: `FitResult`. No unit. 1 is affine; 0 is no better than the mean (for `beyond`, than
    scaling the input); held-out values may be negative.

    Centres are subtracted before any product: pass rough means of x and y, the same ones on
    every worker, else states cannot be added. Memory: GROUPS · (d² + dm + m²) float64.

    Raises: `InputError` for shapes that do not match, a group out of range, and for units in
    fewer than three folds.

    Estimator: slightly pessimistic for a fit on all rows, as any held-out score; see
    `ratio_interval` for its interval. Source: Hastie et al. 2009, sec. 7.10; the in-sample
    score is Razzhigaev et al. 2024, arXiv:2405.12250, eq. 1.
    """

    full_state_update = False
    higher_is_better = True

    def __init__(self, x_centre: Tensor, y_centre: Tensor) -> None:
        super().__init__()
        self.is_update = x_centre.shape == y_centre.shape
        self.register_buffer("x_centre", x_centre.double())
        self.register_buffer("y_centre", y_centre.double())
        d, m = len(x_centre), len(y_centre)
        for name, shape in zip(
            Moments._fields, ((), (d,), (m,), (d, d), (d, m), (m, m)), strict=True
        ):
            zeros = torch.zeros((GROUPS, *shape), dtype=torch.float64)
            self.add_state(f"sum_{name}", zeros, dist_reduce_fx="sum")

    def update(self, x: Tensor, y: Tensor, group: int) -> None:
        """Add the rows of one group."""
        if not 0 <= group < GROUPS:
            raise InputError(
                f"fit: `group` must lie in 0..{GROUPS - 1}; got {group}. "
                "Hash units into groups with `secant.engine.plan.group_of`."
            )
        check_rows(x, y)
        x, y = x.double(), y.double()
        target = y - x - (self.y_centre - self.x_centre) if self.is_update else y - self.y_centre
        batch = moments(x - self.x_centre, target)
        for name, value in zip(Moments._fields, batch, strict=True):
            getattr(self, f"sum_{name}")[group] += value

    def compute(self) -> FitResult:
        """Solve; the map returned is for rows as they came, not centred."""
        sums = Moments(*(getattr(self, f"sum_{name}") for name in Moments._fields))
        fold_of = [g % FOLDS for g in range(GROUPS)]
        result = fit_from_sums(sums, fold_of, is_update=self.is_update)
        weight, bias = result.affine
        shifted = AffineMap(weight, bias + self.y_centre - self.x_centre @ weight)
        return result._replace(affine=shifted)
