"""Ways of merging tensors, as functions of flat arrays.

Holds: ``linear``, ``slerp_shares``, ``inner_products``, ``weight_sum``,
``task_arithmetic``, ``ties``, ``as_kind``, ``divisor_of``, ``change``, ``magnitudes``,
``count_digits``, ``Threshold``, ``threshold``, ``nothing``, ``trimmed``, ``dropped``, ``kept``.
May import: numpy, ``secant.errors``, ``secant.load``.

Every method works on any piece of a tensor, given what it must know of the whole one: for slerp
three inner products, for TIES the magnitude that just survives. So a tensor of any size streams.

Changes from a base are rounded to the tensors' own type after each step, as a tool that computes
in this type has them: the same recipe then gives the same bits. Linear merges and slerp work in
float32 and round once. Float64 tensors are merged in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secant.errors import InputError
from secant.load.kinds import Array, Kind, narrowed, round_to

COLLINEAR = 0.9995
LEAST_NORM = 1e-8
DIGIT_BITS = 16
ROW = 4096  # short enough that no BLAS splits the sum among threads
UNSIGNED = {2: np.uint16, 4: np.uint32, 8: np.uint64}


def linear(tensors: Iterable[Array], weights: Sequence[float], *, normalise: bool) -> Array:
    """Σ w_i x_i, divided by Σ w_i if `normalise`; spoils `tensors`. arXiv:2203.05482 (soups).

    One tensor is asked for after the other, so that two are there at a time.
    """
    total: Array | None = None
    for tensor, weight in zip(tensors, weights, strict=True):
        part = np.multiply(tensor, tensor.dtype.type(weight), out=tensor)
        total = part if total is None else np.add(total, part, out=total)
    assert total is not None
    if normalise:
        divisor = weight_sum(weights, total.dtype)
        if divisor != 1:
            np.divide(total, divisor, out=total)
    return total


def weight_sum(weights: Sequence[float], dtype: np.dtype) -> np.floating:
    """Σ w_i in the precision of the merge.

    Raises: `InputError` where it is 0, for a mean with such weights does not exist.
    """
    found = np.asarray(weights, dtype).sum(dtype=dtype)
    if found == 0:
        raise InputError(
            f"the weights {', '.join(f'{w:g}' for w in weights)} sum to 0, so that their mean does "
            "not exist. Give weights of another sum, or `normalize: false` in a file."
        )
    return found  # type: ignore[no-any-return]


def inner_products(a: Array, b: Array) -> NDArray[np.float64]:
    """<a, a>, <b, b> and <a, b>, by sums of short rows in float64."""
    cut = a.size - a.size % ROW
    found = np.zeros(3)
    for x, y in (
        (a[:cut].reshape(-1, ROW), b[:cut].reshape(-1, ROW)),
        (a[None, cut:], b[None, cut:]),
    ):
        found += [np.vecdot(p, q).sum(dtype=np.float64) for p, q in ((x, x), (y, y), (x, y))]
    return found


def slerp_shares(products: Sequence[float], t: float) -> tuple[float, float]:
    """What of either end, as weights of `linear`, makes the point at `t` on the arc between them.

    Shoemake 1985, "Animating rotation with quaternion curves". Ends that point the same or the
    opposite way, with a cosine past 0.9995, have no stable arc: the straight line is taken.
    """
    norm_a, norm_b = (math.sqrt(one) for one in products[:2])
    norm_a, norm_b = (one if one > LEAST_NORM else 1.0 for one in (norm_a, norm_b))
    cosine = min(max(products[2] / norm_a / norm_b, -1.0), 1.0)
    if abs(cosine) > COLLINEAR:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def change(tensor: Array, base: Array, kind: Kind) -> Array:
    """`tensor` - `base`, the task vector of arXiv:2212.04089; spoils `tensor`."""
    return round_to(np.subtract(tensor, base, out=tensor), kind)


def task_arithmetic(
    base: Array, changes: Sequence[Array], weights: Sequence[float], kind: Kind, *,
    normalise: bool, scale: float,
) -> Array:  # fmt: skip
    """base + scale Σ w_i change_i: Ilharco et al., arXiv:2212.04089. Spoils `changes`."""
    rounded = as_kind(weights, kind, base.dtype)
    total = _sum(_weighted(changes, rounded, kind), kind)
    if normalise:
        round_to(np.divide(total, divisor_of(rounded, kind), out=total), kind)
    return _added(base, total, scale, kind)


def divisor_of(weights: Array, kind: Kind) -> np.floating:
    """Their rounded sum, by which a sum of changes is divided; 1 where it is next to 0."""
    found: np.floating = round_to(weights.sum(keepdims=True), kind)[0]
    return found if abs(found) >= LEAST_NORM else found.dtype.type(1)


def ties(
    base: Array, changes: Sequence[Array], weights: Sequence[float], kind: Kind, *,
    normalise: bool, scale: float,
) -> Array:  # fmt: skip
    """Elect a sign for each value and merge those that agree: arXiv:2306.01708. Spoils `changes`.

    The sign is that of the weighted sum; the mean is over the weights that agree with it.
    """
    rounded = as_kind(weights, kind, base.dtype)
    weighted = _weighted(changes, rounded, kind)
    is_up = sum(weighted[1:], weighted[0]) >= 0
    divisor = np.zeros_like(base) if normalise else None
    for one, weight in zip(weighted, rounded, strict=True):
        agrees = (one > 0) == is_up
        agrees &= one != 0
        np.multiply(one, agrees, out=one)  # a NaN stays and is seen
        if divisor is not None:
            divisor += weight * agrees
    total = _sum(weighted, kind)
    if divisor is not None:
        round_to(divisor, kind)
        divisor += divisor == 0  # several times faster than to assign through a mask
        round_to(np.divide(total, divisor, out=total), kind)
    return _added(base, total, scale, kind)


def as_kind(weights: Sequence[float], kind: Kind, dtype: np.dtype) -> Array:
    """The weights of changes, rounded as these are."""
    return round_to(np.asarray(weights, dtype), kind)


def _weighted(changes: Sequence[Array], weights: Array, kind: Kind) -> list[Array]:
    return [
        round_to(np.multiply(one, weight, out=one), kind)
        for one, weight in zip(changes, weights, strict=True)
    ]


def _sum(parts: Sequence[Array], kind: Kind) -> Array:
    total = parts[0]
    np.add(total, 0, out=total)  # a sum is never -0
    for part in parts[1:]:
        np.add(total, part, out=total)
    return round_to(total, kind) if len(parts) > 1 else total


def _added(base: Array, total: Array, scale: float, kind: Kind) -> Array:
    if scale != 1:
        round_to(np.multiply(total, total.dtype.type(scale), out=total), kind)
    return np.add(base, total, out=total)


@dataclass(frozen=True)
class Threshold:
    """What survives a trim: every magnitude above `value`, and of those equal the first `equals`.

    `equal_counts` says how many are equal in each piece, so that each knows which are the first.
    """

    value: int
    equals: int
    equal_counts: tuple[int, ...]

    def quota(self, piece: int) -> int:
        """How many of those equal to the threshold piece number `piece` keeps."""
        return max(0, self.equals - sum(self.equal_counts[:piece]))


def magnitudes(changes: Array, kind: Kind) -> Array:
    """The stored bits of the magnitudes of values of `kind`: unsigned numbers in the same order."""
    if kind.name == "BF16":
        bits = np.right_shift(changes.view(np.uint32), 16)
        np.bitwise_and(bits, 0x7FFF, out=bits)
        return bits.astype(np.uint16)
    stored = narrowed(np.abs(changes), kind)
    return stored.view(UNSIGNED[stored.dtype.itemsize])


Counts = Callable[[int, int], Iterable[NDArray[np.uint32]]]


def count_digits(bits: Array, prefix: int, shift: int, counts: NDArray[np.uint32]) -> None:
    """Add to `counts` how often each 16-bit digit at `shift` is in what begins with `prefix`."""
    if shift + DIGIT_BITS < 8 * bits.dtype.itemsize:
        bits = bits[(bits >> bits.dtype.type(shift + DIGIT_BITS)) == prefix]
    digits = (bits >> bits.dtype.type(shift)).astype(np.uint16)
    counts += np.bincount(digits, minlength=counts.size).astype(np.uint32)


def threshold(counts: Counts, kind: Kind, keep: int) -> Threshold:
    """The `keep`-th largest magnitude, exactly, by counting one 16-bit digit a pass.

    `counts(prefix, shift)` gives the counts of `count_digits` for each piece, in order.
    """
    prefix, left, pieces = 0, keep, []
    for shift in range(8 * kind.size - DIGIT_BITS, -1, -DIGIT_BITS):
        pieces = list(counts(prefix, shift))
        total = sum(pieces, np.zeros(1 << DIGIT_BITS, np.int64))
        at_least: NDArray[np.int64] = np.cumsum(total[::-1])  # by digits, from the largest down
        place = int(np.searchsorted(at_least, left))
        left -= int(at_least[place - 1]) if place else 0
        digit = (1 << DIGIT_BITS) - 1 - place
        prefix = (prefix << DIGIT_BITS) | digit
    return Threshold(prefix, left, tuple(int(one[digit]) for one in pieces))


def nothing(kind: Kind, pieces: int) -> Threshold:
    """The threshold that none survives: magnitudes have no sign bit."""
    return Threshold((1 << 8 * kind.size - 1) - 1, 0, (0,) * pieces)


def trimmed(changes: Array, kind: Kind, limit: int, quota: int) -> tuple[Array, int]:
    """`changes` with the small ones set to 0, the trim of TIES: arXiv:2306.01708.

    Kept is what is larger than `limit`, and of those equal to it the first `quota`, so that exactly
    the asked number is left of the whole tensor. Also says how many equal ones were kept.
    """
    bits = magnitudes(changes, kind)
    keep = bits > limit
    if quota:
        equal = np.flatnonzero(bits == limit)[:quota]
        keep[equal] = True
        quota = equal.size
    return np.multiply(changes, keep, out=changes), quota


def dropped(
    changes: Array, keep: NDArray[np.bool_], density: float, kind: Kind, *, rescale: bool
) -> Array:
    """The changes that `keep` says, divided by the share kept, `density`, if `rescale`.

    The drop and rescale of DARE, arXiv:2311.03099: with independent choices of probability
    `density` the expectation of every value is the value. Spoils `changes`.
    """
    if density >= 1:
        return changes
    if rescale and density > 0:
        round_to(np.multiply(changes, changes.dtype.type(1 / density), out=changes), kind)
    return np.multiply(changes, keep, out=changes)


def kept(count: int, density: float, random: np.random.Generator) -> NDArray[np.bool_]:
    """Independent choices with probability `density`, exact to the precision of a float64.

    A choice takes 8 random bits; only a draw that falls on the edge needs more.
    """
    if density >= 1:
        return np.ones(count, np.bool_)
    words = random.integers(0, 2**64 - 1, -(-count // 8), dtype=np.uint64, endpoint=True)
    draws = words.view(np.uint8)[:count]
    edge, part = divmod(density * 2**8, 1)
    keep = draws < np.uint8(edge)
    if part:
        on_edge = np.flatnonzero(draws == np.uint8(edge))
        keep[on_edge] = random.random(on_edge.size) < part
    return keep
