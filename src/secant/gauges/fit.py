"""Fit: how much of a map the best affine map explains, held out.

Holds: ``Fit``, its result ``FitResult`` and ``AffineMap``, the functions that take sums to them.
May import: torch, torchmetrics, jaxtyping, ``secant.errors``, ``secant.gauges`` (_shapes, moments,
ridge, interval).

Where output and input have one shape, the fit is of the update y - x: an affine map absorbs x,
so its residual is the same, and a ridge then shrinks towards the residual path, not towards 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torchmetrics import Metric

from secant.errors import InputError
from secant.gauges._shapes import Scalar
from secant.gauges.interval import FOLDS, GROUPS, ratio_interval
from secant.gauges.moments import (
    Gram,
    Moments,
    added,
    check_rows,
    crossed,
    gram,
    lengths,
    moments,
    precision_of,
    squared,
    squared_target,
    trained,
    update_moments,
)
from secant.gauges.ridge import (
    Eigenbases,
    chosen_ridges,
    ridge_weight,
)

EPSILON = torch.finfo(torch.float64).eps
WHITENED_CUT = 1e-9  # DESIGN.md: directions kept for `whitened`


class AffineMap(NamedTuple):
    """y ≈ x @ weight + bias."""

    weight: Float64[Tensor, "d m"]
    bias: Float64[Tensor, " m"]


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

    def within(self, other: FitResult) -> dict[str, Score]:
        """This fit's residual over the totals of `other`, a fit of the same rows: raw, beyond."""
        return residual_within(
            [torch.tensor(r, dtype=torch.float64) for r in self.scores["raw"].residual],
            other.scores,
        )


def score(residual: list[Scalar], total: list[Scalar], *, is_exact: bool = False) -> Score:
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


def residual_within(residual: list[Scalar], scores: dict[str, Score]) -> dict[str, Score]:
    """Scores of another map of the same rows: its residual over the totals of `raw`, `beyond`."""
    totals = {name: scores[name].total for name in ("raw", "beyond") if name in scores}
    return {
        name: score(residual, [residual[0].new_tensor(one) for one in total])
        for name, total in totals.items()
    }


class FoldSums(NamedTuple):
    """Held-out sums, one a group, in the order of the folds."""

    rss: list[Scalar]
    rounding: list[Scalar]
    raw: list[Scalar]
    update: list[Scalar]
    scalar: list[Scalar]
    white_rss: list[Scalar]
    white: list[Scalar]


def members_of(rows: Float64[Tensor, " groups"]) -> list[list[int]]:
    """The groups with rows of each fold that has any; group g belongs to fold g mod FOLDS."""
    filled = [g for g, count in enumerate(rows.tolist()) if count > 0]
    members = [[g for g in filled if g % FOLDS == k] for k in range(FOLDS)]
    members = [m for m in members if m]
    if len(members) < 3:
        raise InputError(
            "fit: held-out scores with an inner choice of ridge need units in at least 3 folds; "
            f"got {len(members)}. Give more documents, sequences or images."
        )
    return members


