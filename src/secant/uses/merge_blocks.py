"""Blocks of a merge: stored values of the models in, stored values of the result out.

Holds: ``Trim``, ``Drop``, ``Change``, ``Join``, ``Blocks`` and the way of numpy, ``Plain``.
May import: numpy, ``secant.load``, ``secant.uses``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, final

import numpy as np
from numpy.typing import NDArray

from secant.load.kinds import Array, Kind, all_finite, narrowed, widened
from secant.uses import merge_methods as methods


@dataclass
class Trim:
    """What TIES keeps: above `limit`, and of those equal to it `left` more, which counts down."""

    limit: int
    left: int


@dataclass(frozen=True)
class Drop:
    """What DARE keeps of a block, with probability `density`, and whether that is made up for."""

    keep: NDArray[np.bool_]
    density: float
    rescale: bool


@dataclass(frozen=True)
class Change:
    """A model beside its base, as stored, and what is taken from the change."""

    stored: Array
    trim: Trim | None = None
    drop: Drop | None = None


@dataclass(frozen=True)
class Join:
    """How changes are joined: `elects` as TIES does, else by their weighted sum."""

    weights: Sequence[float]
    normalise: bool
    scale: float
    elects: bool


class Blocks(Protocol):
    """What is done to blocks of one kind. All ways give the same bits, and may spoil their input.

    What is not finite, there or on the way, makes a result that is not: None is given then.
    """

    def span(self, kind: Kind) -> int:
        """How many values a block best has: a power of 2."""

    def mixed(
        self, stored: Sequence[Array], weights: Sequence[float], kind: Kind, *, normalise: bool
    ) -> Array | None:
        """`methods.linear`."""

    def joined(
        self, base: Array, changes: Sequence[Change], join: Join, kind: Kind
    ) -> Array | None:
        """`methods.ties` or `methods.task_arithmetic`, of what is left of the changes."""

    def count(
        self, base: Array, stored: Array, kind: Kind, place: tuple[int, int],
        counts: NDArray[np.uint32],
    ) -> None:  # fmt: skip
        """`methods.count_digits` of the magnitudes of a change; `place` is prefix and shift."""


@final
class Plain:
    """By numpy, step by step."""

    def span(self, kind: Kind) -> int:
        """As many as stay in the cache from step to step."""
        return 1 << 18

    def mixed(
        self, stored: Sequence[Array], weights: Sequence[float], kind: Kind, *, normalise: bool
    ) -> Array | None:
        """`methods.linear`."""
        values = (widened(one, kind) for one in stored)
        return _checked(methods.linear(values, weights, normalise=normalise), kind)

    def joined(
        self, base: Array, changes: Sequence[Change], join: Join, kind: Kind
    ) -> Array | None:
        """`methods.ties` or `methods.task_arithmetic`, of what is left of the changes."""
        start = widened(base, kind)
        method = methods.ties if join.elects else methods.task_arithmetic
        found = method(
            start, [_left(start, change, kind) for change in changes], join.weights, kind,
            normalise=join.normalise, scale=join.scale,
        )  # fmt: skip
        return _checked(found, kind)

    def count(
        self, base: Array, stored: Array, kind: Kind, place: tuple[int, int],
        counts: NDArray[np.uint32],
    ) -> None:  # fmt: skip
        """`methods.count_digits` of the magnitudes of a change; `place` is prefix and shift."""
        change = methods.change(widened(stored, kind), widened(base, kind), kind)
        methods.count_digits(methods.magnitudes(change, kind), *place, counts)


def _left(base: Array, change: Change, kind: Kind) -> Array:
    """What trim and drop leave of a change."""
    found = methods.change(widened(change.stored, kind), base, kind)
    trim, drop = change.trim, change.drop
    if trim is not None:
        found, kept = methods.trimmed(found, kind, trim.limit, trim.left)
        trim.left -= kept
    if drop is not None:
        found = methods.dropped(found, drop.keep, drop.density, kind, rescale=drop.rescale)
    return found


def _checked(values: Array, kind: Kind) -> Array | None:
    stored = narrowed(values, kind)
    return stored if all_finite(stored, kind) else None
