"""Gradients of a kernel's outputs in the form that makes their products cheap.

Holds: ``Factor`` and its kinds ``Outer`` (linear maps and convolutions), ``Tokens`` (embeddings),
``Rows`` (anything, written out) and ``Dense`` (a matrix used in several ways); ``joined``;
``inner``.
May import: torch, jaxtyping.

A factor stands for J of n rows, c outputs and one block of parameters; the kernel is the sum over
blocks of its products. Positions at which weights are shared are summed within a row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

LENGTH = 1 << 16
"""Terms of a product that are summed in its own precision; from there on sums are float64."""

BLOCK = 256
"""Rows of a symmetric product taken at once; blocks below the diagonal are copied."""

PAIRS = 1 << 24
"""Pairs of positions held at once."""


def inner(a: Float[Tensor, "n k"], b: Float[Tensor, "m k"]) -> Float64[Tensor, "n m"]:
    """a b', of half the cost where `a` is `b`. Half precision is multiplied in float32."""
    if a.dtype in (torch.float16, torch.bfloat16):
        is_one = a is b
        a = a.float()
        b = a if is_one else b.float()
    found = torch.zeros(len(a), len(b), dtype=torch.float64, device=a.device)
    for first in range(0, a.shape[1], LENGTH):
        left, right = a[:, first : first + LENGTH], b[:, first : first + LENGTH]
        if a is not b:
            found += left @ right.T
            continue
        for start in range(0, len(a), BLOCK):
            found[start : start + BLOCK, start:] += left[start : start + BLOCK] @ left[start:].T
    if a is b:
        for start in range(0, len(a), BLOCK):
            end = start + BLOCK
            found[end:, start:end] = found[start:end, end:].T
    return found


class Factor(ABC):
    """J of some rows and outputs in one block of parameters."""

    @abstractmethod
    def values(self) -> int:
        """How many values are held for each output."""

    @abstractmethod
    def widest(self) -> int:
        """Values of a row and output that are written out at once."""

    @abstractmethod
    def written_out(self) -> Iterator[Float[Tensor, "n c p"]]:
        """J itself, the block's parameters in pieces, the same pieces for all rows."""

    def trace(self, other: Factor) -> Float64[Tensor, "n m"]:
        """Σ_c of the products of row n's and row m's gradient of output c."""
        found: Tensor | float = 0.0
        for one, two in self._pieces(other):
            found = found + inner(one, one if two is one else two)
        assert isinstance(found, Tensor)
        return found

    def full(self, other: Factor) -> Float64[Tensor, "nc mc"]:
        """Products of all pairs of row and output, rows before outputs."""
        found: Tensor | float = 0.0
        for one, two in self._pieces(other, is_full=True):
            found = found + inner(one, one if two is one else two)
        assert isinstance(found, Tensor)
        return found

    def _pieces(
        self, other: Factor, *, is_full: bool = False
    ) -> Iterator[tuple[Float[Tensor, "n p"], Float[Tensor, "m p"]]]:
        def flat(piece: Tensor) -> Tensor:
            return piece.flatten(0, 1) if is_full else piece.flatten(1)

        if other is self:
            for piece in self.written_out():
                one = flat(piece)
                yield one, one
        else:
            for piece, beside in zip(self.written_out(), other.written_out(), strict=True):
                yield flat(piece), flat(beside)


@dataclass(frozen=True, eq=False)
class Rows(Factor):
    """J written out."""

    whole: Float[Tensor, "n c p"]

    def values(self) -> int:
        """All."""
        return self.whole[:, 0].numel()

    def widest(self) -> int:
        """None more than are held."""
        return 0

    def written_out(self) -> Iterator[Float[Tensor, "n c p"]]:
        """As it is."""
        yield self.whole


