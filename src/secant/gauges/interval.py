"""Confidence intervals for a held-out R2 and for a difference, from sums over groups of units.

Holds: ``ratio_interval``, ``difference_interval``, ``jackknife_interval``, and the numbers of
folds, groups and units they were checked with.
May import: torch, numpy, scipy, jaxtyping, ``secant.errors``.
"""

import math

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray
from scipy.stats import t as student
from torch import Tensor

from secant.errors import InputError

FOLDS = 5
"""Folds of whole units; each fold is predicted by the map fitted on the other four."""

GROUPS = 10
"""Groups of whole units, two to a fold: the fewest that still split every fold.

Few groups leave many units in each, so their sums are nearer to normal; five (a fold each) would
cost a Student quantile of 2.8 rather than 2.3 and so a fifth more width.
"""

FEWEST_UNITS = 50
"""Units from which the intervals were checked; see the limits of `ratio_interval`.

With 20 to 40, four populations of the test were covered 90 to 95 % (600 draws each).
"""

LARGEST_SQUARED = 1e150
"""Beyond it the square of a number may leave float64."""


def few_units(units: int) -> list[str]:
    """The warning of a sample too small for its intervals, if it is."""
    if units >= FEWEST_UNITS:
        return []
    return [
        f"Few units: {units}. At least {FEWEST_UNITS} are wanted: with fewer, the intervals "
        "cover the truth less often than 95 %. Give more documents, images or rows."
    ]


def jackknife_interval(
    value: float, left_out: Float64[Tensor, " groups"], level: float = 0.95
) -> tuple[float, float]:
    """Interval of any smooth statistic from its values with one group of units left out each.

    The jackknife over groups with a Student quantile, groups less one; nan where a value is not
    finite.
    """
    spread = _spread(left_out.detach().cpu().numpy())
    reach = float(student.ppf((1 + level) / 2, len(left_out) - 1)) * spread
    return value - reach, value + reach


