"""Signs of w·x + b without rounding: a bound settles most rows, whole numbers the rest.

Holds: ``exact_signs``, ``whole``, ``rounding``, ``Array``.
May import: numpy, the standard library.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Whole = NDArray[Any]
"""Python's integers, which do not round and have no largest."""

UNIT = 2.0**-53
TINY = 2.0**-1022
"""More than a product loses by underflow, also where subnormal numbers are flushed to zero."""


class Signs(NamedTuple):
    """Of each row the sign of w·x + b, and a number of at most its size, (rows,).

    `settled_by_integers` counts the rows that the bound on rounding left open.
    """

    signs: NDArray[np.int8]
    least: Array
    settled_by_integers: int


def rounding(terms: int) -> float:
    """2 γ_n, γ_n = n u / (1 - n u): bounds the error of a sum of n products, in any order.

    It is relative to the sum of their absolute values as computed; γ_n would be enough for the
    exact one, the factor covers its own rounding. Source: Higham 2002, section 3.1.
    """
    assert terms * UNIT < 0.1
    return 2 * terms * UNIT / (1 - terms * UNIT)


def whole(values: Array) -> tuple[Whole, int]:
    """Whole numbers n and an exponent e with values = n 2^e, exactly, e as large as can be."""
    mantissa, exponent = np.frexp(values)
    digits = (mantissa * 2.0**53).astype(np.int64)
    lowest = np.where(digits == 0, 1, digits & -digits)
    zeros = np.log2(lowest.astype(np.float64)).astype(np.int64)  # exact: powers of two
    digits >>= zeros
    exponents = exponent.astype(np.int64) - 53 + zeros
    used = exponents[digits != 0]
    if not used.size:
        return digits.astype(object), 0
    least = int(used.min())
    shifts = np.where(digits == 0, 0, exponents - least)
    return digits.astype(object) << shifts.astype(object), least


def exact_signs(rows: Array, w: Array, b: float) -> Signs:
    """The sign of w·x + b for each row x, with numbers taken as the rationals that they are.

    rows (n, d), w (d,), finite. First in float64 with a bound on the rounding of γ |w|·|x|; rows
    within the bound in whole numbers.

    Cost: two products of rows and w, and some microseconds for each entry of a row left open.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        value = rows @ w + b
        size = np.abs(rows) @ np.abs(w) + abs(b)
        reach = rounding(rows.shape[1] + 2) * size + (rows.shape[1] + 1) * TINY
        least = np.abs(value) - reach
        is_open = ~(least > 0)  # also where something overflowed
    signs = np.sign(np.where(is_open, 0.0, value)).astype(np.int8)
    least = np.where(is_open, 0.0, least)
    places = np.flatnonzero(is_open)
    if places.size:
        for place, exact in zip(places, _exact(rows[places], w, b), strict=True):
            signs[place] = (exact > 0) - (exact < 0)
            least[place] = below(abs(exact))
    return Signs(signs, least, int(places.size))


def _exact(rows: Array, w: Array, b: float) -> list[Fraction]:
    """w·x + b of each row."""
    x, x_exponent = whole(rows)
    slopes, w_exponent = whole(w)
    scale = Fraction(2) ** (x_exponent + w_exponent)
    products = [sum(a * c for a, c in zip(row, slopes, strict=True)) for row in x.tolist()]
    return [scale * one + Fraction(b) for one in products]


def below(value: Fraction) -> float:
    """The largest float at or under a number of 0 or more."""
    if value > Fraction(np.finfo(np.float64).max):
        return float(np.finfo(np.float64).max)
    near = float(value)
    return near if Fraction(near) <= value else float(np.nextafter(near, 0.0))