def add_fold(
    sums: FoldSums,
    train: Moments,
    held_out: list[Moments],
    ridge: float,
    bases: Eigenbases,
    product_eps: float,
) -> int:
    """Score one fold: `train` of (x, y), `held_out` by group. Returns the directions kept.

    Each held-out sum is a sum of entries, weighted by matrices made once for the fold: no
    product of matrices is needed group by group.
    """
    is_update = train.x.shape == train.t.shape
    x_mean, y_mean, pair = trained(train)
    target = update_moments(pair) if is_update else pair
    weight = ridge_weight(bases(pair.xx), target.xt, ridge)
    if is_update:
        weight.diagonal().add_(1)
    values, vectors = bases(pair.tt)
    kept = values > WHITENED_CUT * values[-1]
    whiten = vectors[:, kept] / values[kept].clamp_min(1e-300).sqrt()
    inverse = whiten @ whiten.T
    square, white_weight = weight @ weight.T, weight @ inverse
    white_square = white_weight @ weight.T
    scale = pair.xt.trace() / pair.xx.trace()
    for group in held_out:
        x_length, y_length = lengths(group, x_mean, y_mean)
        cross = crossed(weight, group, x_mean, y_mean)
        explained = squared(square, group, x_mean)
        white = squared_target(inverse, group, y_mean)
        white_cross = crossed(white_weight, group, x_mean, y_mean)
        white_explained = squared(white_square, group, x_mean)
        terms = y_length + x_length + 2 * cross.abs() + explained
        sums.rss.append((y_length - 2 * cross + explained).clamp_min(0))
        sums.raw.append(y_length.clamp_min(0))
        sums.white_rss.append((white - 2 * white_cross + white_explained).clamp_min(0))
        sums.white.append(white.clamp_min(0))
        explicable = y_length.clamp_min(0)
        if is_update:
            cross = recentred_trace(group, x_mean, y_mean)
            explicable = (y_length - 2 * cross + x_length).clamp_min(0)
            sums.update.append(explicable)
            sums.scalar.append((y_length - 2 * scale * cross + scale**2 * x_length).clamp_min(0))
        sums.rounding.append(len(weight) * EPSILON * terms + product_eps / 2 * explicable)
    return int(kept.sum())


def recentred_trace(
    sums: Moments, x_mean: Float64[Tensor, " d"], t_mean: Float64[Tensor, " d"]
) -> Scalar:
    """Trace of x't about the means."""
    return sums.xt.trace() - sums.x @ t_mean - x_mean @ sums.t + sums.rows * (x_mean @ t_mean)


