"""Convex cells of a plane as loops of shared vertices, and one round of cuts; tensors only.

Holds: ``Cells``, ``Field``, ``Pairs``, ``Birth``, ``cut``, ``both_sides``.
May import: torch.

Cells share their vertices, so that what is continuous has one value at each, and a cut that ends
on an edge ends there for both cells. A cell's loop runs anticlockwise.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SNAP = 64 * torch.finfo(torch.float64).eps
"""A value this small, against the largest of its column at a vertex, is a zero at that vertex.

Rounding leaves some 1e-16 of it; lines nearer to a vertex than this are taken to pass through it.
"""


class Cells(NamedTuple):
    """`loop` (entries,): vertices, cell after cell; cell c has entries start[c] to start[c+1]."""

    loop: Tensor
    start: Tensor  # (cells + 1,)

    @property
    def number(self) -> int:
        """How many cells."""
        return len(self.start) - 1

    @property
    def lengths(self) -> Tensor:
        """Vertices of each cell."""
        return self.start.diff()

    @property
    def owner(self) -> Tensor:
        """The cell of each entry."""
        cells = torch.arange(self.number, device=self.loop.device)
        return cells.repeat_interleave(self.lengths, output_size=len(self.loop))

    def following(self) -> Tensor:
        """The entry after each, around its cell."""
        after = torch.arange(1, len(self.loop) + 1, device=self.loop.device)
        after[self.start[1:] - 1] = self.start[:-1]
        return after

    def preceding(self) -> Tensor:
        """The entry before each, around its cell."""
        before = torch.arange(-1, len(self.loop) - 1, device=self.loop.device)
        before[self.start[:-1]] = self.start[1:] - 1
        return before

    def taken(self, chosen: Tensor) -> Cells:
        """The cells at the places `chosen`, in that order."""
        lengths = self.lengths[chosen]
        return Cells(self.loop[entries(self.start[chosen], lengths)], _starts(lengths))

    @staticmethod
    def joined(parts: list[Cells]) -> Cells:
        """All cells of several, one after another."""
        lengths = torch.cat([part.lengths for part in parts])
        return Cells(torch.cat([part.loop for part in parts]), _starts(lengths))


def entries(first: Tensor, lengths: Tensor) -> Tensor:
    """first[0], first[0] + 1, ... so many as lengths[0] says, then those of first[1], ..."""
    starts = _starts(lengths)
    shift = (first - starts[:-1]).repeat_interleave(lengths)
    return torch.arange(len(shift), device=first.device) + shift


def _starts(lengths: Tensor) -> Tensor:
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0))


class Pairs(NamedTuple):
    """Lines that may cut cells: in cell `cell`, where columns `p` and `q` of a field are equal."""

    cell: Tensor
    p: Tensor
    q: Tensor

    def where(self, mask: Tensor) -> Pairs:
        """Those that the mask keeps."""
        return Pairs(self.cell[mask], self.p[mask], self.q[mask])


class Birth(NamedTuple):
    """New vertices: `share` of the way from vertex `a` to vertex `b`."""

    a: Tensor
    b: Tensor
    share: Tensor

    def of(self, rows: Tensor) -> Tensor:
        """What is affine on each cell, (vertices, *shape), at the new vertices."""
        share = self.share.view(-1, *[1] * (rows.ndim - 1))
        return torch.lerp(rows.index_select(0, self.a), rows.index_select(0, self.b), share)


class Field:
    """Columns known at the vertices, affine on each cell, with room for more vertices."""

    def __init__(self, columns: Tensor) -> None:
        self.count, width = columns.shape
        self.room = columns.new_empty(2 * self.count + 64, width)
        self.room[: self.count] = columns
        self.tolerance = SNAP * columns.abs().amax(0)

    @property
    def rows(self) -> Tensor:
        """(vertices, columns)."""
        return self.room[: self.count]

    def grow(self, birth: Birth) -> None:
        """Add the rows of new vertices."""
        more = birth.of(self.rows)
        if self.count + len(more) > len(self.room):
            room = self.room.new_empty(2 * (self.count + len(more)), self.room.shape[1])
            room[: self.count] = self.rows
            self.room = room
        self.room[self.count : self.count + len(more)] = more
        self.count += len(more)

    def gap(self, vertex: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """Column p less column q at the vertices, and its sign, 0 within the tolerance."""
        flat, width = self.room.view(-1), self.room.shape[1]
        gap = flat[vertex * width + p] - flat[vertex * width + q]
        allowed = torch.maximum(self.tolerance[p], self.tolerance[q])
        return gap, (gap > allowed).to(torch.int8) - (gap < -allowed).to(torch.int8)


def both_sides(cells: Cells, pairs: Pairs, field: Field) -> Tensor:
    """Which pairs' lines have vertices of their cell strictly on either side."""
    lengths = cells.lengths[pairs.cell]
    item = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    vertex = cells.loop[entries(cells.start[pairs.cell], lengths)]
    _, sign = field.gap(vertex, pairs.p[item], pairs.q[item])
    sides = torch.zeros(2, len(lengths), dtype=torch.bool, device=lengths.device)
    sides[0, item[sign > 0]] = True
    sides[1, item[sign < 0]] = True
    return sides.all(0)


class Cut(NamedTuple):
    """Cells after a round: those of before keep their places, their other halves follow."""

    cells: Cells
    other: Tensor  # (cells before,): where the other half is, -1 if the cell was not cut
    birth: Birth


