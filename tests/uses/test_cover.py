"""Cover's law, against labellings counted one by one and the recursion it solves.

Holds: tests of ``secant.uses.cover``.
May import: pytest, numpy, hypothesis, ``secant``.
"""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secant.errors import InputError
from secant.uses.cover import chance, dichotomies
from secant.uses.separation import decide


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 40))
def test_the_recursion(points, dimension):
    """A new point doubles those labellings whose planes can be turned onto it."""
    lower = dichotomies(points, dimension - 1) if dimension > 1 else 0
    assert dichotomies(points + 1, dimension) == dichotomies(points, dimension) + lower


@pytest.mark.parametrize(("points", "features"), [(4, 1), (4, 2), (6, 2), (6, 3)])
def test_every_labelling_counted(points, features):
    rows = np.random.default_rng(points).standard_normal((points, features))
    count = 2  # all points of one class
    for labels in product([False, True], repeat=points):
        is_positive = np.array(labels)
        if 0 < is_positive.sum() < points:
            count += decide(rows, is_positive).verdict == "separable"
    assert count == dichotomies(points, features + 1)


def test_known_values():
    assert dichotomies(4, 3) == 14  # all but XOR and its opposite
    assert chance(40, 20) == Fraction(1, 2)
    assert chance(20, 20) == 1
    assert float(chance(30, 20)) == pytest.approx(0.969, abs=5e-4)
    assert float(chance(50, 20)) == pytest.approx(0.076, abs=5e-4)
    assert chance(2000, 1000) == Fraction(1, 2)


@pytest.mark.parametrize(("points", "dimension"), [(0, 3), (3, 0)])
def test_bad_counts_are_named(points, dimension):
    with pytest.raises(InputError, match=f"at least 1; got {points} and {dimension}"):
        chance(points, dimension)
