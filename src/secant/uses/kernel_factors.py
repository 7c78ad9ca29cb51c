"""Gradients of a kernel's outputs in the form that makes their products cheap.

Holds: ``Factor`` and its kinds ``Outer`` (linear maps and convolutions), ``Tokens`` (embeddings),
``Rows`` (anything, written out) and ``Dense`` (a matrix used in several ways); ``joined``;
``add_product``.
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
from jaxtyping import Float, Int, Shaped
from torch import Tensor

PIECE = 1 << 13
"""Values of a row and output that are written out at once: pieces of many rows stay in cache."""

LENGTH = 1 << 16
"""Terms of a product that are summed in its own precision; from there on sums are float64."""

FEWEST, MOST = 64, 256
"""Rows of a symmetric product taken at once: half of them where that is not too few or many."""

PAIRS = 1 << 24
"""Pairs of positions held at once."""


def add_product(
    total: Float[Tensor, "n m"],
    a: Float[Tensor, "n k"],
    b: Float[Tensor, "m k"],
    beside: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Add a b' to `total`; where `a` is `b`, at least all that is not below the diagonal.

    With `beside` (u, v), each entry is multiplied by that of u v' first; u and v may have fewer
    rows, each of which stands for as many in turn of a and b. Half precision becomes float32.
    """
    is_half = a is b
    a, b = _wide(a), _wide(b)
    u, v = (_wide(beside[0]), _wide(beside[1])) if beside is not None else (None, None)
    each = len(a) // len(u) if u is not None else 1
    step = min(MOST, max(FEWEST, len(a) // 2)) if is_half else MOST * 4
    step = -(-step // each) * each
    for start in range(0, len(a), step):
        first, end = start if is_half else 0, min(len(a), start + step)
        tile = _product(a[start:end], b[first:])
        if u is not None and v is not None:
            pairs = u[start // each : end // each] @ v[first // each :].T
            shape = len(pairs), each, pairs.shape[1], each
            tile = (tile.view(shape) * pairs[:, None, :, None]).view(tile.shape)
        total[start:end, first:] += tile


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a b', in float64 where the sums are long."""
    if a.shape[1] <= LENGTH:
        return a @ b.T
    found = torch.zeros(len(a), len(b), dtype=torch.float64, device=a.device)
    for first in range(0, a.shape[1], LENGTH):
        found += a[:, first : first + LENGTH] @ b[:, first : first + LENGTH].T
    return found


def _wide(a: Tensor) -> Tensor:
    return a.float() if a.dtype in (torch.float16, torch.bfloat16) else a


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

    @abstractmethod
    def values(self) -> int:
        """How many values are held for each output."""

    @abstractmethod
    def widest(self) -> int:
        """Values of a row and output that are written out at once."""

    @abstractmethod
    def written_out(self) -> Iterator[Float[Tensor, "n c p"]]:
        """J itself, the block's parameters in pieces, the same pieces for all rows."""

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
    """J written out."""

    whole: Float[Tensor, "n c p"]

    @property
    def sample(self) -> Shaped[Tensor, "n c ..."]:
        """J."""
        return self.whole

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
        """By pairs of positions or from the gradients written out, whichever costs less."""
        assert isinstance(other, Outer)
        if not self.is_pairwise(other):
            super().add_trace(total, other)
        elif self.into.shape[1] == other.into.shape[1] == 1:
            into, back = self.read().flatten(1), self.back.flatten(1)
            same = other is self
            add_product(
                total, back, back if same else other.back.flatten(1),
                (into, into if same else other.read().flatten(1)),
            )  # fmt: skip
        else:
            self._add_positions(total, other)

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
class Tokens(Factor):
    """J of a table (v, d) of which row n reads entry `ids[n, t]` at position t."""

    ids: Int[Tensor, "n t"]
    back: Float[Tensor, "n c t d"]
    size: int

    @property
    def sample(self) -> Shaped[Tensor, "n c ..."]:
        """The derivatives."""
        return self.back

    def values(self) -> int:
        """Those of the derivatives."""
        return self.back[:, 0].numel()

    def widest(self) -> int:
        """As much again for the entries met."""
        return self.back[0, 0].numel()

    def written_out(self) -> Iterator[Float[Tensor, "n c p"]]:
        """The gradient of every entry, a few entries at a time. Only where the table is tied."""
        n, c, t, width = self.back.shape
        step = max(1, PIECE // width)
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

    def add_trace(self, total: Float[Tensor, "n m"], other: Factor) -> None:
        """Entry by entry: rows that do not share one have no product."""
        self._add_shared(total, other, 1)

    def add_full(self, total: Float[Tensor, "nc mc"], other: Factor) -> None:
        """As `add_trace`."""
        self._add_shared(total, other, self.back.shape[1])

    def _add_shared(self, total: Tensor, other: Factor, c: int) -> None:
        assert isinstance(other, Tokens)
        mine = self.met()
        theirs = mine if other is self else other.met()
        found = total.view(len(self.ids), c, len(other.ids), c)
        groups = [_groups(entry) for entry, _, _ in (mine, theirs)]
        for entry in sorted(groups[0].keys() & groups[1].keys()):
            (a, b), (i, j) = groups[0][entry], groups[1][entry]
            one, two = (x.reshape(len(x) * c, -1) for x in (mine[2][a:b], theirs[2][i:j]))
            product = total.new_zeros(len(one), len(two), dtype=torch.float64)
            add_product(product, one, two)
            product = product.view(b - a, c, j - i, c)
            rows, columns = mine[1][a:b], theirs[1][i:j]
            found[rows[:, None], :, columns] += product.transpose(1, 2).to(found)


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

    @property
    def sample(self) -> Shaped[Tensor, "n c ..."]:
        """That of a use."""
        return self.uses[0].sample

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
            torch.cat([one.into for one in outers]),
            torch.cat([one.back for one in outers]),
            first.has_bias,
        )
    return joined(parts)
