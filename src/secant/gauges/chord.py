"""Chord: how far a map leaves the straight line between two of its values.

Holds: the functions ``chord_sums`` and ``chord_from_sums`` and their gauge ``Chord``.
May import: torch, torchmetrics, ``secant.errors``, ``secant.gauges`` (_root_ratio, _shapes).
"""

import torch
from torch import Tensor
from torchmetrics import Metric

from secant.errors import InputError
from secant.gauges._root_ratio import as_doubles, check_input_changes, root_ratio, squared_norm
from secant.gauges._shapes import Scalar


def check_fraction(t: float) -> float:
    """The fraction itself if it lies strictly inside (0, 1)."""
    if not 0 < t < 1:
        raise InputError(
            f"chord: `t` must lie strictly between 0 and 1; got {t}. "
            "Both ends lie on the chord by construction, so choose a point inside, such as 0.5."
        )
    return float(t)


def chord_sums(
    start: Tensor, between: Tensor, end: Tensor, t: float, input_change: Tensor | None = None
) -> tuple[Scalar, Scalar]:
    """Squared bend and squared scaled chord, summed over the batch, in float64.

    With ``input_change`` (x₁ - x₀) the chord is that of F(x) - x; the bend is the same.
    """
    t = check_fraction(t)
    start_, between_, end_ = as_doubles("chord", start=start, between=between, end=end)
    chord = end_ - start_
    bend = squared_norm(between_ - start_ - t * chord)
    if input_change is not None:
        _, change = as_doubles("chord", end=end, input_change=input_change)
        chord = chord - change
    return bend, squared_norm(t * (1 - t) * chord)


def chord_from_sums(bend: Scalar, chord: Scalar) -> Scalar:
    """Root ratio of the two sums."""
    return root_ratio("chord", bend, chord)


class Chord(Metric):
    r"""Bend at the fraction t of a chord, relative to t(1-t) times the chord.

    .. math:: \sqrt{\frac{\sum_n \|F(x_t) - (1-t) F(x_0) - t F(x_1)\|^2}
                         {\sum_n \|t (1-t) (F(x_1) - F(x_0))\|^2}}

    With ``is_beyond`` the residual's share leaves the denominator, which becomes
    ``(F(x_1) - x_1) - (F(x_0) - x_0)``: a residual path then cannot flatter the reading.

    Update: ``start``, ``between``, ``end``, the values F(x_0), F(x_t), F(x_1); real
    float, one shape, usually ``(batch, *features)``; with ``is_beyond`` also
    ``input_change``, x_1 - x_0, in that shape.

    Compute: scalar, float64, no unit. An affine map gives 0, but 0 does not prove one;
    1 is a bend as long as t(1-t) times the chord. For x² it is \|x_1 - x_0\| / \|x_1 + x_0\|
    at every t. Non-finite values give nan. A ratio estimator: consistent, biased by order
    1/n; its standard error is found by resampling the sums of independent units.

    Raises: `InputError` if t is not inside (0, 1), shapes differ, a tensor is not real
    float, ``input_change`` is missing or unwanted, or every chord has length 0.

    Source: after Zhou et al. 2023, arXiv:2307.08286; in weights Frankle et al. 2020,
    arXiv:1912.05671; normalisation ours.
    """

    full_state_update = False
    higher_is_better = False
    bend: Tensor
    chord: Tensor

    def __init__(self, t: float = 0.5, *, is_beyond: bool = False) -> None:
        super().__init__()
        self.t = check_fraction(t)
        self.is_beyond = is_beyond
        for name in ("bend", "chord"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self, start: Tensor, between: Tensor, end: Tensor, input_change: Tensor | None = None
    ) -> None:
        """Add a batch."""
        check_input_changes("chord", self.is_beyond, input_change=input_change)
        bend, chord = chord_sums(start, between, end, self.t, input_change)
        self.bend += bend
        self.chord += chord

    def compute(self) -> Scalar:
        """The reading over all batches so far."""
        return chord_from_sums(self.bend, self.chord)
