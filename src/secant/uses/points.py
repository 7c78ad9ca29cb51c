"""Points to be separated, and coordinates of them that are fit for float64.

Holds: ``Points``, ``View``, ``Shape``.
May import: numpy, scipy, ``secant.errors``, ``secant.uses`` (combinations, exact_signs).
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh

from secant.errors import InputError
from secant.uses.combinations import Mask, free_columns
from secant.uses.exact_signs import Array

LARGEST = 1e60


class Shape(NamedTuple):
    """Coordinates (n, k) with the distances of the rows over their radius; `back` (d, k) turns
    slopes in them into slopes in the features, where they are not the centred features themselves.
    """

    table: Array
    back: Array | None


class Points:
    """Rows (n, d), finite, float64, with what all labellings of them share.

    `first` are the places of distinct rows, `group` the place in `first` of every row's equal;
    `radius` the largest distance of a row from the mean, rounded down and up; `view` coordinates
    of the distinct rows.

    Raises: `InputError` for numbers so large or small that their products would leave float64.
    """

    def __init__(self, rows: Array) -> None:
        sizes = np.abs(rows[rows != 0])
        if sizes.size and not (sizes.max() <= LARGEST and sizes.min() >= 1 / LARGEST):
            raise InputError(
                f"separable: numbers must be 0 or from {1 / LARGEST:g} to {LARGEST:g} in size; got "
                f"{sizes.min():.1e} to {sizes.max():.1e}. Scale the columns by powers of two."
            )
        self.rows = rows
        seen: dict[bytes, int] = {}
        first: list[int] = []
        group: list[int] = []
        for place, row in enumerate(np.ascontiguousarray(rows + 0.0)):  # -0 is 0
            known = seen.setdefault(row.tobytes(), len(first))
            if known == len(first):
                first.append(place)
            group.append(known)
        self.first = np.array(first, dtype=np.intp)
        self.group = np.array(group, dtype=np.intp)
        self.radius = radius_of(rows)

    @cached_property
    def view(self) -> View:
        """Made when it is first needed."""
        return View(self.rows[self.first])

    def twins(self, is_positive: Mask) -> tuple[int, int] | None:
        """The first two equal rows of both classes."""
        odd = np.flatnonzero(is_positive != is_positive[self.first][self.group])
        return (int(self.first[self.group[odd[0]]]), int(odd[0])) if odd.size else None


def radius_of(rows: Array) -> tuple[float, float]:
    """The largest distance of a row from the mean, rounded down and up."""
    found = math.sqrt(float(np.square(rows - rows.mean(0)).sum(1).max()))
    return found * (1 - 1e-9), found * (1 + 1e-9)


class View:
    """The rows in coordinates fit for float64, with a last column of ones: `table` (n, k).

    Centred and scaled free columns; where they are more than the rows, the coordinates of the rows
    in their own span.
    """

    def __init__(self, rows: Array) -> None:
        self.rows = rows
        self.columns = free_columns(rows)
        part = rows[:, self.columns]
        scale = part.std(0)
        self.scale = np.where(scale > 0, scale, 1.0)
        centred, self.back = _in_span((part - part.mean(0)) / self.scale)
        self.table = np.concatenate([centred, np.ones((len(rows), 1))], 1)

    @cached_property
    def shape(self) -> Shape:
        """The distinct rows in their own geometry."""
        centred = self.rows - self.rows.mean(0)
        radius = math.sqrt(float(np.square(centred).sum(1).max()))
        return Shape(*_in_span(centred / radius))

    def plane(self, v: Array, sides: Array) -> Array | None:
        """(w, b) from slopes and bias in `table`; None if the classes overlap along w."""
        w = np.zeros(self.rows.shape[1])
        slopes = v[:-1] if self.back is None else self.back @ v[:-1]
        w[self.columns] = slopes / self.scale
        return self.halved(w, sides)

    def halved(self, w: Array, sides: Array) -> Array | None:
        """w over its largest entry, and b half-way between the classes along it; None if they
        overlap there.
        """
        w = w / np.abs(w).max()
        along = self.rows @ w
        low, high = along[sides > 0].min(), along[sides < 0].max()
        return np.append(w, -(low / 2 + high / 2)) if low > high else None


def _in_span(table: Array) -> tuple[Array, Array | None]:
    """The rows as they are, or, if that is shorter, by coordinates in their own span and what turns
    slopes there into slopes of the table.
    """
    if table.shape[1] < len(table):
        return table, None
    values, vectors = eigh(table @ table.T, check_finite=False)
    is_kept = values > 1e-13 * values[-1]
    lengths = np.sqrt(values[is_kept])
    return vectors[:, is_kept] * lengths, table.T @ (vectors[:, is_kept] / lengths)
