"""Rational activations: one polynomial over another, fitted to a function and then trained on.

Holds: the functions ``rational`` and ``fit_rational``, and the module ``Rational``.
May import: torch, jaxtyping, ``secant.errors``, ``secant.nn`` (units, starts).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from secant.errors import InputError
from secant.nn.starts import Start, span_of, started
from secant.nn.units import filled, in_float32, per_unit

POINTS: Final = 1001
STEPS: Final = 300


def rational(x: Tensor, numerator: list[Tensor], denominator: list[Tensor]) -> Tensor:
    """(p0 + p1 x + ...) / (1 + |q1 x + q2 x² + ...|), coefficients that broadcast against x."""
    top = torch.zeros_like(x)
    for one in reversed(numerator):
        top = top * x + one
    low = torch.zeros_like(x)
    for one in reversed(denominator):
        low = (low + one) * x
    return top / (1 + low.abs())


def _residual_and_slopes(
    at: Float64[Tensor, " coefficients"],
    powers: Float64[Tensor, "points powers"],
    target: Float64[Tensor, " points"],
    top: int,
    low: int,
) -> tuple[Float64[Tensor, " points"], Float64[Tensor, "points coefficients"]]:
    """What the rational function misses, and its derivative by each coefficient."""
    inner = powers[:, 1 : low + 1] @ at[top + 1 :]
    under = 1 + inner.abs()
    value = powers[:, : top + 1] @ at[: top + 1] / under
    by_top = powers[:, : top + 1] / under[:, None]
    by_low = -(value * inner.sign() / under)[:, None] * powers[:, 1 : low + 1]
    return value - target, torch.cat([by_top, by_low], dim=1)


def _descend(
    at: Float64[Tensor, " coefficients"],
    powers: Float64[Tensor, "points powers"],
    target: Float64[Tensor, " points"],
    top: int,
    low: int,
) -> tuple[Float64[Tensor, " coefficients"], float]:
    """Levenberg and Marquardt's least squares from a start: coefficients and the sum of squares."""
    damping = 1e-3
    residual, slopes = _residual_and_slopes(at, powers, target, top, low)
    error = float(residual.square().sum())
    for _ in range(STEPS):
        gram = slopes.T @ slopes
        damped = gram + damping * torch.diag(gram.diagonal().clamp_min(1e-12))
        tried = at - torch.linalg.solve(damped, slopes.T @ residual)
        new_residual, new_slopes = _residual_and_slopes(tried, powers, target, top, low)
        new_error = float(new_residual.square().sum())
        if new_error < error:
            at, residual, slopes, error = tried, new_residual, new_slopes, new_error
            damping = max(damping / 3, 1e-12)
        else:
            damping *= 4
            if damping > 1e12:
                break
    return at, error


def fit_rational(
    function: Callable[[Tensor], Tensor],
    degrees: tuple[int, int] = (5, 4),
    span: tuple[float, float] = (-3.0, 3.0),
) -> tuple[Float64[Tensor, " top"], Float64[Tensor, " low"], float]:
    """Least-squares coefficients of `rational` for a function on a span, in float64.

    Returns the numerator's (degree + 1), the denominator's (degree) and the largest deviation on
    the 1,001 even points of the fit. The problem is not convex: of descents from denominators
    that grow like 1 + |x|^j, each j in turn, and from a constant one, the best is kept. A
    second run gives the same to rounding.

    Raises: `InputError` for negative degrees, a span without length, or a function that is not
    finite on it.
    """
    top, low = degrees
    if top < 0 or low < 0:
        raise InputError(
            f"fit_rational: `degrees` must not be negative; got {degrees}. The paper has (5, 4)."
        )
    x = torch.linspace(*span_of(span), POINTS, dtype=torch.float64)
    target = function(x).detach()
    if not bool(torch.isfinite(target).all()):
        raise InputError(
            f"fit_rational: the function must be finite on {span}; it is not. Narrow the span."
        )
    # Powers of x over the span's reach are all of size 1, which keeps the equations well posed.
    reach = float(x.abs().max())
    powers = (x / reach)[:, None] ** torch.arange(max(top, low) + 1)
    best: Tensor | None = None
    least = float("inf")
    for lead in range(low + 1):
        guess = torch.zeros(top + 1 + low, dtype=torch.float64)
        if lead:
            guess[top + lead] = 1.0
        under = 1 + (powers[:, 1 : low + 1] @ guess[top + 1 :]).abs()
        basis = powers[:, : top + 1] / under[:, None]
        guess[: top + 1] = torch.linalg.lstsq(basis, target[:, None]).solution[:, 0]
        found, error = _descend(guess, powers, target, top, low)
        if error < least:
            best, least = found, error
    assert best is not None
    residual, _ = _residual_and_slopes(best, powers, target, top, low)
    scale = reach ** -torch.arange(max(top, low) + 1, dtype=torch.float64)
    over, under = best[: top + 1] * scale[: top + 1], best[top + 1 :] * scale[1 : low + 1]
    return over, under, float(residual.abs().max())


@final
class Rational(nn.Module):
    r"""A Padé activation unit, in the form whose denominator is never below 1.

    .. math:: y = \frac{p_0 + p_1 x + \dots + p_m x^m}{1 + |q_1 x + \dots + q_n x^n|}

    It starts as the least-squares fit of ``start``, a name or a function, on ``span``; the
    largest deviation there is ``start_error`` (ReLU with degrees (5, 4) on (-3, 3): 0.034, at
    the kink). Outside it grows like x^(m - n) and follows ``start`` no longer.

    Parameters: ``numerator`` (units, m + 1), ``denominator`` (units, n).

    Numerics: the derivative jumps where q_1 x + ... is 0, as at x = 0; a denominator of zeros alone
    (``start="identity"``) has derivative 0 and does not train. In float32 the powers are
    infinite, and the output nan, past some 5e7 with degree 5.

    Raises: `InputError` as `fit_rational`, for an unknown name, and for an input without
    ``units`` places along ``dim``. Cost: the fit, some tenths of a second, once.

    Source: Molina, Schramowski and Kersting 2019, arXiv:1907.06732, equation 3 (safe form).
    """

    def __init__(
        self,
        units: int = 1,
        *,
        start: Start = "leaky_relu",
        degrees: tuple[int, int] = (5, 4),
        span: tuple[float, float] = (-3.0, 3.0),
        dim: int = -1,
    ) -> None:
        super().__init__()
        self.dim, self.span = dim, span
        top, low, self.start_error = fit_rational(started(start), degrees, span)
        kept = torch.get_default_dtype()
        self.numerator = filled(top.to(kept), units, len(top))
        self.denominator = filled(low.to(kept), units, len(low))

    def forward(self, x: Tensor) -> Tensor:
        """The quotients."""
        top, low = (
            [per_unit(one, x, self.dim) for one in part.unbind(1)]
            for part in (self.numerator, self.denominator)
        )
        return rational(in_float32(x), top, low).to(x.dtype)
