"""The number types of weights on disk, as numpy has them; bfloat16, which it has not, by its bits.

Holds: ``Kind``, ``KINDS``, ``widened``, ``round_to``, ``narrowed``, ``all_finite``,
``common_kind``.
May import: numpy.

No torch here: importing it takes longer than merging a small model does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Kind:
    """A type's safetensors name and torch name, the numpy type that holds its bits, and the one
    that its values are computed in; None where no arithmetic on them makes sense here."""

    name: str
    torch_name: str
    stored: DTypeLike
    working: DTypeLike | None = None

    @property
    def size(self) -> int:
        """Bytes a value."""
        return np.dtype(self.stored).itemsize


KINDS: Final = {
    kind.name: kind
    for kind in (
        Kind("F64", "float64", np.float64, np.float64),
        Kind("F32", "float32", np.float32, np.float32),
        Kind("F16", "float16", np.float16, np.float32),
        Kind("BF16", "bfloat16", np.uint16, np.float32),
        Kind("F8_E4M3", "float8_e4m3fn", np.uint8),
        Kind("F8_E5M2", "float8_e5m2", np.uint8),
        Kind("I64", "int64", np.int64),
        Kind("I32", "int32", np.int32),
        Kind("I16", "int16", np.int16),
        Kind("I8", "int8", np.int8),
        Kind("U64", "uint64", np.uint64),
        Kind("U32", "uint32", np.uint32),
        Kind("U16", "uint16", np.uint16),
        Kind("U8", "uint8", np.uint8),
        Kind("BOOL", "bool", np.uint8),
    )
}


_EXPONENT: Final = {"BF16": 0x7F80, "F16": 0x7C00}
"""What all bits of the exponent make: of infinity and NaN alone."""


def widened(stored: Array, kind: Kind) -> Array:
    """The values, in the type that they are computed in; exact. May be `stored` itself."""
    if kind.name == "BF16":  # the upper half of a float32
        bits = stored.astype(np.uint32)
        np.left_shift(bits, 16, out=bits)
        return bits.view(np.float32)
    return stored.astype(kind.working, copy=False)


def round_to(values: Array, kind: Kind) -> Array:
    """`values`, each replaced by the nearest value of `kind`, ties to even; NaN is not allowed."""
    if kind.name == "BF16":
        _round_bits(values.view(np.uint32))
        np.bitwise_and(values.view(np.uint32), 0xFFFF0000, out=values.view(np.uint32))
    elif kind.name == "F16":
        values[...] = _half(values)
    return values


def narrowed(values: Array, kind: Kind) -> Array:
    """`values` as they are stored, rounded to nearest, ties to even; spoils `values`. No NaN."""
    if kind.name == "BF16":
        bits = values.astype(np.float32, copy=False).view(np.uint32)
        _round_bits(bits)
        np.right_shift(bits, 16, out=bits)
        return bits.astype(np.uint16)
    if kind.name == "F16":
        return _half(values)
    return values.astype(kind.stored, copy=False)


def all_finite(stored: Array, kind: Kind) -> bool:
    """Whether no stored value is NaN or infinite; of short types by bits, which is faster."""
    if not stored.size or kind.name not in _EXPONENT:
        return bool(np.isfinite(stored).all())
    exponent, bits = _EXPONENT[kind.name], stored.view(np.uint16)
    return bool(bits.max() < 0x8000 | exponent and bits.view(np.int16).max() < exponent)


def _half(values: Array) -> Array:
    with np.errstate(over="ignore"):  # infinity, as for every other type; the caller looks
        return values.astype(np.float16)


def _round_bits(bits: Array) -> None:
    """Add to float32 bits what carries into the upper half where it rounds up, ties to even."""
    carry = np.right_shift(bits, 16)
    np.bitwise_and(carry, 1, out=carry)
    np.add(carry, 0x7FFF, out=carry)
    np.add(bits, carry, out=bits)


def common_kind(kinds: Iterable[Kind]) -> Kind:
    """The type that holds the values of all: the widest, and float32 for the two halves."""
    names = {kind.name for kind in kinds}
    if names == {"F16", "BF16"}:
        return KINDS["F32"]
    return next(KINDS[name] for name in ("F64", "F32", "F16", "BF16") if name in names)
