"""Rational functions and splines: their fits, their pieces, what they do outside.

Holds: tests of ``secant.nn.rational``, ``secant.nn.spline`` and ``secant.nn.starts``.
May import: pytest, hypothesis, torch, numpy, scipy, ``secant.nn``.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import CubicHermiteSpline
from scipy.optimize import least_squares

from secant.errors import InputError
from secant.nn import Rational, Spline
from secant.nn.rational import fit_rational, rational
from secant.nn.starts import STARTS

DOUBLE = torch.float64
X = torch.linspace(-3, 3, 1001, dtype=DOUBLE)
PUBLISHED = (
    [0.02996348, 0.61690165, 2.37539147, 3.06608078, 1.52474449, 0.25281987],
    [1.19160814, 4.40811795, 0.91111034, 0.34885983],
)
"""ReLU in the safe form, from the authors' code (repository ml-research/pau)."""


def plain(x, top, low):
    """The safe form in NumPy, by powers."""
    under = 1 + np.abs(sum(q * x ** (j + 1) for j, q in enumerate(low)))
    return sum(p * x**j for j, p in enumerate(top)) / under


@pytest.mark.parametrize("name", STARTS)
def test_the_fit_says_how_far_it_is(name):
    top, low, error = fit_rational(STARTS[name])
    assert (len(top), len(low)) == (6, 4)
    found = plain(X.numpy(), top.tolist(), low.tolist())
    assert np.abs(found - STARTS[name](X).numpy()).max() == pytest.approx(error, abs=1e-9)
    kinked = name in ("relu", "leaky_relu")
    assert error < (0.04 if kinked else 0.005)
    module = Rational(start=name)
    # Products of matrices round by where they lie in memory, so a second fit is as near.
    assert module.start_error == pytest.approx(error, rel=1e-4)
    with torch.no_grad():
        off = (module(X.float()) - STARTS[name](X).float()).abs().max()
    assert float(off) == pytest.approx(error, abs=2e-5)  # float32 sums of terms up to 100


@pytest.mark.parametrize("name", ["relu", "gelu", "exp", "tanh"])
def test_scipy_finds_nothing_near_that_is_better(name):
    """From our coefficients, another optimiser lowers the sum of squares by next to nothing."""
    top, low, _ = fit_rational(STARTS[name])
    target = STARTS[name](X).numpy()

    def residual(at):
        return plain(X.numpy(), at[:6], at[6:]) - target

    ours = np.concatenate([top.numpy(), low.numpy()])
    theirs = least_squares(residual, ours, method="trf", x_scale="jac", max_nfev=50)
    assert np.square(residual(ours)).sum() <= 2 * theirs.cost * 1.001 + 1e-12


def test_the_published_coefficients_are_no_better():
    """Root mean square on (-3, 3): theirs 0.0086, the fit 0.0056."""
    target = X.relu().numpy()
    theirs = np.square(plain(X.numpy(), *PUBLISHED) - target).mean() ** 0.5
    top, low, _ = fit_rational(torch.relu)
    ours = np.square(plain(X.numpy(), top.tolist(), low.tolist()) - target).mean() ** 0.5
    assert theirs == pytest.approx(0.0086, abs=1e-4)
    assert ours < theirs


def test_a_rational_function_is_found_again():
    """Within the family the fit is exact: (1 + x) / (1 + |x²|), by exact arithmetic at points."""
    top, low, error = fit_rational(lambda x: (1 + x) / (1 + x**2), (1, 2))
    assert error < 1e-9
    assert top.tolist() == pytest.approx([1, 1], abs=1e-8)
    assert low.tolist() == pytest.approx([0, 1], abs=1e-8)
    at = [Fraction(-7, 4), Fraction(1, 3), Fraction(5, 2)]
    exact = [float((2 - a + 3 * a**3) / (1 + abs(a / 2 - a**2))) for a in at]
    x = torch.tensor([float(a) for a in at], dtype=DOUBLE)
    top, low = (
        [torch.tensor(v).double() for v in (2, -1, 0, 3)],
        [torch.tensor(0.5), torch.tensor(-1.0)],
    )
    assert rational(x, top, low).tolist() == pytest.approx(exact, rel=1e-14)


