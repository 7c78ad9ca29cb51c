"""Products of many affine maps, each with a binary exponent of its own and an error bound.

Holds: ``Scaled``, an affine map so stored; ``scaled``, ``composed``, ``chained``; ``Rounded`` and
``rounded``, the map in a model's type.
May import: torch, ``secant.errors``.

Products are float64. A chain of many matrices leaves the range of any float long before it leaves
that of its directions, so each product is kept as a matrix with entries below 1 and a power of 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

UNIT = 2.0**-53
TINY = 2.0**-1000
"""What a sum of shifted parts may lose below the range of float64, far above what it can."""

NOTHING = 2.0**-900
"""An error bound that holds nothing but many times `TINY`."""

LOW, HIGH = 2.0**-300, 2.0**300
"""Norms between which squares and powers of 2 that undo them stay in the range of float64."""

AT_ONCE = 1 << 22
"""Entries of matrices that are multiplied in one batch."""

TIGHT = 3
"""Levels of a product up to which Frobenius norms stand for spectral ones: they cost nothing."""

SQUARINGS = 2
"""The spectral norm is bounded by ‖(A'A)^4‖^(1/8) in the Frobenius norm: at most n^(1/16) off."""

SURE = 1e-3
"""Relative error bound past which a product counts as unknown."""


@dataclass(frozen=True)
class Scaled:
    """y = 2^e W x + 2^f b, for a batch of maps: W (k, o, i), b (k, o), all float64.

    `error` bounds the spectral norm of the error of W, `shift_error` the norm of that of b, both
    in the units of their mantissas; `norm` bounds the spectral norm of W. Each is (k,).
    """

    weight: Tensor
    exponent: Tensor
    error: Tensor
    norm: Tensor
    shift: Tensor
    shift_exponent: Tensor
    shift_error: Tensor

    def at(self, place: slice) -> Scaled:
        """Some of the batch."""
        return Scaled(*(one[place] for one in _parts(self)))


def _parts(one: Scaled) -> tuple[Tensor, ...]:
    return (
        one.weight, one.exponent, one.error, one.norm,
        one.shift, one.shift_exponent, one.shift_error,
    )  # fmt: skip


def _joined(parts: Sequence[Scaled]) -> Scaled:
    return Scaled(*(torch.cat(each) for each in zip(*map(_parts, parts), strict=True)))


def scaled(weights: Sequence[Tensor], shifts: Sequence[Tensor | None]) -> Scaled:
    """Maps of one shape (o, i), exactly as they are; a shift of None is 0.

    Cost: one pass over the entries.
    """
    weight = torch.stack([one.detach().double() for one in weights])
    none = weight.new_zeros(weight.shape[1])
    shift = torch.stack([none if one is None else one.detach().double() for one in shifts])
    nothing = weight.new_zeros(len(weight))
    exponent = shift_exponent = torch.zeros(len(weight), dtype=torch.long, device=weight.device)
    norm = torch.linalg.vector_norm(weight, dim=(1, 2))
    if bool(((norm < LOW) | (norm > HIGH)).any()):
        weight, exponent = _normalised(weight)
        norm = torch.linalg.vector_norm(weight, dim=(1, 2))
    norm = norm * (1 + _gamma(weight[0].numel()))
    shift, shift_exponent = _normalised(shift)
    return Scaled(weight, exponent, nothing, norm, shift, shift_exponent, nothing)


def composed(later: Scaled, earlier: Scaled, *, is_tight: bool = True) -> Scaled:
    """`later` after `earlier`, map by map, with the error bounds of the float64 products.

    With E the error of a factor A, the product of A₂ and A₁ errs by at most
    ‖A₂‖‖E₁‖ + ‖E₂‖‖A₁‖ + ‖E₂‖‖E₁‖ + γ_n ‖A₂‖_F ‖A₁‖_F, γ_n = n u / (1 - n u): Higham, "Accuracy
    and Stability of Numerical Algorithms", eq. 3.13. `is_tight` bounds the spectral norm of the
    result by powers of it, else by its Frobenius norm.
    """
    inner = later.weight.shape[2]
    gamma = _gamma(inner)
    lengths = [torch.linalg.vector_norm(one.weight, dim=(1, 2)) for one in (later, earlier)]
    error = later.norm * earlier.error + later.error * (earlier.norm + earlier.error)
    error = error + gamma * lengths[0] * lengths[1]
    product, shift = _normalised(later.weight @ earlier.weight)
    error = torch.ldexp(error, -shift) + TINY

    moved = (later.weight @ earlier.shift[:, :, None])[:, :, 0]
    known = torch.linalg.vector_norm(earlier.shift, dim=1)
    moved_error = later.norm * earlier.shift_error + later.error * (known + earlier.shift_error)
    moved_error = moved_error + gamma * lengths[0] * known
    exponents = later.exponent + earlier.shift_exponent, later.shift_exponent
    # A part that is 0 has no exponent, and must not push the other out of range.
    is_none = [(one == 0).all(1) for one in (moved, later.shift)]
    common = torch.maximum(*(
        torch.where(none, _LEAST, exponent)
        for none, exponent in zip(is_none, exponents, strict=True)
    ))  # fmt: skip
    common = torch.where(is_none[0] & is_none[1], exponents[1], common)
    down = [(one - common).clamp(-2000, 0) for one in exponents]
    total = torch.ldexp(moved, down[0][:, None]) + torch.ldexp(later.shift, down[1][:, None])
    total_error = torch.ldexp(moved_error, down[0]) + torch.ldexp(later.shift_error, down[1])
    total_error = total_error + UNIT * torch.linalg.vector_norm(total, dim=1) + TINY
    total, up = _normalised(total)
    return Scaled(
        product, later.exponent + earlier.exponent + shift, error * (1 + 1e-9),
        _spectral(product) if is_tight else
        torch.linalg.vector_norm(product, dim=(1, 2)) * (1 + 1e-9),
        total, common + up, torch.ldexp(total_error, -up) * (1 + 1e-9),
    )  # fmt: skip


_LEAST = -(2**40)


def chained(weights: Sequence[Tensor], shifts: Sequence[Tensor | None]) -> Scaled:
    """The map of all, the first applied first; a batch of one.

    Neighbours of one square shape are multiplied in pairs, a batch of pairs at a time: errors then
    grow with the norms of products, not with products of norms. Others are taken in order.

    Cost: about 1.75 products a matrix. Memory: `AT_ONCE` entries a batch, a few times over.
    """
    found: Scaled | None = None
    start = 0
    while start < len(weights):
        end = start + 1
        shape = weights[start].shape
        if shape[0] == shape[1]:
            while end < len(weights) and weights[end].shape == shape:
                end += 1
        part = _run(weights[start:end], shifts[start:end])
        found = part if found is None else composed(part, found)
        start = end
    assert found is not None
    return found


def _run(weights: Sequence[Tensor], shifts: Sequence[Tensor | None]) -> Scaled:
    """A chain of maps of one shape."""
    step = max(1, AT_ONCE // weights[0].numel())
    parts = [
        _halved(scaled(weights[start : start + step], shifts[start : start + step]), 0)
        for start in range(0, len(weights), step)
    ]
    return parts[0] if len(parts) == 1 else _halved(_joined(parts), TIGHT)


def _halved(chain: Scaled, level: int) -> Scaled:
    """Products of pairs of neighbours, of pairs of these, and so on."""
    while (count := len(chain.weight)) > 1:
        level += 1
        pairs = count // 2
        made = composed(
            chain.at(slice(1, 2 * pairs, 2)), chain.at(slice(0, 2 * pairs, 2)),
            is_tight=level >= TIGHT,
        )  # fmt: skip
        chain = made if count == 2 * pairs else _joined([made, chain.at(slice(2 * pairs, None))])
    return chain


def _normalised(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values with a norm in [1/2, 1), and the exponent taken out of each map; exact."""
    length = torch.linalg.vector_norm(values.flatten(1), dim=1)
    extreme = (length < LOW) | (length > HIGH)
    if bool(extreme.any()):  # squares may have left the range
        length = torch.where(extreme, values.abs().flatten(1).amax(1), length)
    exponent = torch.frexp(length).exponent.long()
    shape = (-1, *[1] * (values.ndim - 1))
    if bool(extreme.any()):
        return torch.ldexp(values, -exponent.view(shape)), exponent
    return values * torch.ldexp(torch.ones_like(length), -exponent).view(shape), exponent


def _gamma(terms: int) -> float:
    return terms * UNIT / (1 - terms * UNIT)


def _spectral(weight: Tensor) -> Tensor:
    """An upper bound of each spectral norm, see `SQUARINGS`."""
    power = weight.mT @ weight
    root, scale = 0.5, torch.ones(len(weight), dtype=weight.dtype, device=weight.device)
    for _ in range(SQUARINGS):
        length = torch.linalg.vector_norm(power, dim=(1, 2)).clamp_min(TINY)
        power = power / length[:, None, None]
        scale = scale * length**root
        power, root = power @ power, root / 2
    norm: Tensor = torch.linalg.vector_norm(power, dim=(1, 2))
    return scale * norm**root * (1 + 1e-9)


class Rounded(NamedTuple):
    """A map in a model's type, with the relative error bound of its weight; or why there is none.

    `weight_error` and `shift_error` bound the errors themselves, rounding to the type included.
    """

    weight: Tensor | None
    shift: Tensor | None
    relative: float
    weight_error: float
    shift_error: float
    reason: str


def rounded(chain: Scaled, dtype: torch.dtype) -> Rounded:
    """The one map of `chain` in `dtype`, if it is known well enough and lies in its range."""
    info = torch.finfo(dtype)
    exponent, shift_exponent = int(chain.exponent[0]), int(chain.shift_exponent[0])
    length = float(torch.linalg.vector_norm(chain.weight[0]))
    relative = float(chain.error[0]) / length if length else math.inf
    if length == 0 and float(chain.error[0]) < NOTHING:
        relative = 0.0  # a factor is 0, so the product is

    def none(reason: str) -> Rounded:
        return Rounded(None, None, relative, math.inf, math.inf, reason)

    if relative > SURE:
        return none(
            f"the error bound of the product in float64 is {relative:.1e} of it: too little is sure"
        )
    largest = math.frexp(info.max)[1]
    name = str(dtype).removeprefix("torch.")
    if (length and exponent > largest) or (chain.shift[0].any() and shift_exponent > largest):
        return none(f"the product is of the order of 2^{exponent}, past the range of {name}")
    if length and exponent <= math.frexp(info.tiny)[1]:
        return none(f"the product is of the order of 2^{exponent}, below the range of {name}")
    exact = torch.ldexp(chain.weight[0], torch.tensor(exponent))
    exact_shift = torch.ldexp(chain.shift[0], torch.tensor(shift_exponent))
    weight, shift = exact.to(dtype), exact_shift.to(dtype)
    if not bool(torch.isfinite(weight).all() & torch.isfinite(shift).all()):
        return none(f"the product leaves the range of {name} when rounded")
    lost, shift_lost = (
        math.ldexp(float(error[0]), power) + float((kept.double() - true).norm())
        for error, power, kept, true in (
            (chain.error, exponent, weight, exact),
            (chain.shift_error, shift_exponent, shift, exact_shift),
        )
    )
    return Rounded(weight, shift, relative, lost, shift_lost, "")
