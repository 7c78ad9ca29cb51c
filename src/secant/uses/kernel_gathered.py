"""A kernel's factors of all rows, gathered from those of some rows after others.

Holds: ``Gathered``.
May import: torch, ``secant.uses`` (kernel_factors, kernel_tables).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from secant.uses.kernel_factors import Dense, Factor, Outer, Rows
from secant.uses.kernel_tables import Tokens


class Gathered:
    """The factor of all `rows` rows, from those of some of them after others.

    A matrix whose J is no longer than its factors is written out as it comes: that is less to
    hold, and products by pairs of positions would cost more.
    """

    def __init__(self, rows: int) -> None:
        self.rows, self.filled, self.outputs = rows, 0, 0
        self.parts: list[Factor] = []
        self.written: tuple[Tensor, ...] = ()

    def add(self, part: Factor) -> None:
        """The next rows."""
        self.outputs = part.outputs
        if isinstance(part, Outer) and part.is_short:
            self._write(part)
        else:
            self.parts.append(part)
        self.filled += part.rows

    def _write(self, part: Outer) -> None:
        n, c, _, width = part.back.shape
        r = part.into.shape[2]
        if not self.written:
            weight = part.back.new_empty(self.rows, c * width, r)
            bias = part.back.new_empty(self.rows, c, width)
            self.written = (weight, bias) if part.has_bias else (weight,)
        own = slice(self.filled, self.filled + n)
        torch.bmm(part.lines, part.into, out=self.written[0][own])
        if part.has_bias:
            torch.sum(part.back, 2, out=self.written[1][own])

    @staticmethod
    def values(part: Factor) -> int:
        """How many values of `part` are held for each output."""
        if isinstance(part, Outer) and part.is_short:
            return part.rows * part.back.shape[3] * (part.into.shape[2] + part.has_bias)
        return part.values()

    def whole(self) -> Factor:
        """The factor of all of them."""
        if self.written:
            weight, *bias = self.written
            return Rows((weight.view(self.rows, self.outputs, -1), *bias))
        return _together(self.parts)


def _together(parts: Sequence[Factor]) -> Factor:
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, Rows):
        rows = [one.pieces for one in parts if isinstance(one, Rows)]
        return Rows(tuple(torch.cat(piece) for piece in zip(*rows, strict=True)))
    if isinstance(first, Outer):
        outers = [one for one in parts if isinstance(one, Outer)]
        into, back = torch.cat([o.into for o in outers]), _in_order([o.back for o in outers])
        return Outer(into, back, first.has_bias)
    if isinstance(first, Tokens):
        tables = [one for one in parts if isinstance(one, Tokens)]
        ids, back = torch.cat([o.ids for o in tables]), _in_order([o.back for o in tables])
        return Tokens(ids, back, first.size)
    dense = [one.uses for one in parts if isinstance(one, Dense)]
    return Dense([_together(use) for use in zip(*dense, strict=True)])


def _in_order(parts: Sequence[Tensor]) -> Tensor:
    """`torch.cat` of the parts; without a copy where each lies behind the one before."""
    first, at = parts[0], parts[0].storage_offset()
    place = first.untyped_storage().data_ptr()
    for part in parts:
        is_next = part.untyped_storage().data_ptr() == place and part.storage_offset() == at
        if not is_next or part.stride() != first.stride() or part.shape[1:] != first.shape[1:]:
            return torch.cat(list(parts))
        at += len(part) * part.stride(0)
    rows = sum(len(part) for part in parts)
    return first.as_strided((rows, *first.shape[1:]), first.stride())
