"""Pieces: how many affine maps a piecewise affine curve is made of.

Holds: the function ``affine_pieces`` and its result ``Pieces``.
May import: torch, jaxtyping, ``secant.errors``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from secant.errors import InputError

EPSILON = torch.finfo(torch.float64).eps

SAFETY = 8.0
"""Rounding errors of size r in three values move a change of slope by at most 2 r (1/w + 1/w').

That is the 2; another 4, because r is the largest error seen at some points, not at all.
"""


@dataclass(frozen=True)
class Pieces:
    """The affine pieces of a curve, from left to right; float64.

    `t` (count + 1,): where they begin and end, the ends of the segment among them. `values`
    (count + 1, width): the curve there. `slopes` (count, width): its derivative by t on each
    piece. `bends` (count - 1,): the Euclidean length of the change of slope at each kink, in the
    output's unit per segment.
    """

    t: Float64[Tensor, " points"]
    values: Float64[Tensor, "points width"]
    slopes: Float64[Tensor, "points-1 width"]
    bends: Float64[Tensor, " points-2"]

    @property
    def count(self) -> int:
        """How many pieces, at least 1."""
        return len(self.slopes)

    @property
    def kinks(self) -> Float64[Tensor, " kinks"]:
        """The inner breakpoints, (count - 1,)."""
        return self.t[1:-1]


def affine_pieces(t: Tensor, values: Tensor, rounding: Tensor | None = None) -> Pieces:
    r"""The pieces of the curve through `values` (points, width) at the sorted `t` (points,).

    The curve is affine between neighbours. A point is kept where the slope changes by more than
    rounding can explain: at a point between intervals of width w and w', in any output j,

    .. math:: |s'_j - s_j| > 8 r_j (1/w + 1/w')

    with r the error of `values`, `rounding` (width,) if known and at least 4 float64 epsilons of
    the largest value of that output. The tolerance is thus a bound on what errors of the values
    can do to a difference of slopes, not a share of the slopes: it grows where points are close,
    since there rounding decides. Points go one at a time between neighbours, the least certain
    first, and slopes are taken anew, so of two breakpoints that are one but for rounding (the
    same kink, computed in two units) one stays, and a row of points that all look straight
    cannot hide a kink that they share.

    Unit: a count. 1 is an affine map along this segment, and proves nothing beside it. Kinks
    nearer to each other than rounding can tell (some 1e-14 of the segment) count as one. Exact,
    so without a standard error.

    Raises: `InputError` if the shapes do not match, t does not increase or a number is not
    finite.

    Cost: O(points x width) a round; the rounds grow with the logarithm of the points removed.

    Source: Hanin and Rolnick 2019, arXiv:1901.09021 (pieces along a line); tolerance ours.
    """
    _check(t, values, rounding)
    t, values = t.double(), values.double()
    error = 4 * EPSILON * values.abs().amax(0)
    if rounding is not None:
        error = torch.maximum(error, rounding.double())
    while len(t) > 2:
        removed = _removable(t, values, error)
        if not removed.any():
            break
        t, values = t[~removed], values[~removed]
    slopes = values.diff(dim=0) / t.diff()[:, None]
    bends = torch.linalg.vector_norm(slopes.diff(dim=0), dim=1)
    return Pieces(t, values, slopes, bends)


def _removable(
    t: Float64[Tensor, " points"],
    values: Float64[Tensor, "points width"],
    error: Float64[Tensor, " width"],
) -> Bool[Tensor, " points"]:
    """Points that rounding explains, each less certain than its neighbours."""
    width = t.diff()
    bend = (values.diff(dim=0) / width[:, None]).diff(dim=0).abs()
    allowed = SAFETY * error * (1 / width[1:] + 1 / width[:-1])[:, None]
    # An output that is 0 throughout allows nothing and bends by nothing.
    certainty = torch.where(bend > 0, bend / allowed, 0.0).amax(1)
    if not (certainty <= 1).any():
        return torch.zeros_like(t, dtype=torch.bool)
    # Ties go by a fixed shuffle: in order of t they would fall one a round.
    shuffle = torch.arange(len(certainty), device=t.device) * 2654435761 % 2**32
    by_shuffle = shuffle.argsort()
    order = by_shuffle[certainty[by_shuffle].argsort(stable=True)]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=t.device)
    padded = torch.nn.functional.pad(rank, (1, 1), value=len(rank))
    is_least = (rank < padded[:-2]) & (rank < padded[2:])
    return torch.nn.functional.pad(is_least & (certainty <= 1), (1, 1), value=False)


def _check(t: Tensor, values: Tensor, rounding: Tensor | None) -> None:
    shapes = [tuple(t.shape), tuple(values.shape)]
    is_row = t.ndim == 1 and values.ndim == 2 and len(t) == len(values) >= 2
    if rounding is not None:
        shapes.append(tuple(rounding.shape))
        is_row = is_row and rounding.shape == values.shape[1:]
    if not is_row:
        raise InputError(
            "pieces: `t` (points,), `values` (points, width) and `rounding` (width,) must match, "
            f"with at least 2 points; got {', '.join(map(str, shapes))}. "
            "Pass one row of values a point."
        )
    finite = [tensor for tensor in (t, values, rounding) if tensor is not None]
    if not all(tensor.isfinite().all() for tensor in finite) or not (t.diff() > 0).all():
        raise InputError(
            "pieces: `t` must increase and all numbers be finite; they do not. "
            "Sort the points, drop repeated ones and check the model's output."
        )
