"""Is a set of points in two classes linearly separable? A verdict with a certificate, checked.

Holds: ``decide``; ``Separation``, ``Certificate``, ``check``.
May import: numpy, ``secant.errors``, ``secant.uses`` (combinations, exact_signs,
points, rational_simplex, separation_search).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

from secant.errors import UndecidedError
from secant.uses.combinations import (
    Mask,
    hull_distance,
    interior_proof,
    meets_exactly,
    proves_meeting,
    signed,
)
from secant.uses.exact_signs import Array, Whole, below, exact_signs, whole
from secant.uses.points import Points, radius_of
from secant.uses.rational_simplex import alternative
from secant.uses.separation_search import METHODS, Candidate, newton, programmes

Verdict = Literal["separable", "not separable", "no margin above eps"]
Kind = Literal[
    "plane", "plane in fractions", "equal rows", "combination", "exact combination",
    "interior combination",
]  # fmt: skip

LARGEST_EPS = 1e-6
"""A combination that leaves a larger gap, in the data's radius, is no verdict."""

EXACT_WORK = 5e7
"""Largest (features + 1)^4 times bits for which whole numbers are tried: a second or two. So 30
features of float64 with all its digits, or 60 of small whole numbers, and any number of rows."""


@dataclass(frozen=True)
class Certificate:
    """What proves a verdict, for rows numbered from 0.

    `plane`: w, then b, numbers or fractions as texts; w·x + b > 0 for every row of the class and
    < 0 for every other. `rows` and `weights`: a convex combination, up to a factor for each class;
    of `equal rows` the two. `eps` bounds the margin where the hulls are only shown to be near.
    """

    kind: Kind
    plane: list[float] | list[str] | None = None
    rows: list[int] | None = None
    weights: list[float] | list[str] | None = None


@dataclass(frozen=True)
class Separation:
    """A verdict on two classes, its certificate, and between what the largest margin lies.

    `margin`, half the distance between the two hulls in the data's radius (the largest distance of
    a row from the mean): that of the plane found, rounded down, and half the distance of two
    points of the hulls, rounded up; None where the set is not separable. `eps`: 0 if the verdict
    holds without any; otherwise the largest margin that is left open, in the radius. `method` is
    what found the certificate.
    """

    verdict: Verdict
    certificate: Certificate
    margin: tuple[float, float] | None
    eps: float
    method: str


def decide(rows: Array | Points, is_positive: Mask, *, is_widest: bool = True) -> Separation:
    """Whether some plane has every row of the class on one side and all others on the other.

    rows (n, d), finite, float64, taken as the rationals that they are; is_positive (n,), both
    classes there. In order: equal rows of both classes; Newton's method on the logistic loss, whose
    minimum is a combination of the rows that is 0 and exists only if they are not separable (Albert
    and Anderson 1984); HiGHS on the linear programme, interior point first; whole numbers where
    `EXACT_WORK` allows. Each proposes planes or combinations; only what `check` proves counts.
    Unless `is_widest`, the first plane will do, and the margin's bounds are far apart. Give
    `Points` to decide several labellings of the same rows.

    Raises: `UndecidedError` if nothing was proven, and no combination comes within 1e-6 radii;
    `InputError` as `Points`.

    Cost: about ten products (d, n) by (n, d) and as many Cholesky factors.
    """
    points = rows if isinstance(rows, Points) else Points(rows)
    twins = points.twins(is_positive)
    if twins is not None:
        proof = Certificate("equal rows", rows=list(twins))
        return Separation("not separable", proof, None, 0.0, "equal rows")
    with np.errstate(all="ignore"):  # what overflows proves nothing, and is passed over
        return _Decision(points, is_positive).run(is_widest=is_widest)


def check(rows: Array, is_positive: Mask, certificate: Certificate) -> Verdict | None:
    """What the certificate proves of these rows; None if nothing.

    Cost: one product for a plane; some (n, d) by (d, d) for an interior combination.
    """
    kind = certificate.kind
    if kind in ("plane", "plane in fractions"):
        return "separable" if _least(rows, is_positive, certificate) is not None else None
    assert certificate.rows is not None
    places = np.array(certificate.rows, dtype=np.intp)
    if kind == "equal rows":
        one, other = places
        is_equal = (rows[one] == rows[other]).all() and is_positive[one] != is_positive[other]
        return "not separable" if is_equal else None
    assert certificate.weights is not None
    if kind == "exact combination":
        fractions = {place: Fraction(str(one)) for place, one in enumerate(certificate.weights)}
        table, _ = whole(signed(rows[places], is_positive[places]))
        return "not separable" if meets_exactly(table, fractions) else None
    weights = np.array(certificate.weights, dtype=np.float64)
    if kind == "interior combination":
        is_proof = proves_meeting(rows[places], is_positive[places], weights)
        return "not separable" if is_proof else None
    gap = hull_distance(rows[places], is_positive[places], weights) / 2 / radius_of(rows)[0]
    return "no margin above eps" if gap <= LARGEST_EPS else None


def _least(rows: Array, is_positive: Mask, certificate: Certificate) -> float | None:
    """The least |w·x + b| / |w|, rounded down; None if a row is on the wrong side."""
    assert certificate.plane is not None
    sides = np.where(is_positive, 1, -1)
    if certificate.kind == "plane":
        numbers = np.array(certificate.plane, dtype=np.float64)
        if not np.isfinite(numbers).all():
            return None
        found = exact_signs(rows, numbers[:-1], float(numbers[-1]))
        if (found.signs != sides).any():
            return None
        with np.errstate(over="ignore", under="ignore"):
            length = float(np.linalg.norm(numbers[:-1])) * (1 + 1e-9)
        least = float(found.least.min())
        return least / length * (1 - 1e-9) if 0 < length < math.inf else 0.0
    plane = np.array([Fraction(one) for one in certificate.plane], dtype=object)
    scale = math.lcm(*(one.denominator for one in plane))
    entries, exponent = whole(signed(rows, is_positive))
    values = entries @ np.array([int(one * scale) for one in plane], dtype=object)
    if min(values) <= 0:
        return None
    squares = sum(one * one for one in plane[:-1])
    nearest = Fraction(int(min(values)), scale) * Fraction(2) ** exponent
    return math.sqrt(below(nearest * nearest / squares)) * (1 - 1e-9) if squares else 0.0


