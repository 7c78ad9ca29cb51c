"""Splines as activations: a value at each knot, trained; straight on beyond the last.

Holds: the function ``spline`` and the module ``Spline``.
May import: torch, ``secant.errors``, ``secant.nn`` (units, starts).
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from secant.errors import InputError
from secant.nn.starts import Start, span_of, started
from secant.nn.units import filled, in_float32, per_unit


def spline(
    x: Tensor, knots: Tensor, values: Tensor, *, is_cubic: bool = False, dim: int = -1
) -> Tensor:
    """The curve of each unit along ``dim``: ``values`` (units, knots) at ``knots`` (knots,).

    Piecewise linear, or cubic Hermite with the slopes that Catmull and Rom give: at a knot that
    of the line through its two neighbours, at an end that of the last piece. Outside the knots
    it goes straight on. Linear pieces are exact where knots and values are: a knot's own value
    is given back bit for bit. At a knot the derivative is that of the piece to its right.
    """
    units, count = values.shape
    piece = torch.bucketize(x.detach().contiguous(), knots, right=True) - 1
    piece = piece.clamp(0, count - 2)
    first = torch.arange(units, device=x.device) * count
    at = per_unit(first, x, dim) + piece
    flat = values.flatten()
    left, right = flat[at], flat[at + 1]
    width = knots[piece + 1] - knots[piece]
    along = x - knots[piece]
    slope = (right - left) / width
    if not is_cubic:
        return left + along * slope
    chords = values.diff(dim=1) / knots.diff()
    middle = (values[:, 2:] - values[:, :-2]) / (knots[2:] - knots[:-2])
    slopes = torch.cat([chords[:, :1], middle, chords[:, -1:]], dim=1).flatten()
    begin, end = slopes[at], slopes[at + 1]
    share = along / width
    bend = share * (1 - share) * ((1 - share) * (begin - slope) - share * (end - slope)) * width
    inside = left + along * slope + bend
    outside = torch.where(along < 0, left + along * begin, right + (along - width) * end)
    return torch.where((along < 0) | (along > width), outside, inside)


@final
class Spline(nn.Module):
    r"""An activation given by its values at even knots, each trainable.

    ``knots`` values on ``span`` (ends included), at first those of ``start``, a name or a
    function. A piecewise linear start is followed exactly if its kinks are knots (ReLU with an
    odd number on an even span); of a smooth one the largest deviation is about
    max |f''| h² / 8 for linear pieces, h apart, and smaller for cubic ones. Outside the span it
    goes straight on.

    Parameter: ``values``, (units, knots). Buffer: ``places``, (knots,).

    Numerics: the derivative jumps at the knots of linear pieces, and there is that to the right;
    cubic ones have none. Inputs must be finite: a level end times infinity is nan.

    Raises: `InputError` for fewer than 2 knots (3 if cubic), a span without length, an unknown
    name, and for an input without ``units`` places along ``dim``.

    Source: piecewise linear units, Agostinelli et al. 2014, arXiv:1412.6830; splines a unit, Liu
    et al. 2024, arXiv:2404.19756.
    """

    places: Tensor

    def __init__(
        self,
        units: int = 1,
        *,
        start: Start = "relu",
        knots: int = 33,
        span: tuple[float, float] = (-4.0, 4.0),
        is_cubic: bool = False,
        dim: int = -1,
    ) -> None:
        super().__init__()
        fewest = 3 if is_cubic else 2
        if knots < fewest:
            raise InputError(
                f"Spline: `knots` must be at least {fewest}; got {knots}. Give more knots."
            )
        self.dim, self.is_cubic = dim, is_cubic
        places = torch.linspace(*span_of(span), knots, dtype=torch.float64)
        kept = torch.get_default_dtype()
        self.values = filled(started(start)(places).detach().to(kept), units, knots)
        self.register_buffer("places", places.to(kept))

    def forward(self, x: Tensor) -> Tensor:
        """The curve at each entry."""
        wide = in_float32(x)
        out = spline(
            wide, self.places.to(wide), self.values.to(wide), is_cubic=self.is_cubic, dim=self.dim
        )
        return out.to(x.dtype)

    def extra_repr(self) -> str:
        """What it was made with."""
        units, knots = self.values.shape
        ends = self.places[[0, -1]].tolist()
        return f"units={units}, knots={knots}, span=({ends[0]:g}, {ends[1]:g})"
