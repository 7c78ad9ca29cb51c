"""Exact signs and whole numbers, against fractions.

Holds: tests of ``secant.uses.exact_signs`` and ``secant.uses.rational_simplex``.
May import: pytest, numpy, hypothesis, ``secant``, ``supports``.
"""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from secant.uses.exact_signs import below, exact_signs, rounding, whole
from secant.uses.rational_simplex import alternative
from supports import hulls_meet

floats = st.floats(-1e9, 1e9, allow_subnormal=False)


def dot(row, w, b):
    products = [Fraction(float(x)) * Fraction(float(y)) for x, y in zip(row, w, strict=True)]
    return sum(products) + Fraction(float(b))


@settings(deadline=None)
@given(arrays(np.float64, (6, 3), elements=floats), arrays(np.float64, 3, elements=floats), floats)
def test_signs_are_those_of_fractions(rows, w, b):
    # The last rows lie on the plane up to rounding: the first, moved by its own value.
    rows[3] = rows[0] - w * float(dot(rows[0], w, b)) / max(float(w @ w), 1e-3)
    rows[4] = np.nextafter(rows[3], np.inf)
    rows[5] = 0.0
    found = exact_signs(rows, w, b)
    for row, sign, least in zip(rows, found.signs, found.least, strict=True):
        exact = dot(row, w, b)
        assert sign == (exact > 0) - (exact < 0)
        assert 0 <= Fraction(least) <= abs(exact)


def test_only_rows_near_the_plane_cost_integers():
    rows = np.random.default_rng(0).standard_normal((1000, 50))
    w = np.random.default_rng(1).standard_normal(50)
    assert exact_signs(rows, w, 0.1).settled_by_integers == 0
    third = np.array([[1 / 3, 1.0]])
    found = exact_signs(third, np.array([3.0, -1.0]), 0.0)
    assert found.settled_by_integers == 1
    assert found.signs[0] == -1  # the float 1/3 is a little less than a third
    huge = exact_signs(np.array([[1e200, 1.0]]), np.array([1e200, 1.0]), 0.0)
    assert (huge.signs[0], huge.settled_by_integers) == (1, 1)


@settings(deadline=None)
@given(arrays(np.float64, (2, 4), elements=st.floats(-1e30, 1e30)))
def test_whole_numbers_are_the_values(values):
    entries, exponent = whole(values)
    for value, entry in zip(values.flat, entries.flat, strict=True):
        assert Fraction(int(entry)) * Fraction(2) ** exponent == Fraction(float(value))


def test_whole_numbers_are_as_small_as_can_be():
    entries, exponent = whole(np.array([12.0, -20.0, 0.0]))
    assert (entries.tolist(), exponent) == ([3, -5, 0], 2)
    assert whole(np.zeros(2))[0].tolist() == [0, 0]


@pytest.mark.parametrize("value", [Fraction(1, 3), Fraction(2, 3), Fraction(10**400), Fraction(0)])
def test_below_is_below(value):
    assert Fraction(below(value)) <= value


def test_the_bound_is_twice_gamma():
    unit = 2.0**-53
    assert rounding(10) == pytest.approx(2 * 10 * unit / (1 - 10 * unit), rel=1e-15)


@settings(deadline=None)
@given(
    arrays(np.int64, st.tuples(st.integers(1, 6), st.integers(1, 3)), elements=st.integers(-3, 3))
)
def test_gordans_alternative_is_that_of_all_supports(rows):
    table = rows.astype(object)
    found = alternative(table)
    if found.plane is not None:
        assert found.weights is None
        assert (table @ np.array(found.plane, dtype=object) > 0).all()
    else:
        weights = np.array([found.weights.get(n, Fraction(0)) for n in range(len(rows))])
        assert min(weights) >= 0
        assert sum(weights) == 1
        assert not (weights @ table).any()
    assert (found.plane is None) == hulls_meet(rows.tolist())


def test_least_index_alone_ends_too(monkeypatch):
    monkeypatch.setattr("secant.uses.rational_simplex.GREEDY", 0)
    draw = np.random.default_rng(0)
    for _ in range(50):
        rows = draw.integers(-2, 3, (6, 3))
        assert (alternative(rows.astype(object)).plane is None) == hulls_meet(rows.tolist())