def ratio_interval(residual: Tensor, total: Tensor, level: float = 0.95) -> tuple[float, float]:
    """Confidence interval for ``1 - sum(residual) / sum(total)``, a held-out R2.

    ``residual[g]`` and ``total[g]`` are sums of squares over the held-out rows of group ``g``:
    about the prediction of the map, and about the training mean, both fitted without the fold of
    ``g``. No unit (document) may lie in two groups; groups should hold about as many units each,
    and ``GROUPS`` of them over ``FOLDS`` folds is what was checked. The interval is for the R2 in
    the population of the maps fitted on these units, not for maps refitted on fresh units.

    With ``R = sum(residual)``, ``T = sum(total)``, ``a = log(R / T)`` and the leave-one-group-out
    values ``a_g = log((R - residual[g]) / (T - total[g]))``::

        se^2 = (G - 1) / G * sum((a_g - mean(a_g))^2)          the jackknife of a log ratio
        df   = T^2 / sum(total^2) - 1                          effective groups, less one
        low, high = 1 - exp(a + q * se), 1 - exp(a - q * se)   q: Student t, df, (1 + level) / 2

    ``df`` is ``G - 1`` for groups of equal total, and less where a few heavy units carry the sum.

    Where se exceeds 1, one group carries most of the residual and the logarithm is far from
    straight over the spread: the same jackknife is then taken of R / T itself, cut at 1.

    Args:
        residual: shape ``(G,)``, not negative, ``G >= 3``.
        total: shape ``(G,)``, not negative.
        level: the wanted coverage, inside (0, 1).

    Returns:
        ``(low, high)``, ``high <= 1``. ``(nan, nan)`` if any entry is nan or infinite or if
        ``total`` sums to zero: R2 is then not defined. ``(1, 1)`` if ``R / T`` is zero to float64
        rounding (an affine map). ``(-inf, 1)`` if a single group holds all of ``R`` or of ``T``:
        the spread is then unknown.

    Raises:
        InputError: shapes that differ or are not one-dimensional, fewer than three groups, a
            negative entry, or a level outside (0, 1).

    Limits: the folds share training units, which adds a variance of the order of (inputs / units)
    that no function of these sums can see (Bengio and Grandvalet 2004). At 50 units nominal 95 %
    covers about 91 to 94 % in simulation; see ``tests/gauges/test_interval.py``. The effective
    df was adopted after plain ``G - 1`` fell short (0.90 to 0.92 at 50 units, heavy tails) on
    those same populations; the test's second set of populations was fixed afterwards, before any
    of them was run, and all of it covered 93 to 96 %.

    Source: Cochran 1977, Sampling Techniques, ch. 6 (jackknife of a ratio); Bayle et al. 2020,
    arXiv:2007.12671 (pooled variance for the cross-validated error of the fitted maps); Carter,
    Schnepel and Steigerwald 2017, Rev. Econ. Stat. 99 (effective number of clusters; their
    formula, reduced here to shares of the total).
    """
    _check_groups(residual, total, level)
    groups = residual.shape[0]
    r = residual.detach().cpu().double().numpy()
    t = total.detach().cpu().double().numpy()
    if not (np.isfinite(r).all() and np.isfinite(t).all()):
        return math.nan, math.nan
    _check_signs(r, t)
    whole = float(t.sum())
    if whole == 0.0:
        return math.nan, math.nan
    r, t = r / whole, t / whole
    ratio = float(r.sum())
    if 1.0 - ratio == 1.0:
        return 1.0, 1.0
    # Sums of the others, not the sum less one: no cancellation where one group is nearly all.
    others = ~np.eye(groups, dtype=bool)
    r_rest, t_rest = others @ r, others @ t
    if r_rest.min() <= 0.0 or t_rest.min() <= 0.0:
        return -math.inf, 1.0
    leave_out = np.log(r_rest / t_rest)
    spread = _spread(leave_out)
    # 1 / sum(t^2) - 1 with sum(t) = 1, written so that it stays above zero in rounding.
    freedom = float((t * t_rest).sum() / (t * t).sum())
    if spread > 1.0:
        parts = r_rest / t_rest
        spread = _spread(parts)
        reach = float(student.ppf((1.0 + level) / 2.0, freedom)) * spread
        return float(1.0 - ratio - reach), float(min(1.0 - ratio + reach, 1.0))
    reach = float(student.ppf((1.0 + level) / 2.0, freedom)) * spread if spread > 0.0 else 0.0
    with np.errstate(over="ignore"):
        low, high = 1.0 - ratio * np.exp(reach), 1.0 - ratio * np.exp(-reach)
    return float(low), float(high)


