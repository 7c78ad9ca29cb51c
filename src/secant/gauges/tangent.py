"""Tangent: how far a map leaves its first-order expansion, and how soon.

Holds: the functions ``tangent_sums`` and ``tangent_from_sums``, their gauge ``Tangent``,
``radius`` with its result ``Radius``, and ``radius_bounds``.
May import: torch, torchmetrics, ``secant.errors``, ``secant.gauges`` (_root_ratio, _shapes).
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric

from secant.errors import InputError
from secant.gauges._root_ratio import as_doubles, check_input_changes, root_ratio, squared_norm
from secant.gauges._shapes import Scalar


def tangent_sums(
    base: Tensor, moved: Tensor, jvp: Tensor, input_change: Tensor | None = None
) -> tuple[Scalar, Scalar]:
    """Squared departure from the tangent and squared change, summed over the batch, in float64.

    With ``input_change`` (ρv) the change is that of F(x) - x; the departure is the same.
    """
    base_, moved_, jvp_ = as_doubles("tangent", base=base, moved=moved, jvp=jvp)
    change = moved_ - base_
    departure = squared_norm(change - jvp_)
    if input_change is not None:
        _, step = as_doubles("tangent", moved=moved, input_change=input_change)
        change = change - step
    return departure, squared_norm(change)


def tangent_from_sums(departure: Scalar, change: Scalar) -> Scalar:
    """Root ratio of the two sums."""
    return root_ratio("tangent", departure, change)


class Tangent(Metric):
    r"""Departure from the first-order expansion, relative to the whole change.

    .. math:: \sqrt{\frac{\sum_n \|F(x + \rho v) - F(x) - \rho J v\|^2}
                         {\sum_n \|F(x + \rho v) - F(x)\|^2}}

    With ``is_beyond`` the residual's share leaves the denominator, which becomes
    ``F(x + ρv) - F(x) - ρv``: a residual path then cannot flatter the reading.

    Update: ``base``, ``moved``, ``jvp``: F(x), F(x + ρv) and ρJv, the step length
    included; real float, one shape, usually ``(batch, *features)``; with ``is_beyond``
    also ``input_change``, ρv, in that shape.

    Compute: scalar, float64, no unit. 0 is a map that follows its tangent along these
    steps; 1 is an error as large as the change, as of a tangent that predicts no change.
    For x² it is \|h\| / \|2x + h\|, h = ρv. Non-finite values give nan. A ratio
    estimator: consistent, biased by order 1/n; its standard error is found by resampling
    the sums of independent units.

    Raises: `InputError` if shapes differ, a tensor is not real float, ``input_change``
    is missing or unwanted, or every change has length 0.

    Source: lazy training, Chizat et al. 2019, arXiv:1812.07956; normalisation ours.
    """

    full_state_update = False
    higher_is_better = False
    departure: Tensor
    change: Tensor

    def __init__(self, *, is_beyond: bool = False) -> None:
        super().__init__()
        self.is_beyond = is_beyond
        for name in ("departure", "change"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self, base: Tensor, moved: Tensor, jvp: Tensor, input_change: Tensor | None = None
    ) -> None:
        """Add a batch."""
        check_input_changes("tangent", self.is_beyond, input_change=input_change)
        departure, change = tangent_sums(base, moved, jvp, input_change)
        self.departure += departure
        self.change += change

    def compute(self) -> Scalar:
        """The reading over all batches so far."""
        return tangent_from_sums(self.departure, self.change)


@dataclass(frozen=True)
class Radius:
    """The step length up to which a curve stays at or below a threshold.

    ``value`` is None when censored, nan when the curve is not finite before it passes.
    ``lower`` and ``upper`` bracket it on the grid: ``lower`` is 0 when the curve has passed
    at the grid's start already, ``upper`` is None when it has not passed by the grid's end.
    """

    value: float | None
    is_censored: bool
    lower: float
    upper: float | None
    threshold: float


def radius(rhos: Sequence[float], values: Sequence[float], threshold: float = 0.1) -> Radius:
    """Smallest ρ at which the curve passes the threshold, a power law between grid points.

    Smooth maps read in proportion to ρ and piecewise-linear ones to its root while ρ is small, so
    a power law is exact there on any grid. From a point that reads 0 it is linear in log ρ.
    ``rhos`` is a logarithmic grid (positive, increasing), ``values`` the gauge at each.
    A curve above the threshold at the first point or never above it is censored.
    """
    rhos, values = [float(rho) for rho in rhos], [float(value) for value in values]
    if not rhos or len(rhos) != len(values):
        raise InputError(
            "radius: `rhos` and `values` must have one length, at least 1; "
            f"got {len(rhos)} and {len(values)}. Pass one value for each step length."
        )
    edges = [0.0, *rhos]
    is_grid = all(low < high for low, high in zip(edges, rhos, strict=False))
    if not is_grid or not math.isfinite(rhos[-1]):
        raise InputError(
            f"radius: `rhos` must be positive, finite and increasing; got {rhos}. "
            "Sort them with their values, or build them with `torch.logspace`."
        )
    if not 0 < threshold < math.inf:
        raise InputError(
            f"radius: `threshold` must be positive and finite; got {threshold}. "
            "Pass a fraction of the change, such as 0.1."
        )
    hole = next((i for i, value in enumerate(values) if not math.isfinite(value)), len(values))
    finite = [value if math.isfinite(value) else -math.inf for value in values]
    first = next((i for i, value in enumerate(finite) if value > threshold), None)
    upper = None if first is None else rhos[first]
    if hole < (len(values) if first is None else first):
        return Radius(math.nan, False, edges[hole], upper, threshold)
    if first is None or first == 0:
        lower = rhos[-1] if first is None else 0.0
        return Radius(None, True, lower, upper, threshold)
    before, after = values[first - 1], values[first]
    if before > 0:
        share = math.log(threshold / before) / math.log(after / before)
    else:
        share = (threshold - before) / (after - before)
    low, high = rhos[first - 1], rhos[first]
    return Radius(low * (high / low) ** share, False, low, high, threshold)


def radius_bounds(
    rhos: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
    threshold: float = 0.1,
) -> tuple[float | None, float | None] | None:
    """The ends of a 95 % interval of `radius`: where the curve's own intervals pass the threshold.

    ``lows`` and ``highs`` are the ends of the curve's 95 % intervals at ``rhos``. The curve is
    known to hold up to where its upper ends pass, and to have passed where its lower ends do. An
    interval of the curve at the true radius that covers the threshold gives a pair that covers
    the radius, so the curve's coverage is the pair's; between two points of a coarse grid it is
    higher, for the ends are joined as if both points erred together.

    None is an end that the grid does not show: the upper ends have passed at its start, or the
    lower ends not by its end. A curve that surely holds over the whole grid is at least its end,
    one that surely passed at its start is at most that. No pair at all where an interval is
    missing before its ends pass.

    Source: inversion of a band, as Fieller 1954, J. R. Stat. Soc. B 16, does it for a ratio.
    """
    sooner = radius(rhos, highs, threshold)
    # From a low end of 0 a power law stays low until the next point: nothing says that it rose.
    later = radius(rhos, [max(low, sys.float_info.min) for low in lows], threshold)
    if any(one.value is not None and math.isnan(one.value) for one in (sooner, later)):
        return None
    at_least = rhos[-1] if sooner.is_censored and sooner.upper is None else sooner.value
    at_most = rhos[0] if later.is_censored and later.upper is not None else later.value
    return at_least, at_most