def fit_from_sums(groups: Moments, bases: Eigenbases, product_eps: float = EPSILON) -> FitResult:
    """All fit scores from per-group sums of x and y, whose products x'(y - x) had `product_eps`.

    Cost: 2·FOLDS + 1 symmetric eigenproblems of the widths, fewer where `bases` knows them, and
    the factors of `chosen_ridges`.
    """
    is_update = groups.x.shape == groups.t.shape
    members = members_of(groups.rows)
    folds = [added([groups.of(g) for g in of_fold]) for of_fold in members]
    everything = added(folds)
    ridges = chosen_ridges([update_moments(f) for f in folds] if is_update else folds)
    sums = FoldSums([], [], [], [], [], [], [])
    ranks = []
    for k, of_fold in enumerate(members):
        held_out = [groups.of(g) for g in of_fold]
        train = everything.minus(folds[k])
        ranks.append(add_fold(sums, train, held_out, ridges[k], bases, product_eps))
    # Rounding, not residual: less than width · eps of the terms it is the difference of, or than
    # eps / 2 of the target where eps is that of products: three times the largest seen on affine
    # maps of widths 128 to 1,024, of 500 to 40,000 rows, inputs spread alike or 300 to 1.
    is_exact = bool(torch.stack(sums.rss).sum() <= torch.stack(sums.rounding).sum())
    scores = {"raw": score(sums.rss, sums.raw, is_exact=is_exact)}
    if is_update:
        scores["beyond"] = score(sums.rss, sums.scalar, is_exact=is_exact)
        scores["update"] = score(sums.rss, sums.update, is_exact=is_exact)
    scores["whitened"] = score(sums.white_rss, sums.white)
    x_mean, y_mean, full = trained(everything)
    target = update_moments(full) if is_update else full
    basis = bases(full.xx)
    best = ridge_weight(basis, target.xt, 0.0)
    in_sample = (target.tt.trace() - (best * target.xt).sum()).clamp_min(0)
    weight = ridge_weight(basis, target.xt, sorted(ridges)[len(ridges) // 2])
    if is_update:
        weight = weight + torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
    return FitResult(
        scores=scores,
        residual_alone=score(sums.scalar, sums.raw) if is_update else None,
        procrustes=float(1 - in_sample / full.tt.trace()),
        affine=AffineMap(weight, y_mean - x_mean @ weight),
        rank=min(ranks),
        ridges=ridges,
        rows=int(everything.rows),
        leading_share=float(full.tt.diagonal().max() / full.tt.trace()),
    )


def add_sum(metric: Metric, name: str) -> None:
    """A state that is one 0 until its first batch, for zeros of full size would be held twice."""
    metric.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")


def add_to_group(metric: Metric, name: str, group: int, value: Float[Tensor, ...]) -> None:
    """Add a batch's sum to the group's, making room for all groups at the first."""
    state = getattr(metric, name)
    if state.ndim == 0:
        state = value.new_zeros((GROUPS, *value.shape), dtype=torch.float64)
        setattr(metric, name, state)
    state[group] += value


class Fit(Metric):
    r"""Held-out R² of the best affine map from x to y.

    .. math:: R^2 = 1 - \sum_n \|y_n - A x_n - b\|^2 / \sum_n \|y_n - \bar y\|^2

    with A, b and the mean taken from the other folds. `beyond` divides by the residual of the
    best scalar multiple of the centred input instead; `update` by the sum of y - x; `whitened`
    weighs every direction of y alike, on those with eigenvalue above 1e-9 of the largest.

    Update: ``x`` (rows, d), ``y`` (rows, m), floating, or their `Gram` about this gauge's
    centres, and ``group``, the group of the units that the rows came from; group g belongs to
    fold g mod FOLDS. All rows of a unit go to one group. Sums are float64; products of x with
    y - x (with y, of another width) are float32 for wide float32 rows, all others float64.

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
    sum_rows: Tensor
    product_eps: Tensor

    def __init__(self, x_centre: Tensor, y_centre: Tensor) -> None:
        super().__init__()
        self.register_buffer("x_centre", x_centre.double())
        self.register_buffer("y_centre", y_centre.double())
        for name in Moments._fields:
            add_sum(self, f"sum_{name}")
        self.add_state("product_eps", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="max")

    def update(self, x: Tensor | Gram, y: Tensor | Gram, group: int) -> None:
        """Add the rows of one group."""
        if not 0 <= group < GROUPS:
            raise InputError(
                f"fit: `group` must lie in 0..{GROUPS - 1}; got {group}. "
                "Hash units into groups with `secant.engine.plan.group_of`."
            )
        left, right = self.grams(x, y)
        for name, value in zip(Moments._fields, moments(left, right), strict=True):
            add_to_group(self, f"sum_{name}", group, value)
        self.product_eps = self.product_eps.clamp_min(torch.finfo(precision_of(left, right)).eps)

    def grams(self, x: Tensor | Gram, y: Tensor | Gram) -> tuple[Gram, Gram]:
        """Both sides about this gauge's centres; what is a Gram already is taken as it is."""
        check_rows(x.rows if isinstance(x, Gram) else x, y.rows if isinstance(y, Gram) else y)
        return (
            x if isinstance(x, Gram) else gram(x, self.x_centre),
            y if isinstance(y, Gram) else gram(y, self.y_centre),
        )

    def sums(self) -> Moments:
        """The states: sums of x and y about the centres, by group.

        Raises: `InputError` before the first update.
        """
        if self.sum_rows.ndim == 0:
            raise InputError("fit: no rows yet. Call `update` before `compute`.")
        return Moments(*(getattr(self, f"sum_{name}") for name in Moments._fields))

    def compute(self, bases: Eigenbases | None = None) -> FitResult:
        """Solve; the map returned is for rows as they came, not centred.

        `bases` may be shared by the gauges of neighbouring sites, to solve less.
        """
        result = fit_from_sums(self.sums(), bases or Eigenbases(), float(self.product_eps))
        weight, bias = result.affine
        shifted = AffineMap(weight, bias + self.y_centre - self.x_centre @ weight)
        return result._replace(affine=shifted)