def difference_interval(
    residual_a: Tensor,
    total_a: Tensor,
    residual_b: Tensor,
    total_b: Tensor,
    level: float = 0.95,
    *,
    is_root: bool = False,
) -> tuple[float, float]:
    """Confidence interval for the score of ``a`` less that of ``b``, paired by group.

    A score is ``1 - sum(residual) / sum(total)``, a held-out R2; with ``is_root`` it is
    ``sqrt(sum(residual) / sum(total))``, the root ratio of chord, tangent and sum. Group ``g`` must
    hold the same units in both: what the units share then cancels, so the interval is narrower
    than one made of the two intervals wherever the scores rise and fall together.

    With ``d_g`` the difference of the scores that leave group ``g`` out::

        se^2 = (G - 1) / G * sum((d_g - mean(d_g))^2)          the jackknife
        df   = the smaller of T^2 / sum(total^2) - 1           as in `ratio_interval`
        low, high = d -+ q * se                                q: Student t, df, (1 + level) / 2

    No logarithm is taken, unlike in `ratio_interval`: a difference has no sign to keep.

    Args:
        residual_a, total_a: shape ``(G,)``, not negative, ``G >= 3``.
        residual_b, total_b: the same shape, over the same groups.
        level: the wanted coverage, inside (0, 1).
        is_root: whether the scores are root ratios rather than R2.

    Returns:
        ``(low, high)``. ``(0, 0)`` for two equal sets of sums. ``(nan, nan)`` if any entry is nan
        or infinite or a total sums to zero. ``(-inf, inf)`` if a single group holds all of one
        total: the spread is then unknown.

    Raises:
        InputError: as `ratio_interval`, and shapes that differ between ``a`` and ``b``.

    Limits: as `ratio_interval`. Checked in ``tests/gauges/test_interval.py``.

    Source: Efron and Stein 1981, Ann. Stat. 9 (jackknife variance); the effective degrees of
    freedom are those of `ratio_interval`.
    """
    if residual_a.shape != residual_b.shape:
        raise InputError(
            "expected the sums of both scores over the same groups, "
            f"got {tuple(residual_a.shape)} and {tuple(residual_b.shape)}; "
            "take both from surveys of one plan"
        )
    sides = []
    for residual, total in ((residual_a, total_a), (residual_b, total_b)):
        _check_groups(residual, total, level)
        sides.append(tuple(x.detach().cpu().double().numpy() for x in (residual, total)))
    if not all(np.isfinite(x).all() for side in sides for x in side):
        return math.nan, math.nan
    for r, t in sides:
        _check_signs(r, t)
    if any(float(t.sum()) == 0.0 for _, t in sides):
        return math.nan, math.nan
    groups = residual_a.shape[0]
    others = ~np.eye(groups, dtype=bool)
    point, left_out, freedom = [], [], math.inf
    for r, t in sides:
        whole = float(t.sum())
        r, t = r / whole, t / whole
        rest = others @ t
        if rest.min() <= 0.0:
            return -math.inf, math.inf
        ratio, ratios = r.sum(), others @ r / rest
        point.append(float(np.sqrt(ratio) if is_root else 1.0 - ratio))
        left_out.append(np.sqrt(ratios) if is_root else 1.0 - ratios)
        freedom = min(freedom, float((t * rest).sum() / (t * t).sum()))
    gaps = left_out[0] - left_out[1]
    spread = _spread(gaps)
    reach = float(student.ppf((1.0 + level) / 2.0, freedom)) * spread if spread > 0.0 else 0.0
    difference = point[0] - point[1]
    return difference - reach, difference + reach


def _spread(left_out: NDArray[np.float64]) -> float:
    """The jackknife's standard error, from the values that leave each group out.

    Scores of chaotic maps may be so far below 0 that their squares leave float64: they are scaled
    by a power of two, which changes no bit of the others. nan if one is not finite.
    """
    if not np.isfinite(left_out).all():
        return math.nan
    groups, top = len(left_out), float(np.abs(left_out).max())
    exponent = math.frexp(top)[1] if top > LARGEST_SQUARED else 0
    scaled = np.ldexp(left_out, -exponent)
    spread = np.sqrt((groups - 1) / groups * ((scaled - scaled.mean()) ** 2).sum())
    return float(np.ldexp(spread, exponent))


def _check_groups(residual: Tensor, total: Tensor, level: float) -> None:
    """Shapes and level that an interval can be taken of, or `InputError`."""
    if residual.ndim != 1 or residual.shape != total.shape:
        raise InputError(
            "expected residual and total of one shape (groups,), "
            f"got {tuple(residual.shape)} and {tuple(total.shape)}; pass one sum a group in each"
        )
    groups = residual.shape[0]
    if groups < 3:
        raise InputError(
            f"expected at least 3 groups, got {groups}; split the units into more groups"
        )
    if not 0.0 < level < 1.0:
        raise InputError(f"expected a level inside (0, 1), got {level}; pass for example 0.95")


def _check_signs(r: Float64[np.ndarray, " groups"], t: Float64[np.ndarray, " groups"]) -> None:
    """Sums of squares are not negative, or `InputError`."""
    lowest = min(float(r.min()), float(t.min()))
    if lowest < 0.0:
        raise InputError(
            f"expected sums of squares, got the negative entry {lowest}; "
            "sum squares directly, or set what rounding left below zero to 0"
        )
