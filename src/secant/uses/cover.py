"""Cover's function counting law: how many labellings of points a plane can make.

Holds: ``dichotomies``, ``chance``.
May import: the standard library, ``secant.errors``.
"""

from __future__ import annotations

from fractions import Fraction

from secant.errors import InputError


def dichotomies(points: int, dimension: int) -> int:
    r"""How many of the 2^N labellings of N points in general position in D dimensions a plane
    through 0 can make.

    .. math:: C(N, D) = 2 \sum_{k < D} \binom{N - 1}{k}

    General position: any D of the points are linearly independent. A plane with a bias on d
    features is one through 0 with D = d + 1. Exact, of any size.

    Raises: `InputError` unless both are at least 1.

    Source: Cover 1965, IEEE Transactions on Electronic Computers EC-14, equation 5; theorem 1.
    """
    if points < 1 or dimension < 1:
        raise InputError(
            "dichotomies: points and dimension must be at least 1; got "
            f"{points} and {dimension}. Count a bias as one dimension."
        )
    if dimension >= points:
        return int(2**points)
    total, term = 0, 1
    for k in range(dimension):
        total += term
        term = term * (points - 1 - k) // (k + 1)
    return 2 * total


def chance(points: int, dimension: int) -> Fraction:
    """C(N, D) / 2^N: the probability that a plane can make random labels, each fair and its own.

    1 for N <= D: then that labels are separable says nothing about them. 1/2 at N = 2 D, the
    capacity. Raises and source: as `dichotomies`.
    """
    return Fraction(dichotomies(points, dimension), 2**points)
