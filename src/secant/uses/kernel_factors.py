"""Gradients of a kernel's outputs in the form that makes their products cheap.

Holds: ``Factor`` and its kinds ``Outer`` (linear maps and convolutions), ``Rows`` (anything,
written out) and ``Dense`` (a matrix used in several ways). ``kernel_tables`` has embeddings'.
May import: torch, jaxtyping, ``secant.uses`` (kernel_products).

A factor stands for J of n rows, c outputs and one block of parameters; the kernel is the sum over
blocks of its products. Positions at which weights are shared are summed within a row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from secant.uses.kernel_products import LENGTH, add_product, by_shares, shared, wide

PIECE = 1 << 13
"""Values of a row and output that are written out at once: pieces of many rows stay in cache."""

CACHED = 1 << 21
"""Values of all rows that are written out at once where nothing but their products is kept."""

WORTH = 256
"""Products of each derivative from which on it pays to see whether outputs share it."""

PAIRS = 1 << 24
"""Pairs of positions held at once."""


class Factor(ABC):
    """J of some rows and outputs in one block of parameters."""

    @property
    @abstractmethod
    def sample(self) -> Shaped[Tensor, "n c ..."]:
        """A tensor of as many rows and outputs, where this factor lies."""

    @property
    def rows(self) -> int:
        """How many rows."""
        return self.sample.shape[0]

    @property
    def outputs(self) -> int:
        """How many outputs."""
        return self.sample.shape[1]

    @property
    def device(self) -> torch.device:
        """Where its products are taken."""
        return self.sample.device

    @property
    def has_backs(self) -> bool:
        """Whether what is gathered of it holds the derivatives as they came."""
        return False

    @abstractmethod
    def values(self) -> int:
        """How many values are held for each output."""

    @abstractmethod
    def widest(self) -> int:
        """Values of a row and output that are written out at once."""

    @abstractmethod
    def written_out(self) -> Iterator[Float[Tensor, "n c p"]]:
        """J itself, the block's parameters in pieces, the same pieces for all rows."""

    def summed(self) -> list[Float[Tensor, " p"]]:
        """J summed over rows and outputs, in pieces."""
        return [piece.sum((0, 1)) for piece in self.written_out()]

    def add_trace(self, total: Float[Tensor, "n m"], other: Factor) -> None:
        """Add Σ_c of the products of row n's and row m's gradient of output c.

        Where `other` is this factor, entries below the diagonal may be left out; so below.
        """
        self._add_pieces(total, other, 1)

    def add_full(self, total: Float[Tensor, "nc mc"], other: Factor) -> None:
        """Add the products of all pairs of row and output, rows before outputs."""
        self._add_pieces(total, other, 2)

    def _add_pieces(self, total: Tensor, other: Factor, kept: int) -> None:
        """Add the products of gradients written out, of which `kept` dimensions stay."""

        def flat(piece: Tensor) -> Tensor:
            return piece.flatten(1) if kept == 1 else piece.flatten(0, 1)

        if other is self:
            for piece in self.written_out():
                one = flat(piece)
                add_product(total, one, one)
        else:
            for piece, beside in zip(self.written_out(), other.written_out(), strict=True):
                add_product(total, flat(piece), flat(beside))


@dataclass(frozen=True, eq=False)
class Rows(Factor):
    """J written out, its parameters in one or more pieces."""

    pieces: tuple[Float[Tensor, "n c p"], ...]

    @property
    def sample(self) -> Shaped[Tensor, "n c ..."]:
        """A part of J."""
        return self.pieces[0]

    def values(self) -> int:
        """All."""
        return sum(piece[:, 0].numel() for piece in self.pieces)

    def widest(self) -> int:
        """None more than are held."""
        return 0

    def written_out(self) -> Iterator[Float[Tensor, "n c p"]]:
        """As it is."""
        yield from self.pieces