class _Decision:
    """One run of `decide`: the rows without repeats, and the best found so far."""

    def __init__(self, points: Points, is_positive: Mask) -> None:
        self.places, self.view, self.radius = points.first, points.view, points.radius
        self.rows, self.is_positive = points.view.rows, is_positive[points.first]
        self.nearest = math.inf
        self.weights: Array | None = None
        self.method = ""

    def run(self, *, is_widest: bool) -> Separation:
        """The verdict."""
        sides = np.where(self.is_positive, 1.0, -1.0)
        found = self.tried(newton(self.view, sides, is_widest=is_widest))
        found = found or self.tried(programmes(self.view, sides))
        return found or self.exactly() or self.nearly()

    def tried(self, candidates: Iterator[Candidate]) -> Separation | None:
        """The first proof that the classes cannot be separated, or the widest plane that does."""
        best: tuple[float, Certificate, str] | None = None
        for candidate in candidates:
            self.consider(candidate)
            if candidate.plane is not None:
                proof = Certificate("plane", plane=candidate.plane.tolist())
                least = _least(self.rows, self.is_positive, proof)
                if least is not None and (best is None or least > best[0]):
                    best = least, proof, candidate.method
            if best is None and candidate.weights is not None:
                proven = interior_proof(self.rows, self.is_positive, candidate.weights)
                if proven is not None:
                    proof = self.combination("interior combination", proven)
                    return Separation("not separable", proof, None, 0.0, candidate.method)
            if best is not None and candidate.method in METHODS:
                break
        return None if best is None else self.separable(*best)

    def consider(self, candidate: Candidate) -> None:
        """Keep the combination whose two points are nearest."""
        if candidate.weights is None:
            return
        gap = hull_distance(self.rows, self.is_positive, candidate.weights)
        if gap < self.nearest:
            self.nearest, self.weights, self.method = gap, candidate.weights, candidate.method

    def separable(self, least: float, proof: Certificate, method: str) -> Separation:
        """With the margin between that of the plane and half the distance of two points."""
        margin = least / self.radius[1], self.nearest / 2 / self.radius[0]
        return Separation("separable", proof, margin, 0.0, method)

    def combination(self, kind: Kind, weights: Array) -> Certificate:
        """The rows with weight, by their numbers in the data."""
        used = np.flatnonzero(weights > 0)
        return Certificate(kind, rows=self.places[used].tolist(), weights=weights[used].tolist())

    def exactly(self) -> Separation | None:
        """In whole numbers, on as few rows as will do: those with weight, then those violated."""
        width = self.rows.shape[1] + 1
        if width**4 > EXACT_WORK:
            return None
        table, exponents = _by_column(signed(self.rows, self.is_positive))
        bits = max(int(abs(one)).bit_length() for one in table.flat)
        if width**4 * bits > EXACT_WORK:
            return None
        order = np.argsort(-(self.weights if self.weights is not None else np.zeros(len(table))))
        chosen = order[: width + 1].tolist()
        while True:
            found = alternative(table[chosen])
            if found.weights is not None:
                weights = {chosen[place]: one for place, one in found.weights.items()}
                proof = Certificate(
                    "exact combination",
                    rows=self.places[list(weights)].tolist(),
                    weights=[str(one) for one in weights.values()],
                )
                return Separation("not separable", proof, None, 0.0, "whole numbers")
            assert found.plane is not None
            values = table @ np.array(found.plane, dtype=object)
            wrong = sorted(np.flatnonzero(values <= 0), key=lambda place: values[place])
            if not wrong:
                plane = [
                    Fraction(one) / Fraction(2) ** int(exponent)
                    for one, exponent in zip(found.plane, exponents, strict=True)
                ]
                return self.from_fractions(plane)
            chosen += [int(place) for place in wrong[:width]]

    def from_fractions(self, plane: list[Fraction]) -> Separation:
        """Rounded to float64 if that still separates."""
        largest = max(abs(one) for one in plane)
        rounded = [float(one / largest) for one in plane]
        for proof in (
            Certificate("plane", plane=rounded),
            Certificate("plane in fractions", plane=[str(one) for one in plane]),
        ):
            least = _least(self.rows, self.is_positive, proof)
            if least is not None:
                return self.separable(least, proof, "whole numbers")
        raise AssertionError("the whole numbers separate")

    def nearly(self) -> Separation:
        """The nearest two points of the hulls, if they are near."""
        eps = self.nearest / 2 / self.radius[0]
        if self.weights is None or not eps <= LARGEST_EPS:
            raise UndecidedError(
                f"separable: a plane, or a combination within {LARGEST_EPS:g} of the data's radius "
                f"was expected; the nearest of {len(self.rows)} rows is {eps:.1e}. Scale the "
                "columns alike, or give fewer."
            )
        proof = self.combination("combination", self.weights)
        return Separation("no margin above eps", proof, None, eps, self.method)


def _by_column(table: Array) -> tuple[Whole, list[int]]:
    """Whole numbers n with table = n 2^e, an exponent e for each column."""
    columns = [whole(column) for column in np.ascontiguousarray(table.T)]
    return np.stack([entries for entries, _ in columns], 1), [exponent for _, exponent in columns]