def cut(cells: Cells, pairs: Pairs, field: Field, vertices: int) -> Cut:
    """Cut each cell of `pairs`, one line a cell, which has vertices on both sides of it.

    The new vertices are numbered from `vertices`. They lie on edges and join the loops of both
    cells of the edge, whether these are cut or not.
    """
    count, loop = cells.number, cells.loop
    line = torch.full((count,), -1, dtype=torch.int64, device=loop.device)
    line[pairs.cell] = torch.arange(len(pairs.cell), device=loop.device)
    owner, after, before = cells.owner, cells.following(), cells.preceding()
    mine = line[owner]
    gap, sign = field.gap(loop, pairs.p[mine], pairs.q[mine])
    up, down = _turns(cells, owner, mine >= 0, sign)
    turn = torch.stack([up[pairs.cell], down[pairs.cell]], 1)  # the first entry past the line
    base = before[turn]
    on_vertex = sign[base] == 0
    # Edges between neighbouring entries, each numbered once for both of its cells.
    low, high = torch.minimum(loop, loop[after]), torch.maximum(loop, loop[after])
    names, edge = torch.unique(low * vertices + high, return_inverse=True)
    which, side = (~on_vertex).nonzero(as_tuple=True)
    entry = base[which, side]
    width = field.room.shape[1]
    key = (edge[entry] * width + pairs.p[which]) * width + pairs.q[which]
    keys, new = torch.unique(key, return_inverse=True)
    example = torch.empty_like(keys).scatter_(0, new, entry)
    is_forward = loop == low
    at_low = torch.where(is_forward[example], gap[example], gap[after[example]])
    at_high = torch.where(is_forward[example], gap[after[example]], gap[example])
    share, on_edge = at_low / (at_low - at_high), edge[example]
    order = share.argsort(stable=True)
    order = order[on_edge[order].argsort(stable=True)]
    # Lines that cross an edge at one place, each from its own side, make one vertex.
    on_edge, share = on_edge[order], share[order]
    is_first = torch.ones_like(on_edge, dtype=torch.bool)
    is_first[1:] = (on_edge[1:] != on_edge[:-1]) | (share.diff() > SNAP)
    place = torch.empty_like(order)
    place[order] = is_first.cumsum(0) - 1
    order, on_edge = order[is_first], on_edge[is_first]
    birth = Birth(low[example][order], high[example][order], share[is_first])
    # How many new vertices each edge has, and the first of them in that order.
    many = torch.bincount(on_edge, minlength=len(names))
    first = _starts(many)[:-1]
    more = many[edge]
    put = _starts(1 + more)
    wider = loop.new_empty(int(put[-1]))
    wider[put[:-1]] = loop
    for rank in range(int(many.max()) if len(many) else 0):
        here = (more > rank).nonzero()[:, 0]
        nth = torch.where(is_forward[here], rank, more[here] - 1 - rank)
        wider[put[here] + 1 + rank] = vertices + first[edge[here]] + nth
    nth = place[new] - first[edge[entry]]
    nth = torch.where(is_forward[entry], nth, more[entry] - 1 - nth)
    at = put[base]
    at[which, side] = put[entry] + 1 + nth
    ends = torch.full((count, 2), -1, dtype=torch.int64, device=loop.device)
    ends[pairs.cell] = at
    halves, other = _halves(Cells(wider, put[cells.start]), ends)
    return Cut(halves, other, birth)


def _turns(cells: Cells, owner: Tensor, is_cut: Tensor, sign: Tensor) -> tuple[Tensor, Tensor]:
    """For each cell the entry at which its loop turns positive, and that of its turn negative.

    Zeros in between do not count: the entry before such a turn is a zero, or of the other sign.
    """
    place = torch.arange(len(sign), device=sign.device)
    last = torch.where(sign != 0, place, -1).cummax(0).values
    earlier = torch.nn.functional.pad(last[:-1], (1, 0), value=-1)
    last_of_cell = last[cells.start[1:] - 1][owner]
    earlier = torch.where(earlier >= cells.start[owner], earlier, last_of_cell)
    turns = is_cut & (sign != 0) & (sign[earlier] != sign)
    found = []
    for side in (turns & (sign > 0), turns & (sign < 0)):
        entry = side.nonzero()[:, 0]
        of_cell = place.new_full((cells.number,), len(sign))
        found.append(of_cell.scatter_reduce(0, owner[entry], entry, "amin"))
    return found[0], found[1]


def _halves(cells: Cells, ends: Tensor) -> tuple[Cells, Tensor]:
    """Loops cut from one entry to another, (cells, 2); -1 where a cell stays whole."""
    is_cut, length, owner = ends[:, 0] >= 0, cells.lengths, cells.owner
    begin = torch.where(is_cut, ends[:, 0] - cells.start[:-1], 0)
    reach = torch.where(is_cut, (ends[:, 1] - ends[:, 0]) % length, length)
    other = torch.full_like(length, -1)
    other[is_cut] = cells.number + torch.arange(int(is_cut.sum()), device=other.device)
    lengths = torch.cat([
        torch.where(is_cut, reach + 1, length), (length - reach + 1)[is_cut]
    ])  # fmt: skip
    start = _starts(lengths)
    place = torch.arange(len(cells.loop), device=owner.device) - cells.start[owner]
    turned = (place - begin[owner]) % length[owner]
    loop = cells.loop.new_empty(int(start[-1]))
    near = turned <= reach[owner]
    loop[start[owner[near]] + turned[near]] = cells.loop[near]
    far = is_cut[owner] & ((turned >= reach[owner]) | (turned == 0))
    shift = torch.where(turned == 0, length[owner] - reach[owner], turned - reach[owner])
    loop[start[other[owner[far]]] + shift[far]] = cells.loop[far]
    return Cells(loop, start), other