@dataclass(frozen=True, eq=False)
class Outer(Factor):
    """J = Σ_t back_t ⊗ into_t: a weight (l, r) applied at t positions, and perhaps its bias."""

    into: Float[Tensor, "n t r"]
    back: Float[Tensor, "n c t l"]
    has_bias: bool = False

    @property
    def sample(self) -> Shaped[Tensor, "n c ..."]:
        """The derivatives."""
        return self.back

    def values(self) -> int:
        """Those of the derivatives."""
        return self.back[:, 0].numel()

    def widest(self) -> int:
        """Rows of the weight, of about `PIECE` values; none where there is one position."""
        (_, t, r), width = self.into.shape, self.back.shape[3]
        return 0 if t == 1 else min(width * r, max(PIECE, r))

    def written_out(self) -> Iterator[Float[Tensor, "n c p"]]:
        """Per-row gradients, some rows of the weight at a time. Cost: 2·n·c·t·l·r."""
        n, c, t, width = self.back.shape
        step = max(1, PIECE // self.into.shape[2])
        for start in range(0, width, step):
            back = self.back[..., start : start + step].transpose(2, 3).reshape(n, -1, t)
            yield torch.bmm(back, self.into).view(n, c, -1)
        if self.has_bias:
            yield self.back.sum(2)

    def summed(self) -> list[Float[Tensor, " p"]]:
        """J summed over rows and outputs: one product, no gradient of a row."""
        back = self.back.sum(1).flatten(0, 1)
        weight = (back.T @ self.into.flatten(0, 1)).flatten()
        return [weight, back.sum(0)] if self.has_bias else [weight]

    @property
    def has_backs(self) -> bool:
        """Where J is longer."""
        return not self.is_short

    @property
    def lines(self) -> Float[Tensor, "n cl t"]:
        """The derivatives by line of the gradients, a row of the weight for one output."""
        return self.back.transpose(2, 3).flatten(1, 2)

    @property
    def is_short(self) -> bool:
        """Whether J is no longer than its factors: its lines not longer than its positions."""
        return 1 < self.into.shape[1] >= self.into.shape[2]

    def read(self) -> Float[Tensor, "n t r"]:
        """The inputs; with a bias, which is the weight of an input that is always 1, that too."""
        if not self.has_bias:
            return self.into
        return torch.cat([self.into, self.into.new_ones(*self.into.shape[:2], 1)], 2)

    def is_pairwise(self, other: Outer, *, is_full: bool = False) -> bool:
        """Whether products by pairs of positions cost less than gradients written out."""
        n, t, r = self.into.shape
        m, s, _ = other.into.shape
        c, width = self.back.shape[1], self.back.shape[3]
        square = c * c if is_full else c
        by_pairs = n * m * t * s * (r + square * width)
        written = c * width * r * (n * t + m * s) + n * m * square * width * r
        return by_pairs < written

    def add_trace(self, total: Float[Tensor, "n m"], other: Factor) -> None:
        """By pairs of positions or from the gradients written out, whichever costs less.

        Outputs whose derivatives differ by a factor alone are first made one.
        """
        assert isinstance(other, Outer)
        ours, theirs = self._fewer(other)
        if not ours.is_pairwise(theirs):
            ours._add_lines(total, theirs)
        elif ours.into.shape[1] == theirs.into.shape[1] == 1:
            same = theirs is ours
            into, back = ours.read().flatten(1), ours.back.flatten(1)
            add_product(
                total, back, back if same else theirs.back.flatten(1),
                (into, into if same else theirs.read().flatten(1)),
            )  # fmt: skip
        else:
            ours._add_positions(total, theirs)

    def _fewer(self, other: Outer) -> tuple[Outer, Outer]:
        """Two factors of the same trace, of one output where outputs share their derivatives.

        Σ_c (m v_c)(m' v_c) is m m' Σ_c v_c².
        """
        (_, t, r), rows = self.into.shape, len(other.into)
        products = rows if t == 1 else r + rows * r // t
        found = shared(self.back) if products >= WORTH else None
        if found is None:
            return self, other
        m, shares = found
        weights = shares.square().sum(0)
        if other is self:
            one = replace(self, back=m * weights.sqrt())
            return one, one
        theirs = by_shares(other.back, shares)
        if theirs is None:
            return self, other
        return replace(self, back=m * weights), replace(other, back=theirs)

    def _add_lines(self, total: Tensor, other: Outer) -> None:
        """From gradients written out, some lines of all rows at a time."""
        (n, _, r), m = self.into.shape, len(other.into)
        step = max(1, min(LENGTH, CACHED // max(n, m)) // r)
        if other is self:
            for one in self._by_lines(step):
                add_product(total, one, one)
        else:
            for one, two in zip(self._by_lines(step), other._by_lines(step), strict=True):
                add_product(total, one, two)
        if self.has_bias:
            one = two = self.back.sum(2).flatten(1)
            if other is not self:
                two = other.back.sum(2).flatten(1)
            add_product(total, one, two)

    def _by_lines(self, step: int) -> Iterator[Float[Tensor, "n p"]]:
        """Gradients written out, `step` lines at a time; each is written over by the next."""
        lines, into = self.lines, wide(self.into)
        place = into.new_empty(len(into), min(step, lines.shape[1]), into.shape[2])
        for start in range(0, lines.shape[1], step):
            some = wide(lines[:, start : start + step])
            own = place if some.shape[1] == place.shape[1] else place.new_empty(0)
            yield torch.bmm(some, into, out=own).flatten(1)

    def _add_positions(self, total: Tensor, other: Outer) -> None:
        n, t, _ = self.into.shape
        m, s, _ = other.into.shape
        step = max(1, PAIRS // (t * m * s))
        read, into = self.read(), other.read().flatten(0, 1)
        back = other.back.transpose(1, 2).flatten(0, 1).flatten(1)
        for start in range(0, n, step):
            end = min(n, start + step)
            pairs = into.new_zeros((end - start) * t, m * s, dtype=torch.float64)
            mine = read[start:end].flatten(0, 1)
            backs = self.back[start:end].transpose(1, 2).flatten(0, 1).flatten(1)
            add_product(pairs, backs, back, (mine, into))
            total[start:end] += pairs.view(end - start, t, m, s).sum((1, 3))

    def add_full(self, total: Float[Tensor, "nc mc"], other: Factor) -> None:
        """As `add_trace`; by pairs only where there is one position."""
        assert isinstance(other, Outer)
        is_single = self.into.shape[1] == other.into.shape[1] == 1
        if not is_single or not self.is_pairwise(other, is_full=True):
            super().add_full(total, other)
            return
        width = self.back.shape[3]
        into, back = self.read().flatten(1), self.back.reshape(-1, width)
        same = other is self
        add_product(
            total, back, back if same else other.back.reshape(-1, width),
            (into, into if same else other.read().flatten(1)),
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Dense(Factor):
    """J of one matrix used in several ways, such as a table that is also the last layer."""

    uses: Sequence[Factor]

    @property
    def sample(self) -> Shaped[Tensor, "n c ..."]:
        """That of a use."""
        return self.uses[0].sample

    @property
    def has_backs(self) -> bool:
        """Those of its uses."""
        return True

    def values(self) -> int:
        """Those of all uses."""
        return sum(use.values() for use in self.uses)

    def widest(self) -> int:
        """A piece of each use."""
        return len(self.uses) * max(PIECE, *(use.widest() for use in self.uses))

    def written_out(self) -> Iterator[Float[Tensor, "n c p"]]:
        """The sum of its uses' gradients; all come in the same pieces."""
        for pieces in zip(*(use.written_out() for use in self.uses), strict=True):
            yield reduce(Tensor.add, pieces)