@dataclass(frozen=True, eq=False)
class Outer(Factor):
    """J = Σ_t back_t ⊗ into_t: a weight (l, r) applied at t positions."""

    into: Float[Tensor, "n t r"]
    back: Float[Tensor, "n c t l"]

    def values(self) -> int:
        """Those of the derivatives."""
        return self.back[:, 0].numel()

    def widest(self) -> int:
        """Rows of the weight, of about `LENGTH` values; none where there is one position."""
        (_, t, r), width = self.into.shape, self.back.shape[3]
        return 0 if t == 1 else min(width * r, max(LENGTH, r))

    def written_out(self) -> Iterator[Float[Tensor, "n c p"]]:
        """Per-row gradients, some rows of the weight at a time. Cost: 2·n·c·t·l·r."""
        n, c, t, width = self.back.shape
        step = max(1, LENGTH // self.into.shape[2])
        for start in range(0, width, step):
            back = self.back[..., start : start + step].transpose(2, 3).reshape(n, -1, t)
            yield torch.bmm(back, self.into).view(n, c, -1)

    def is_pairwise(self, other: Outer, *, is_full: bool = False) -> bool:
        """Whether products by pairs of positions cost less than gradients written out."""
        n, t, r = self.into.shape
        m, s, _ = other.into.shape
        c, width = self.back.shape[1], self.back.shape[3]
        square = c * c if is_full else c
        by_pairs = n * m * t * s * (r + square * width)
        written = c * width * r * (n * t + m * s) + n * m * square * width * r
        return by_pairs < written

    def trace(self, other: Factor) -> Float64[Tensor, "n m"]:
        """By pairs of positions or from the gradients written out, whichever costs less."""
        assert isinstance(other, Outer)
        if not self.is_pairwise(other):
            return super().trace(other)
        if self.into.shape[1] == other.into.shape[1] == 1:
            is_same = other is self
            into, back = self.into.flatten(1), self.back.flatten(1)
            return inner(into, into if is_same else other.into.flatten(1)).mul_(
                inner(back, back if is_same else other.back.flatten(1))
            )
        n, t, _ = self.into.shape
        m, s, _ = other.into.shape
        found = torch.empty(n, m, dtype=torch.float64, device=self.into.device)
        step = max(1, PAIRS // (t * m * s))
        into = other.into.flatten(0, 1)
        back = other.back.transpose(1, 2).flatten(0, 1).flatten(1)
        for start in range(0, n, step):
            end = min(n, start + step)
            pairs = inner(self.into[start:end].flatten(0, 1), into)
            pairs *= inner(self.back[start:end].transpose(1, 2).flatten(0, 1).flatten(1), back)
            found[start:end] = pairs.view(end - start, t, m, s).sum((1, 3))
        return found

    def full(self, other: Factor) -> Float64[Tensor, "nc mc"]:
        """As `trace`; by pairs only where there is one position."""
        assert isinstance(other, Outer)
        is_single = self.into.shape[1] == other.into.shape[1] == 1
        if not is_single or not self.is_pairwise(other, is_full=True):
            return super().full(other)
        n, c, _, width = self.back.shape
        m = len(other.into)
        is_same = other is self
        into, back = self.into.flatten(1), self.back.reshape(n * c, width)
        found = inner(back, back if is_same else other.back.reshape(m * c, width))
        pairs = inner(into, into if is_same else other.into.flatten(1))
        found.view(n, c, m, c).mul_(pairs[:, None, :, None])
        return found


@dataclass(frozen=True, eq=False)
class Tokens(Factor):
    """J of a table (v, d) of which row n reads entry `ids[n, t]` at position t."""

    ids: Int[Tensor, "n t"]
    back: Float[Tensor, "n c t d"]
    size: int

    def values(self) -> int:
        """Those of the derivatives."""
        return self.back[:, 0].numel()

    def widest(self) -> int:
        """As much again for the entries met."""
        return self.back[0, 0].numel()

    def written_out(self) -> Iterator[Float[Tensor, "n c p"]]:
        """The gradient of every entry, a few entries at a time. Only where the table is tied."""
        n, c, t, width = self.back.shape
        step = max(1, LENGTH // width)
        for start in range(0, self.size, step):
            count = min(step, self.size - start)
            piece = self.back.new_zeros(n, count + 1, c, width)
            inside = (self.ids >= start) & (self.ids < start + count)
            place = torch.where(inside, self.ids - start, count)
            place = place[:, :, None, None].expand(n, t, c, width)
            piece.scatter_add_(1, place, self.back.transpose(1, 2))
            yield piece[:, :count].transpose(1, 2).flatten(2)

    def met(self) -> tuple[Tensor, Tensor, Tensor]:
        """Entries met, by entry and then by row: the entry, the row, the sum of its gradients."""
        n, c, t, width = self.back.shape
        row = torch.arange(n, device=self.ids.device)[:, None].expand(n, t)
        pair, place = torch.unique(self.ids.flatten() * n + row.flatten(), return_inverse=True)
        summed = self.back.new_zeros(len(pair), c, width)
        summed.index_add_(0, place, self.back.transpose(1, 2).flatten(0, 1))
        return pair // n, pair % n, summed

    def trace(self, other: Factor) -> Float64[Tensor, "n m"]:
        """Entry by entry: rows that do not share one have no product."""
        return self._shared(other, is_full=False)

    def full(self, other: Factor) -> Float64[Tensor, "nc mc"]:
        """As `trace`."""
        return self._shared(other, is_full=True)

    def _shared(self, other: Factor, *, is_full: bool) -> Tensor:
        assert isinstance(other, Tokens)
        c = self.back.shape[1] if is_full else 1
        mine = self.met()
        theirs = mine if other is self else other.met()
        found = torch.zeros(
            len(self.ids), c, len(other.ids), c, dtype=torch.float64, device=self.ids.device
        )
        groups = [_groups(entry) for entry, _, _ in (mine, theirs)]
        for entry in sorted(groups[0].keys() & groups[1].keys()):
            (a, b), (i, j) = groups[0][entry], groups[1][entry]
            one, two = mine[2][a:b], theirs[2][i:j]
            one, two = (x.reshape(len(x) * c, -1) for x in (one, two))
            product = inner(one, two).view(b - a, c, j - i, c)
            rows, columns = mine[1][a:b], theirs[1][i:j]
            found[rows[:, None], :, columns] += product.transpose(1, 2)
        return found.reshape(len(self.ids) * c, -1)


def _groups(entries: Int[Tensor, " k"]) -> dict[int, tuple[int, int]]:
    """Where the run of each value begins and ends in sorted `entries`."""
    values, counts = torch.unique_consecutive(entries, return_counts=True)
    ends = counts.cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    return dict(zip(values.tolist(), zip(starts, ends, strict=True), strict=True))


@dataclass(frozen=True, eq=False)
class Dense(Factor):
    """J of one matrix used in several ways, such as a table that is also the last layer."""

    uses: Sequence[Factor]

    def values(self) -> int:
        """Those of all uses."""
        return sum(use.values() for use in self.uses)

    def widest(self) -> int:
        """A piece of each use."""
        return len(self.uses) * max(LENGTH, *(use.widest() for use in self.uses))

    def written_out(self) -> Iterator[Float[Tensor, "n c p"]]:
        """The sum of its uses' gradients; all come in the same pieces."""
        for pieces in zip(*(use.written_out() for use in self.uses), strict=True):
            yield reduce(Tensor.add, pieces)


def joined(parts: Sequence[Factor]) -> Factor:
    """The factor of all rows from those of some of them, in order.

    A matrix whose rows are no longer than there are positions is written out: that is less to
    hold, and products by pairs of positions would cost more.
    """
    first = parts[0]
    if isinstance(first, Outer) and 1 < first.into.shape[1] >= first.into.shape[2]:
        return joined([Rows(torch.cat(list(one.written_out()), 2)) for one in parts])
    if len(parts) == 1:
        return first
    if isinstance(first, Rows):
        return Rows(torch.cat([one.whole for one in parts if isinstance(one, Rows)]))
    if isinstance(first, Outer):
        return _together(parts)
    if isinstance(first, Tokens):
        tables = [one for one in parts if isinstance(one, Tokens)]
        ids, back = torch.cat([one.ids for one in tables]), torch.cat([o.back for o in tables])
        return Tokens(ids, back, first.size)
    dense = [one.uses for one in parts if isinstance(one, Dense)]
    return Dense([_together(use) for use in zip(*dense, strict=True)])


def _together(parts: Sequence[Factor]) -> Factor:
    """As `joined`, but a use stays as it is, for the uses of a matrix come in the same pieces."""
    first = parts[0]
    if isinstance(first, Outer):
        outers = [one for one in parts if isinstance(one, Outer)]
        return Outer(
            torch.cat([one.into for one in outers]), torch.cat([one.back for one in outers])
        )
    return joined(parts)