@settings(deadline=None)
@given(st.floats(-100, 100, allow_nan=False, width=32))
def test_linear_pieces_are_exact_where_kinks_are_knots(value):
    """ReLU bit for bit, also beyond the knots; else the way to the knot left of x rounds, and the
    sum does: half a unit in the last place of x + 4 at most, and of the result."""
    x = torch.tensor([value])
    assert torch.equal(Spline()(x), x.relu())
    found = Spline(start=lambda z: z.abs() - 1, knots=17)(x).double()
    rounding = torch.finfo(torch.float32).eps * (abs(value) + 4)
    assert (found - (x.double().abs() - 1)).abs() <= rounding


@pytest.mark.parametrize(("name", "bend"), [("gelu", 0.8), ("tanh", 0.77), ("sin", 1.0)])
def test_smooth_starts_are_off_by_bend_and_width(name, bend):
    """Linear pieces: at most max |f''| h² / 8; cubic ones do better by far."""
    x = torch.linspace(-4, 4, 4001, dtype=DOUBLE)
    for knots in (17, 33, 65):
        width = 8 / (knots - 1)
        found = Spline(start=name, knots=knots).double()(x)
        error = float((found - STARTS[name](x)).abs().max().detach())
        assert error <= bend * width**2 / 8 + 1e-6  # values are kept in float32
        cubic = Spline(start=name, knots=knots, is_cubic=True).double()(x)
        inside = x.abs() < 4 - 2 * width  # at the ends slopes are one-sided
        assert float((cubic - STARTS[name](x))[inside].abs().max().detach()) < error


def test_the_cubic_is_scipy_s():
    draw = torch.Generator().manual_seed(0)
    module = Spline(2, knots=9, is_cubic=True).double()
    with torch.no_grad():
        module.values.copy_(torch.randn(2, 9, generator=draw))
    x = torch.linspace(-4, 4, 333, dtype=DOUBLE)
    found = module(x[:, None].expand(-1, 2)).detach()
    knots = module.places.numpy()
    for unit in range(2):
        values = module.values[unit].detach().numpy()
        slopes = np.gradient(values, knots)  # central inside, one-sided at the ends
        expected = CubicHermiteSpline(knots, values, slopes)(x.numpy())
        np.testing.assert_allclose(found[:, unit].numpy(), expected, atol=1e-12)
    far = torch.tensor([[-9.0] * 2, [-5.0] * 2, [5.0] * 2, [9.0] * 2], dtype=DOUBLE)
    out = module(far)
    ends = module.values.diff(dim=1)[:, [0, -1]] / module.places.diff()[0]
    torch.testing.assert_close((out[1] - out[0]) / 4, ends[:, 0])
    torch.testing.assert_close((out[3] - out[2]) / 4, ends[:, 1])


def test_at_a_knot_the_derivative_is_that_to_the_right():
    x = torch.tensor([-0.25, 0.0, 0.25], requires_grad=True)
    Spline()(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 1]


def test_what_is_not_a_number_stays_so():
    out = Spline()(torch.tensor([float("nan"), 1.0, float("inf")])).detach()
    assert math.isnan(out[0])
    assert out[1:].tolist() == [1, float("inf")]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Rational(start="nonesuch"),
            r"one of identity, relu.*'nonesuch'\. Choose",
        ),
        (lambda: Rational(degrees=(-1, 2)), r"must not be negative; got \(-1, 2\)\. The paper"),
        (lambda: Rational(start=lambda x: x.log()), r"finite on \(-3\.0, 3\.0\).*Narrow"),
        (
            lambda: Rational(span=(2.0, 1.0)),
            r"first; got \(2\.0, 1\.0\)\. Give the range",
        ),
        (lambda: Spline(span=(0.0, float("inf"))), r"two finite numbers"),
        (lambda: Spline(knots=1), r"at least 2; got 1\. Give more"),
        (lambda: Spline(knots=2, is_cubic=True), r"at least 3; got 2"),
    ],
)
def test_messages(make, message):
    with pytest.raises(InputError, match=message):
        make()
