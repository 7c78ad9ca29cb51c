"""Gradients of a table's entries, for a kernel.

Holds: ``Tokens``.
May import: torch, jaxtyping, ``secant.uses`` (kernel_factors, kernel_products).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from secant.uses.kernel_factors import PIECE, Factor
from secant.uses.kernel_products import add_product


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

    @property
    def has_backs(self) -> bool:
        """All."""
        return True

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
